"""When a connection is opened, and what follows: the opener alone, in virtual time."""

from __future__ import annotations

from contextvars import ContextVar

import pytest

from poolkit import BackoffConfig, ConnectFailed, ConnectTimeout, Verdict
from poolkit._core.effects import Do
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.slots import CLOSED, CLOSING, CONNECTING, IDLE, IN_USE, Slot
from poolkit._core.state import Features
from poolkit.events import EventKind
from tests.core.kit import Board, Request

NOW = 1000.0


def queued(board: Board, number: int = 1) -> list[Request]:
    requests = [board.request() for _ in range(number)]
    for request in requests:
        board.service.enqueue(request, NOW)
    return requests


def open_one(board: Board) -> Slot:
    board.opener.open_for(board.only, NOW)
    return board.slots.living()[-1]


def test_as_many_connections_are_wanted_as_callers_wait_for_none() -> None:
    board = Board(max_size=8)
    queued(board, 3)
    assert board.opener.wanted(board.only, NOW) == 3
    open_one(board)
    assert board.opener.wanted(board.only, NOW) == 2
    assert board.done()[-1] is Do.CONNECT


def test_nothing_is_opened_while_the_pool_is_suspended() -> None:
    board = Board(max_size=8, min_size=2)
    queued(board)
    board.suspended = True
    assert board.opener.wanted(board.only, NOW) == 0
    board.opener.keep_minimum(board.only, NOW)
    assert not board.slots.all


def test_an_idle_connection_for_which_the_oldest_was_woken_counts() -> None:
    board = Board(max_size=8, barging_window=1.0)
    queued(board)
    board.service.place(board.open(), NOW)
    assert board.opener.wanted(board.only, NOW) == 0


def test_no_more_than_max_connecting_at_a_time() -> None:
    board = Board(max_size=8, max_connecting=1)
    queued(board, 2)
    assert board.opener.may_open(board.only, NOW)
    open_one(board)
    assert not board.opener.may_open(board.only, NOW)


def test_the_limit_comes_before_the_budget() -> None:
    account = Account(BudgetLedger(8), 0, 1.0, lambda: None)
    account.ledger.open(account)
    board = Board(max_size=1, account=account)
    queued(board, 2)
    assert board.opener.permit(board.only, 0, 2, NOW)
    open_one(board)
    assert not board.opener.permit(board.only, 0, 2, NOW)
    assert not board.opener.spare_permit()
    assert account.held == 1, "no permit is taken that cannot be used"


def test_callers_that_share_a_connect_that_is_late_get_another_one() -> None:
    board = Board(max_size=4)
    board.only.streams = 10
    queued(board, 3)
    open_one(board)
    assert board.opener.wanted(board.only, NOW) == 0
    [late] = board.ticks
    assert board.opener.wanted(board.only, late) == 1


def test_a_connect_in_its_caller_is_that_callers() -> None:
    board = Board(max_size=4, connect_in_caller=True)
    first, second = queued(board, 2)
    made = open_one(board)
    assert first.outcome is made
    assert made.state is CONNECTING
    assert board.done() == [Do.WAKE]
    assert board.opener.connected(made, object(), 1, NOW, keep=True)
    assert (made.state, made.leases) == (IN_USE, 1)
    assert second.outcome is None


def test_a_connection_of_an_older_generation_is_not_even_its_makers() -> None:
    board = Board(max_size=4, connect_in_caller=True)
    queued(board)
    made = open_one(board)
    board.endpoints.clear(board.only, NOW)
    assert not board.opener.connected(made, object(), 1, NOW, keep=True)
    assert made in board.returned


def test_the_minimum_is_kept_within_the_limit() -> None:
    board = Board(max_size=3, min_size=2)
    board.started = False
    board.opener.keep_minimum(board.only, NOW)
    assert not board.slots.all, "nothing before the pool is used"
    board.started = True
    board.opener.keep_minimum(board.only, NOW)
    assert board.done() == [Do.CONNECT, Do.CONNECT]
    board.opener.keep_minimum(board.only, NOW)
    assert board.done() == []


def test_a_successor_takes_the_place_of_an_idle_connection() -> None:
    board = Board(max_size=3)
    old = board.open()
    board.service.place(old, NOW)
    made = open_one(board)
    made.replaced = old
    board.opener.connected(made, object(), 1, NOW)
    assert old.state is CLOSING


def test_a_successor_that_could_not_be_opened_is_tried_again() -> None:
    board = Board(max_size=3)
    old = board.open()
    old.rotating = True
    made = open_one(board)
    made.replaced = old
    board.opener.connect_failed(made, OSError("refused"), Verdict.SUSPECT, NOW, lingers=False)
    assert not old.rotating
    assert board.sweep_at >= NOW


