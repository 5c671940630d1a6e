"""Which caller gets which connection: the service alone, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import PoolBusy, PoolClosed, PoolSuspended
from poolkit._core.effects import Do
from poolkit._core.endpoints import refuse_some
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.slots import CHECKING, CLOSING, IDLE, IN_USE
from poolkit._core.state import Features, Phase
from tests.core.kit import Board, Request, Slot

NOW = 1000.0


def queued(board: Board, at: float = NOW) -> Request:
    request = board.request(at=at)
    board.service.enqueue(request, at)
    return request


def idle(board: Board, capacity: int = 1) -> Slot:
    made = board.open(capacity=capacity)
    board.service.place(made, NOW)
    assert made.state is IDLE
    return made


def test_a_free_connection_goes_to_the_oldest_waiter() -> None:
    board = Board(max_size=2)
    first, second = queued(board), queued(board)
    made = board.open()
    board.service.place(made, NOW)
    assert (first.outcome, second.outcome) == (made, None)
    assert (made.state, made.leases) == (IN_USE, 1)
    assert board.done() == [Do.WAKE]
    assert list(board.only.requests) == [second]


def test_without_a_waiter_it_is_idle_and_the_next_caller_takes_it() -> None:
    board = Board(max_size=2)
    made = idle(board)
    request = board.request()
    assert board.service.take_for(request, NOW) is made
    assert (made.state, made.leases) == (IN_USE, 1)


def test_a_connection_in_doubt_is_checked_before_use() -> None:
    board = Board(max_size=2, features=Features(checks=True))
    made = idle(board)
    assert board.service.take_for(board.request(), NOW + board.window) is made
    assert made.state is CHECKING


def test_the_other_streams_of_a_connection_are_for_waiting_callers_and_then_for_newcomers() -> None:
    board = Board(max_size=2)
    requests = [queued(board), queued(board)]
    made = board.open(capacity=3)
    board.service.place(made, NOW)
    assert [request.outcome for request in requests] == [made, made]
    assert (made.leases, list(board.only.spare), len(board.only.idle)) == (2, [made], 0)
    assert board.service.take_for(board.request(), NOW) is made
    assert (made.leases, list(board.only.spare)) == (3, [])
    assert board.service.take_for(board.request(), NOW) is None


@pytest.mark.parametrize(("order", "shared"), [("lifo", True), ("fifo", False)])
def test_a_stream_of_the_last_used_connection_or_the_longest_unused_connection(order: Any, shared: bool) -> None:
    board = Board(max_size=3, order=order)
    unused = idle(board, capacity=2)
    used = board.open(capacity=2)
    used.state, used.leases = IN_USE, 1
    board.service.place(used, NOW)
    assert board.service.take_for(board.request(), NOW) is (used if shared else unused)


def test_a_retired_connection_gives_no_further_streams() -> None:
    board = Board(max_size=3)
    used = board.open(capacity=2)
    used.state, used.leases = IN_USE, 1
    board.service.place(used, NOW)
    used.retire()
    assert board.service.take_for(board.request(), NOW) is None
    assert not board.only.spare


def test_within_the_barging_window_a_waiter_is_woken_to_look_itself() -> None:
    board = Board(max_size=2, barging_window=1.0)
    request = queued(board)
    made = board.open()
    board.service.place(made, NOW + 0.5)
    assert request.outcome is None
    assert request.rechecking
    assert made.state is IDLE
    assert board.done() == [Do.WAKE]
    board.service.serve_waiting(board.only, NOW + 0.5)
    assert request.outcome is None, "it looks itself, unless a newcomer is faster"
    request.rechecking = False
    board.service.serve_waiting(board.only, NOW + 0.5)
    assert request.outcome is made


@pytest.mark.parametrize("why", ["expired", "old generation", "too many", "closed"])
def test_a_returned_connection_that_must_be_closed_is_closed_although_a_caller_waits(why: str) -> None:
    board = Board(max_size=1)
    made = board.open()
    request = queued(board)
    if why == "expired":
        made.expires = NOW
    elif why == "old generation":
        made.retire()
    elif why == "too many":
        board.open()
    else:
        board.phase = Phase.DRAINING
    board.service.place(made, NOW)
    assert made.state is CLOSING
    assert request.outcome is None


def test_a_returned_connection_gives_way_to_a_pool_below_its_share() -> None:
    ledger = BudgetLedger(2)
    mine, theirs = (Account(ledger, 0, 1.0, lambda: None) for _ in range(2))
    ledger.open(mine)
    ledger.open(theirs)
    mine.held = 2
    assert not theirs.take(1, 1)
    board = Board(max_size=2, account=mine)
    board.capacity.sharing_needed = True
    request = queued(board)
    made = board.open()
    board.service.place(made, NOW)
    assert made.state is CLOSING
    assert request.outcome is None
    assert mine.leaving == 1


def test_a_suspended_pool_keeps_what_comes_back() -> None:
    board = Board(max_size=1)
    request = queued(board)
    board.suspended = True
    made = board.open()
    board.service.place(made, NOW)
    assert made.state is IDLE
    board.service.serve_waiting(board.only, NOW)
    assert request.outcome is None


def test_one_too_many_is_closed() -> None:
    board = Board(max_size=3, max_idle=1)
    idle(board)
    surplus = board.open()
    board.service.place(surplus, NOW)
    assert surplus.state is CLOSING


def test_newcomers_beyond_max_waiting_are_refused_but_not_those_whose_connection_is_coming() -> None:
    board = Board(max_size=3, max_waiting=1)
    first, second = queued(board), queued(board)
    board.newcomers.extend([first, second])
    board.only.connecting = 1
    refuse_some(board, board.service, NOW)
    assert second.outcome is None
    board.only.connecting = 0
    board.newcomers.append(second)
    refuse_some(board, board.service, NOW)
    assert isinstance(second.outcome, PoolBusy)
    assert list(board.only.requests) == [first]


def test_why_callers_are_refused() -> None:
    board = Board()
    assert board.service.refusal() is None
    board.suspended = True
    assert board.service.refusal() is None, "they wait"
    board.fail_fast = True
    assert isinstance(board.service.refusal(), PoolSuspended)
    board.phase = Phase.CLOSED
    assert isinstance(board.service.refusal(), PoolClosed)


def test_after_a_failed_check_the_caller_is_served_again_before_the_others() -> None:
    board = Board(max_size=3, features=Features(checks=True))
    dead = idle(board)
    request = board.request()
    board.service.take_for(request, NOW + board.window)
    other = queued(board)
    board.service.checked(dead, request, OSError("dead"), NOW + board.window, asked=True)
    assert dead.state is CLOSING
    assert list(board.only.requests) == [request, other]
    assert board.slots.counts.failed_checks == 1


def test_a_dead_connection_casts_doubt_on_those_beside_it() -> None:
    board = Board(max_size=3, features=Features(checks=True))
    beside = idle(board)
    board.service.distrust_idle(board.only, NOW)
    assert beside.fresh_until == 0.0
    assert board.sweep_at == NOW
    board.service.distrust_idle(board.only, NOW, drop=True)
    assert beside.state is CLOSING


def test_each_waiting_caller_gets_its_own_error() -> None:
    board = Board(max_size=1)
    requests = [queued(board), queued(board)]
    board.service.fail(board.only, lambda: PoolClosed("closed"))
    errors = [request.outcome for request in requests]
    assert all(isinstance(error, PoolClosed) for error in errors)
    assert errors[0] is not errors[1]
