"""A connection that an adapter replaces in place: backoff, breaker, counts, and its successor."""

from __future__ import annotations

from typing import Any

from poolkit import BackoffConfig, BreakerConfig
from poolkit._core import commands
from poolkit._core.slots import IN_USE
from poolkit.connector import Verdict
from poolkit.errors import CircuitOpen, ConnectFailed
from poolkit.events import CloseReason, EventKind
from tests.core.kit import Board, Slot

NOW = 1000.0


def leased(board: Any) -> Slot:
    made: Slot = board.open()
    made.leases = 1
    made.move(IN_USE)
    return made


def fail(board: Any, slot: Slot, at: float, verdict: Verdict = Verdict.SUSPECT) -> None:
    commands.replace_failed(board, slot, OSError("refused"), verdict, at - 0.5, at)


def test_a_failed_connect_counts_and_the_next_one_waits_for_the_backoff() -> None:
    board: Any = Board(max_size=3, backoff=BackoffConfig(base=1.0, cap=8.0))
    slot = leased(board)
    assert commands.may_replace(board, board.only, NOW) == 0.0
    fail(board, slot, NOW)
    assert board.counts.connect_errors == 1
    assert board.told[-1] is EventKind.CONNECT_FAILED
    assert commands.may_replace(board, board.only, NOW + 0.25) == 0.75
    assert not board.opener.may_open(board.only, NOW + 0.25), "nor does the engine connect"
    assert commands.may_replace(board, board.only, NOW + 1.0) == 0.0


def test_after_a_failure_one_connect_at_a_time_tries_the_server() -> None:
    board: Any = Board(max_size=3, backoff=BackoffConfig(base=1.0, cap=8.0))
    slot = leased(board)
    fail(board, slot, NOW)
    assert commands.may_replace(board, board.only, NOW + 1.0) == 0.0
    assert commands.may_replace(board, board.only, NOW + 1.25) == 0.75, "the other caller waits for the one that tries"
    assert not board.opener.may_open(board.only, NOW + 1.25)
    commands.replaced(board, slot, NOW + 1.0, NOW + 1.5)
    assert commands.may_replace(board, board.only, NOW + 1.5) == 0.0, "the server answers again"


def test_the_breaker_counts_its_failures_and_a_success_closes_it() -> None:
    board: Any = Board(max_size=3, breaker=BreakerConfig(failure_threshold=1, reset_timeout=10.0))
    slot = leased(board)
    fail(board, slot, NOW)
    assert board.told[-1] is EventKind.BREAKER_OPENED
    error = commands.may_replace(board, board.only, NOW + 1.0)
    assert isinstance(error, CircuitOpen)
    assert isinstance(error.__cause__, OSError)
    assert commands.may_replace(board, board.only, NOW + 10.0) == 0.0, "the probe"
    assert commands.may_replace(board, board.only, NOW + 10.0) != 0.0, "there is one probe"
    commands.replaced(board, slot, NOW + 10.0, NOW + 10.5)
    assert EventKind.BREAKER_CLOSED in board.told
    assert commands.may_replace(board, board.only, NOW + 10.5) == 0.0


def test_a_failure_that_no_retry_repairs_is_the_error_of_the_next_caller_too() -> None:
    board: Any = Board(max_size=3, backoff=BackoffConfig(base=1.0, cap=8.0))
    fail(board, leased(board), NOW, Verdict.FATAL)
    assert isinstance(commands.may_replace(board, board.only, NOW + 0.5), ConnectFailed)


def test_the_error_that_is_kept_holds_no_frames_of_the_caller() -> None:
    board: Any = Board(max_size=3)
    slot = leased(board)
    try:
        raise OSError("refused")
    except OSError as error:
        commands.replace_failed(board, slot, error, Verdict.SUSPECT, NOW - 0.5, NOW)
    assert str(board.only.dialer.last_error) == "refused"
    assert board.only.dialer.last_error.__traceback__ is None


def test_the_new_connection_is_not_replaced_by_the_successor_of_the_old_one() -> None:
    """And it gets a successor of its own when it expires."""
    board: Any = Board(max_size=3)
    slot = leased(board)
    slot.rotating = True
    successor: Slot = board.slots.open(board.only, slot.purpose, NOW)
    successor.replaced = slot
    commands.replaced(board, slot, NOW, NOW + 1.0)
    assert not slot.rotating
    expires = slot.expires
    board.opener.connected(successor, object(), 1, NOW + 2.0)
    assert slot.state is IN_USE
    assert slot.expires == expires > NOW + 2.0
    assert board.counts.closes[CloseReason.EXPIRED] == 0
