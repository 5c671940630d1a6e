"""The planted faults fit the code: a change to a line that one of them replaces needs a change to the list, too."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import ENGINE, ROOT, Mutant, Stale, load, plant

MUTANTS = load()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.number}-{mutant.file}")
def test_the_fault_can_be_planted(mutant: Mutant) -> None:
    changed = plant(mutant, (ENGINE / mutant.file).read_text(encoding="utf-8"))
    ast.parse(changed)
    assert mutant.breaks
    for test in mutant.tests:
        assert (ROOT / test).exists(), f"{test} is not there"


def test_each_fault_changes_one_line() -> None:
    for mutant in MUTANTS:
        old, new = mutant.old.splitlines(), mutant.new.splitlines()
        same = sum(line in new for line in old)
        assert same >= len(old) - 2, f"mutant {mutant}: changes more than one line"


def test_no_fault_is_listed_twice() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 25


def test_text_that_is_gone_is_an_error() -> None:
    with pytest.raises(Stale, match="0 times"):
        plant(Mutant(1, "x.py", "no such line", "", "nothing", ()), "other\n")
    with pytest.raises(Stale, match="2 times"):
        plant(Mutant(1, "x.py", "a", "", "nothing", ()), "a a\n")
