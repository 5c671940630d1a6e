"""How connections are registered and removed: the register alone."""

from __future__ import annotations

import pytest

from poolkit._core.effects import Do
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.machine import Core
from poolkit._core.maintenance import leaks
from poolkit._core.slots import CLOSED, CLOSING, IN_USE, LeaseRecord
from poolkit._core.state import Features
from poolkit.config import PoolConfig
from poolkit.events import CloseReason, EventKind
from tests.core.kit import Board

NOW = 1000.0


def test_a_permit_is_taken_from_the_decision_to_open_until_the_connection_is_closed() -> None:
    board = Board(max_size=2)
    made = board.slots.open(board.only, NOW)
    assert board.slots.living() == [made]
    assert (board.only.size, board.only.connecting, board.slots.coming()) == (1, 1, 1)
    closing = board.open()
    board.slots.start_close(closing, CloseReason.EXPIRED, NOW, abort=True)
    assert board.done() == [Do.ABORT]
    assert len(board.slots.all) == 2
    assert closing.state is CLOSING
    assert (board.slots.closing, board.slots.coming()) == (1, 1)
    board.slots.closed(closing)
    assert closing.state is CLOSED
    assert (board.slots.closing, board.only.size) == (0, 1)
    assert board.slots.counts.closes[CloseReason.EXPIRED] == 1
    assert board.told[-1] is EventKind.CONNECTION_CLOSED


def test_a_budget_is_notified_when_a_connection_begins_to_close_and_when_it_is_gone() -> None:
    account = Account(BudgetLedger(4), 0, 1.0, lambda: None)
    account.ledger.open(account)
    board = Board(max_size=4, account=account)
    account.held = 3
    one, other, third = board.open(), board.open(), board.open()
    board.slots.start_close(one, CloseReason.SURPLUS, NOW)
    assert account.leaving == 1
    account.leaving = 2  # it was asked for the second one
    board.slots.start_close(other, CloseReason.SURPLUS, NOW, announced=True)
    assert account.leaving == 2
    board.slots.closed(one)
    board.slots.closed(other)
    board.slots.remove(third)
    assert (account.held, account.leaving) == (0, 0)


def test_the_uses_of_a_connection_that_is_gone_are_kept() -> None:
    board = Board(max_size=1)
    made = board.open()
    made.uses, made.busy = 3, 1.5
    made.state = IN_USE
    board.slots.remove(made)
    assert (board.slots.counts.uses, board.slots.counts.busy) == (3, 1.5)
    assert not board.slots.known


def test_a_connection_that_the_pool_has_already_is_recognized() -> None:
    board = Board(max_size=2)
    made = board.open()
    assert board.slots.twin_of(made.connection) is made
    assert board.slots.twin_of(object()) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"generation": 7}, CloseReason.STALE),
        ({"expires": NOW}, CloseReason.EXPIRED),
        ({"last_used": NOW - 60}, CloseReason.IDLE),
    ],
)
def test_why_a_connection_is_not_handed_out_again(change: dict[str, float], reason: CloseReason | None) -> None:
    board = Board(max_size=2, idle_timeout=60.0)
    made = board.open()
    for name, value in change.items():
        setattr(made, name, value)
    assert board.slots.retire_reason(made, NOW) is reason


def test_connections_that_are_kept_without_need_may_be_unused_for_ever() -> None:
    board = Board(max_size=2, min_size=1, idle_timeout=60.0)
    made = board.open()
    assert board.slots.retire_reason(made, NOW + 60) is None
    board.open()
    assert board.slots.retire_reason(made, NOW + 60) is CloseReason.IDLE


def test_the_endpoint_for_which_a_connection_gave_way_is_looked_at_again() -> None:
    board = Board(features=Features(keyed=True), max_size=2)
    here, there = board.endpoints.add("here"), board.endpoints.add("there")
    made = board.open(here)
    made.evicted_for, there.evictions = there, 1
    board.slots.start_close(made, CloseReason.SURPLUS, NOW)
    board.touched.clear()
    board.slots.closed(made)
    assert there.evictions == 0
    assert there in board.touched
    assert "here" not in board.endpoints.all, "nothing is kept of an endpoint without connections and callers"


def test_each_lease_of_a_connection_that_lasts_too_long_is_reported_once() -> None:
    core = Core(PoolConfig(leak_after=10.0), Features(), name="core", barging=0.0, random=lambda: 1.0)
    first = core.slots.open(core.add_endpoint(None), NOW)
    first.state, first.since = IN_USE, NOW
    second = LeaseRecord(first)
    second.since = NOW
    core.leased.update({1: first, 2: second})
    assert leaks(core, NOW + 9) == []
    assert leaks(core, NOW + 10) == [first, second]
    assert leaks(core, NOW + 20) == []
    assert core.counts.leaks == 2
