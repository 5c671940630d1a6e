"""Whether a pool may have one more connection: its own limit, or that of a budget, without pools."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit._core.capacity import OwnLimit, SharedLimit
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.queue import FifoQueue
from poolkit.policies.retire import SETTLED
from tests.core.kit import Slot, request, slot

NOW = 1000.0


class Gate:
    """A gate that the thread may be inside: posted calls wait."""

    def __init__(self) -> None:
        self.held = False
        self.posted: list[tuple[Any, tuple[Any, ...]]] = []

    def step(self, step: Any, *args: Any) -> Any:
        assert not self.held
        return step(*args)

    def post(self, step: Any, *args: Any) -> None:
        self.posted.append((step, args))

    def leave(self) -> None:
        self.held = False
        while self.posted:
            step, args = self.posted.pop(0)
            step(*args)


def account(ledger: BudgetLedger, minimum: int = 0, spare: float | None = None, weight: float = 1.0) -> Account:
    made = Account(ledger, minimum, weight, lambda: spare)
    ledger.open(made)
    return made


def shared(ledger: BudgetLedger, **settings: Any) -> tuple[SharedLimit, Account]:
    made = account(ledger, **settings)
    return SharedLimit(made), made


def waiting(ticket: int) -> FifoQueue:
    queue = FifoQueue()
    queue.add(request(ticket))
    return queue


def idle_since(at: float) -> Slot:
    made = slot()
    made.last_used = at
    return made


def never(at: float) -> None:
    pytest.fail(f"nothing has to be looked at again at {at}")


def test_a_limit_of_its_own_grants_everything_and_yields_nothing() -> None:
    own = OwnLimit()
    assert [own.ticket(), own.ticket()] == [1, 2]
    assert own.take(request(1), 3)
    assert own.take_spare()
    assert own.take_minimum(2)
    assert not own.must_yield(waiting(1))
    assert not own.yield_to_others(NOW, lambda: pytest.fail("nothing has to go"), lambda slot: True, never)
    assert not own.claiming
    assert own.agrees(3, 1)


def test_tickets_count_over_all_pools_of_a_budget() -> None:
    ledger = BudgetLedger(4)
    one, other = shared(ledger)[0], shared(ledger)[0]
    assert [one.ticket(), other.ticket(), one.ticket()] == [1, 2, 3]


def test_a_permit_that_is_not_there_is_claimed_and_the_claim_shrinks_with_the_need() -> None:
    ledger = BudgetLedger(2)
    (one, mine), (other, theirs) = shared(ledger), shared(ledger)
    assert one.take(request(1), 1)
    assert one.take(request(2), 1)
    assert not other.take(request(3), 2)
    assert (theirs.need, other.claiming) == (2, True)
    other.yield_to_others(NOW, lambda: None, lambda slot: True, never)
    assert theirs.need == 2, "it was asked for since the last time"
    other.yield_to_others(NOW, lambda: None, lambda slot: True, never)
    assert (theirs.need, other.claiming) == (0, False), "nobody has asked again"
    assert one.agrees(2, 0)
    one.leave()
    assert one.agrees(2, 1)
    one.give(announced=True)
    assert (mine.held, mine.leaving) == (1, 0)


def test_min_size_comes_after_waiting_callers() -> None:
    ledger = BudgetLedger(2)
    one, mine = shared(ledger)
    assert one.take(request(1), 1)
    assert one.take(request(2), 1)
    assert not one.take(request(3), 1)
    assert not one.take_minimum(5)
    assert mine.need == 1


def test_idle_connections_give_way_longest_unused_first_while_others_are_short() -> None:
    ledger = BudgetLedger(3)
    (one, mine), (other, theirs) = shared(ledger), shared(ledger)
    assert all(one.take(request(ticket), 1) for ticket in (1, 2, 3))
    assert not other.take(request(4), 2)
    one.sharing_needed = True
    spare, evicted = [idle_since(NOW), idle_since(NOW + 1), idle_since(NOW + 2)], []

    def evict(slot: Slot) -> bool:
        evicted.append(slot)
        return True

    assert one.yield_to_others(NOW + 2, lambda: spare[len(evicted)], evict, never)
    assert evicted == spare[:2], "as many as are short"
    assert mine.leaving == 2
    one.give(announced=True)
    assert other.take(request(4), 2)
    assert theirs.held == 1


def test_a_pool_that_has_its_share_gets_only_connections_that_are_not_in_use_every_moment() -> None:
    """Busy pools do not take connections from each other between two leases."""
    ledger = BudgetLedger(4)
    (one, mine), (other, theirs) = shared(ledger), shared(ledger)
    assert all(one.take(request(ticket), 1) for ticket in (1, 2))
    assert all(other.take(request(ticket), 1) for ticket in (3, 4))
    assert not other.take(request(5), 1)
    one.sharing_needed = True
    spare, wanted = idle_since(NOW), []
    one.yield_to_others(NOW + 0.5 * SETTLED, lambda: spare, lambda slot: True, wanted.append)
    assert (mine.leaving, theirs.need) == (0, 1)
    assert wanted == [NOW + SETTLED], "it is looked at again"
    one.yield_to_others(NOW + SETTLED, lambda: spare, lambda slot: True, never)
    assert mine.leaving == 1


def test_a_pool_below_its_share_gets_a_connection_at_once_and_only_for_itself() -> None:
    """A third pool, which has its share, does not get it."""
    ledger = BudgetLedger(6)
    (one, mine), (poor, theirs), (rich, _) = shared(ledger), shared(ledger), shared(ledger)
    assert all(one.take(request(ticket), 1) for ticket in (1, 2, 3))
    assert all(rich.take(request(ticket), 1) for ticket in (4, 5))
    assert poor.take(request(6), 1)
    assert not rich.take(request(7), 1)
    assert not poor.take(request(8), 1)
    one.sharing_needed = True
    wanted: list[float] = []
    one.yield_to_others(NOW, lambda: idle_since(NOW), lambda slot: True, wanted.append)
    assert (mine.leaving, theirs.need) == (1, 1)
    assert wanted == [NOW + SETTLED]


def test_a_connection_that_another_thread_has_just_taken_stays() -> None:
    ledger = BudgetLedger(1)
    (one, mine), (other, _) = shared(ledger), shared(ledger)
    assert one.take(request(1), 1)
    assert not other.take(request(2), 1)
    one.sharing_needed = True
    spare: list[Slot | None] = [idle_since(NOW), None]
    one.yield_to_others(NOW, lambda: spare.pop(0), lambda slot: False, never)
    assert mine.leaving == 0


def test_a_returned_connection_gives_way_only_to_a_pool_below_its_share() -> None:
    ledger = BudgetLedger(2)
    (one, mine), (other, _) = shared(ledger), shared(ledger)
    assert one.take(request(1), 1)
    assert one.take(request(2), 1)
    one.sharing_needed = True
    assert not one.must_yield(waiting(3)), "nobody is short"
    assert not other.take(request(4), 1)
    assert one.must_yield(waiting(3))
    assert not one.must_yield(waiting(3)), "one is enough"
    assert mine.leaving == 1
    assert not one.must_yield(FifoQueue())


def test_a_pool_that_is_shut_reserves_nothing() -> None:
    ledger = BudgetLedger(2)
    one, mine = shared(ledger, minimum=2)
    other, _ = shared(ledger)
    assert not other.take(request(1), 1)
    one.retire()
    assert mine.minimum == 0
    assert other.take(request(1), 1)


def test_after_an_interruption_the_account_has_what_the_pool_has() -> None:
    ledger = BudgetLedger(4)
    one, mine = shared(ledger)
    mine.held, mine.leaving = 3, 2
    assert not one.agrees(1, 0)
    one.correct(1, 0)
    assert one.agrees(1, 0)


def test_a_pool_that_claims_is_not_notified_of_its_own_idle_connection() -> None:
    """It sees the connection in the same step. A message would make it claim again, without end."""
    ledger = BudgetLedger(2)
    one, mine = shared(ledger, spare=NOW)
    assert all(one.take(request(ticket), 1) for ticket in (1, 2))
    mine.sharing_needed = True
    assert not one.take(request(3), 1)
    assert not ledger.messages
    _, theirs = shared(ledger, spare=NOW - 1)
    theirs.held, theirs.sharing_needed = 1, True
    ledger.messages.clear()
    mine.notified = theirs.notified = False
    assert not one.take(request(3), 1)
    assert list(ledger.messages) == [theirs], "another pool is"


def test_a_finalizer_in_the_middle_of_a_step_waits_for_its_end() -> None:
    gate = Gate()
    ledger = BudgetLedger(1, gate)
    mine = account(ledger)
    assert mine.take(1, 1)
    gate.held = True
    mine.give(False)
    assert mine.held == 1
    assert not mine.take(2, 1)
    assert mine.relax(), "it is safer to go on looking at returned connections"
    mine.hear()
    gate.leave()
    assert mine.held == 0
    assert set(ledger.messages) == {mine}, "what could not be asked is asked again"


def test_other_settings_are_refused_before_anything_has_changed() -> None:
    def fits(one: Account, minimum: int) -> None:
        raise ValueError(minimum)

    ledger = BudgetLedger(4, fits=fits)
    mine = account(ledger, minimum=1)
    with pytest.raises(ValueError, match="3"):
        mine.change(3, 2.0)
    assert (mine.minimum, mine.weight) == (1, 1.0)


def test_what_is_reserved_for_a_pool_is_given_up_by_the_others_before_it_asks() -> None:
    ledger = BudgetLedger(3)
    (one, mine), (_, theirs) = shared(ledger), shared(ledger)
    assert all(one.take(request(ticket), 1) for ticket in (1, 2, 3))
    theirs.change(2, 1.0)
    assert ledger.short
    one.sharing_needed = True
    spare = [idle_since(NOW), idle_since(NOW + 1), idle_since(NOW + 2)]
    one.yield_to_others(NOW, lambda: spare.pop(0), lambda slot: True, never)
    assert mine.leaving == 2
    assert not ledger.short
