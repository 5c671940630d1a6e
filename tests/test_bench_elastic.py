"""The comparison of elastic with fixed sizes: in virtual time, so that its numbers are the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.elastic.__main__ import main
from bench.elastic.report import BEGIN, ELASTIC, END, PAGE, SUBJECTS, Runs, play, rows
from bench.elastic.traces import TRACES, Trace

pytestmark = pytest.mark.timeout(180)  # seconds of work, many more where other processes keep the cores busy

DOCS = Path(__file__).resolve().parents[1] / "docs"
QUICK = ("overload", "recorded")


@pytest.fixture(scope="module")
def played() -> dict[str, tuple[Trace, Runs]]:
    return {trace.name: (trace, play(trace)) for trace in TRACES if trace.name in QUICK}


@pytest.mark.parametrize("name", QUICK)
def test_the_page_shows_what_the_simulation_gives(played: dict[str, tuple[Trace, Runs]], name: str) -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    table = page[page.index(BEGIN) : page.index(END)]
    for row in rows(*played[name]):
        assert row in table, f"run python -m bench.elastic --docs docs: {row}"


def test_fewer_connections_are_held_and_nearly_nobody_waits(played: dict[str, tuple[Trace, Runs]]) -> None:
    """The recorded service holds at most two thirds of a fixed size for the worst moment, and 0.72 of a pool
    on demand; p99 is below 5 ms; nobody fails.
    """
    runs = played["recorded"][1]
    elastic = runs[ELASTIC]
    assert elastic.held < 0.67 * runs["fixed, 32"].held
    assert elastic.held < 0.72 * runs["on demand, up to 32"].held
    assert elastic.quantile(0.99) < 0.005
    assert not elastic.failed


def test_a_full_server_is_asked_rarely(played: dict[str, tuple[Trace, Runs]]) -> None:
    """Under a fifth of the refused connects of any other pool, and everybody is served."""
    runs = played["overload"][1]
    others = [run.refused for name, run in runs.items() if name != ELASTIC]
    assert 0 < runs[ELASTIC].refused < min(others) / 5
    assert not runs[ELASTIC].failed


def test_every_trace_has_its_plot() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    for trace in TRACES:
        assert f"(elastic/{trace.name}.svg)" in page
        assert (DOCS / "concepts" / "elastic" / f"{trace.name}.svg").read_text().count("<path") > 10
    assert set(SUBJECTS) == {"fixed, 32", "fixed, 24", "on demand, up to 32", ELASTIC}


def test_the_command_says_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stp"])
    assert "stp: no such trace; known: step, spike, wave" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["step", "--docs", "docs"])
    assert "--docs needs all traces" in capsys.readouterr().err
