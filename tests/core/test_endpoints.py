"""The pass over the state after each step, with one endpoint and with many, in virtual time and without a pool."""

from __future__ import annotations

import pytest

from poolkit import PoolBusy
from poolkit._core.effects import Do
from poolkit._core.endpoints import KeyedEndpoints, OneEndpoint
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.slots import CLOSING, IDLE, IN_USE
from poolkit._core.state import Features
from tests.core.kit import Board, Request, Slot

NOW = 1000.0
KEYED = Features(keyed=True)


def queued(board: Board, key: str | None = None) -> Request:
    request = board.request(board.endpoints.add(key))
    board.service.enqueue(request, NOW)
    return request


def opened(board: Board) -> list[Slot]:
    effects, board.effects = list(board.effects), type(board.effects)()
    return [effect.slot for effect in effects if effect.do is Do.CONNECT and effect.slot is not None]


def test_the_kind_follows_from_the_features() -> None:
    assert isinstance(Board().endpoints, OneEndpoint)
    assert isinstance(Board(features=KEYED).endpoints, KeyedEndpoints)


@pytest.mark.parametrize("features", [Features(), KEYED], ids=["one", "keyed"])
def test_a_look_opens_hands_over_and_does_nothing_twice(features: Features) -> None:
    board = Board(features=features, max_size=2)
    key = "a" if features.keyed else None
    first, second, third = (queued(board, key) for _ in range(3))
    board.endpoints.settle(NOW)
    made = opened(board)
    assert len(made) == 2
    board.opener.connected(made[0], object(), 1, NOW)
    board.endpoints.settle(NOW)
    assert first.outcome is made[0]
    assert (second.outcome, third.outcome) == (None, None)
    board.done()
    board.endpoints.settle(NOW)
    assert board.done() == []


def test_the_only_endpoint_keeps_the_minimum_and_closes_what_is_too_many() -> None:
    board = Board(max_size=4, min_size=1, max_idle=2)
    board.endpoints.settle(NOW)
    assert len(opened(board)) == 1
    for _ in range(3):
        board.service.place(board.open(), NOW)
    board.size.max_idle = 1
    board.endpoints.settle(NOW)
    assert len(board.only.idle) == 1
    assert board.slots.closing == 2


def test_permits_go_to_the_endpoint_with_the_oldest_waiter() -> None:
    board = Board(features=KEYED, max_size=1)
    for key in ("b", "a"):
        queued(board, key)
    board.endpoints.settle(NOW)
    [made] = opened(board)
    assert made.endpoint.key == "b"


def test_an_idle_connection_of_another_endpoint_gives_way() -> None:
    board = Board(features=KEYED, max_size=1)
    made = board.open(board.endpoints.add("a"))
    board.service.place(made, NOW)
    request = queued(board, "b")
    board.endpoints.settle(NOW)
    assert made.state is CLOSING
    board.endpoints.settle(NOW)
    assert board.slots.closing == 1, "one is enough"
    board.done()
    board.slots.closed(made)
    board.endpoints.settle(NOW)
    [successor] = opened(board)
    assert successor.endpoint is request.endpoint


def test_an_endpoint_without_connections_and_callers_is_forgotten() -> None:
    board = Board(features=KEYED, max_size=1)
    made = board.open(board.endpoints.add("a"))
    made.state = IN_USE
    board.slots.remove(made)
    assert list(board.endpoints.all) == [None]
    for number in range(1000):
        board.endpoints.add(f"{number}")
    assert len(board.endpoints.all) <= 257, "those that were only asked for do not pile up"


def test_clear_retires_one_endpoint() -> None:
    board = Board(features=KEYED, max_size=4)
    here, there = board.endpoints.add("here"), board.endpoints.add("there")
    mine, theirs = board.open(here), board.open(there)
    for one in (mine, theirs):
        board.service.place(one, NOW)
    board.endpoints.clear(here, NOW)
    assert (mine.state, theirs.state) == (CLOSING, IDLE)
    assert (here.generation, there.generation) == (1, 0)


def test_newcomers_are_refused_after_everybody_got_what_there_is() -> None:
    board = Board(max_size=1, max_waiting=0)
    first, second = queued(board), queued(board)
    board.newcomers.extend([first, second])
    board.service.place(board.open(), NOW)
    board.endpoints.settle(NOW)
    assert first.outcome is not None
    assert isinstance(second.outcome, PoolBusy)


@pytest.mark.parametrize("features", [Features(), KEYED], ids=["one", "keyed"])
def test_an_idle_connection_is_closed_for_another_pool_unless_a_caller_waits_for_it(features: Features) -> None:
    ledger = BudgetLedger(2)
    mine, theirs = (Account(ledger, 0, 1.0, lambda: None) for _ in range(2))
    ledger.open(mine)
    ledger.open(theirs)
    board = Board(features=features, max_size=2, account=mine)
    mine.held = 2
    first, second = board.open(), board.open()
    board.service.place(first, NOW)
    board.service.place(second, NOW)
    first.last_used = NOW - 5
    assert board.endpoints.unused_since() == NOW - 5
    assert not theirs.take(1, 1)
    board.capacity.sharing_needed = True
    board.endpoints.settle(NOW)
    assert (first.state, second.state) == (CLOSING, IDLE)
    assert board.done()[-1] is Do.SHARE
    board.suspended = True  # else it would be served
    queued(board)
    assert board.endpoints.longest_unused() is None
    assert board.endpoints.unused_since() is None


def test_after_an_interruption_all_endpoints_are_looked_at() -> None:
    board = Board(features=KEYED, max_size=2)
    request = queued(board, "a")
    board.touched.clear()  # interrupted before it was recorded
    board.endpoints.reorder()
    board.endpoints.settle(NOW)
    assert [one.endpoint for one in opened(board)] == [request.endpoint]