def test_after_a_failure_the_permit_is_free_and_the_next_attempt_waits_for_the_backoff() -> None:
    board = Board(max_size=1, backoff=BackoffConfig(base=1.0, cap=8.0))
    queued(board)
    made = open_one(board)
    board.opener.connect_failed(made, OSError("refused"), Verdict.SUSPECT, NOW, lingers=False)
    assert made.state is CLOSED
    assert not board.slots.all
    assert board.opener.wanted(board.only, NOW) == 0
    assert board.ticks == [NOW + 1.0]  # so settle(), which follows each step, is called again at that time
    assert board.opener.wanted(board.only, NOW + 1.0) == 1
    assert board.last_failed is board.only
    assert EventKind.CONNECT_FAILED in board.told


def test_what_a_failed_connect_has_left_at_the_server_keeps_its_permit() -> None:
    board = Board(max_size=1)
    queued(board)
    made = open_one(board)
    board.opener.connect_failed(made, OSError("refused"), Verdict.SUSPECT, NOW, lingers=True)
    assert made.state is CLOSING
    assert len(board.slots.all) == 1


def test_callers_with_nothing_to_hope_for_are_told() -> None:
    board = Board(max_size=1)
    [request] = queued(board)
    board.opener.connect_failed(open_one(board), OSError("no such host"), Verdict.FATAL, NOW, lingers=False)
    assert isinstance(request.outcome, ConnectFailed)
    assert request.outcome.fatal


def test_a_timeout_of_the_driver_is_one_of_the_pool() -> None:
    board = Board(max_size=1, connect_timeout=5.0)
    board.opener.connect_failed(open_one(board), TimeoutError("slow"), Verdict.SUSPECT, NOW, lingers=False)
    assert isinstance(board.only.dialer.last_error, ConnectTimeout)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("refused")], ids=["interrupted", "refused"])
def test_a_caller_that_is_interrupted_says_nothing_about_the_server(error: BaseException) -> None:
    board = Board(max_size=1, connect_in_caller=True)
    queued(board)
    board.opener.connect_failed(open_one(board), error, Verdict.SUSPECT, NOW, lingers=False)
    assert (board.last_failed is None) is isinstance(error, KeyboardInterrupt)


def test_the_capacity_of_a_connection_may_change_and_end() -> None:
    board = Board(max_size=1)
    made = board.open()
    made.state, made.leases = IN_USE, 1
    board.opener.set_capacity(made, 5, NOW)
    assert (made.capacity, board.only.streams) == (5, 5)
    assert made in board.returned, "its streams are for those who wait"
    board.opener.set_capacity(made, 0, NOW)
    assert board.slots.retire_reason(made, NOW) is not None
    assert made.state is not IDLE


REPORTS = Features(reports_errors=True)


def fail(board: Board, slot: Slot) -> None:
    board.opener.connect_failed(slot, OSError("refused"), Verdict.SUSPECT, NOW, lingers=False)


def test_callers_that_no_connection_can_serve_each_get_the_error_of_the_failed_connect() -> None:
    board = Board(features=REPORTS, max_size=4)
    first, second = queued(board, 2)
    fail(board, open_one(board))
    assert isinstance(first.outcome, ConnectFailed)
    assert isinstance(second.outcome, ConnectFailed)
    assert first.outcome is not second.outcome, "one error for two callers"
    assert first.outcome.__cause__ is second.outcome.__cause__


def test_callers_wait_for_the_connect_that_is_still_going_on() -> None:
    board = Board(features=REPORTS, max_size=4)
    first, second = queued(board, 2)
    one, other = open_one(board), open_one(board)
    fail(board, one)
    assert first.outcome is second.outcome is None
    fail(board, other)
    assert isinstance(first.outcome, ConnectFailed)
    assert isinstance(second.outcome, ConnectFailed)


@pytest.mark.parametrize("state", ["in use by another caller", "in use by the caller", "idle"])
def test_callers_wait_for_a_connection_that_can_come_back_to_them(state: str) -> None:
    board = Board(features=REPORTS, max_size=4)
    held = board.open()
    [request] = queued(board)
    if state == "idle":
        board.service.put_idle(held)
    else:
        board.service.begin_lease(held, board.request())
        held.holder = "another" if state == "in use by another caller" else request.holder
    fail(board, open_one(board))
    assert (request.outcome is None) is (state != "in use by the caller")


def test_a_caller_that_comes_during_the_backoff_waits_for_the_next_attempt() -> None:
    board = Board(features=REPORTS, max_size=4)
    queued(board)
    fail(board, open_one(board))
    [request] = queued(board)
    assert board.opener.wanted(board.only, NOW) == 0
    assert request.outcome is None
    assert board.opener.wanted(board.only, board.only.dialer.retry_at) == 1


def test_each_connect_is_in_the_context_of_the_caller_that_it_is_for() -> None:
    board = Board(max_size=4)
    whose: ContextVar[int] = ContextVar("whose")
    for number in range(2):
        whose.set(number)
        queued(board)
    open_one(board)
    open_one(board)
    contexts = [effect.request.context for effect in board.effects if effect.do is Do.CONNECT and effect.request]
    assert [context[whose] for context in contexts if context] == [0, 1]
