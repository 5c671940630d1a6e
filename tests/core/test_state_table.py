"""The table of states: every transition that is not in it is refused."""

from __future__ import annotations

import itertools

import pytest

from poolkit._core.slots import TRANSITIONS, State
from tests.core.kit import slot


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)), ids=lambda state: state.value)
def test_a_connection_moves_only_along_the_table(old: State, new: State) -> None:
    made = slot()
    made.state = old
    if new in TRANSITIONS[old]:
        made.move(new)
        assert made.state is new
    else:
        with pytest.raises(AssertionError, match="bug: connection 1 cannot go from"):
            made.move(new)
        assert made.state is old


def test_every_state_can_be_reached_and_closed_is_the_end() -> None:
    reached = {State.CONNECTING}
    for _ in State:
        reached |= {new for old in reached for new in TRANSITIONS[old]}
    assert reached == set(State)
    assert not TRANSITIONS[State.CLOSED]
    assert all(TRANSITIONS[state] for state in State if state is not State.CLOSED)
