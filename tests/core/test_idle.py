"""Which idle connection is used next, and which is surplus: the lists alone."""

from __future__ import annotations

from collections import deque

import pytest

from poolkit import PoolConfig
from poolkit._core.capacity import FixedSize
from poolkit._core.endpoints import IdleSlots, KeyedIdleSlots, OneIdleSlots
from poolkit._core.slots import IDLE
from tests.core.kit import Endpoint, Slot, endpoint, request, slot


def idle_at(place: Endpoint, number: int = 1) -> Slot:
    made = slot(number)
    made.endpoint, made.state = place, IDLE
    return made


def lists() -> tuple[list[IdleSlots], Endpoint]:
    place = endpoint()
    one = OneIdleSlots()
    one.only = place
    return [one, KeyedIdleSlots()], place


def size(max_size: int = 8, max_idle: int | None = None) -> FixedSize:
    return FixedSize(PoolConfig(max_size=max_size, max_idle=max_idle))


@pytest.mark.parametrize("which", [0, 1], ids=["one", "keyed"])
def test_the_last_used_or_the_longest_unused_comes_first(which: int) -> None:
    both, place = lists()
    idle = both[which]
    first, second, third = (idle_at(place, number) for number in (1, 2, 3))
    for one in (first, second, third):
        idle.put(one)
    assert len(idle) == 3
    assert idle.take(place, lifo=True) is third
    assert idle.take(place, lifo=False) is first
    assert idle.take_surplus() is second
    assert idle.take(place, lifo=True) is idle.take_surplus() is None
    assert len(idle) == 0


@pytest.mark.parametrize("which", [0, 1], ids=["one", "keyed"])
def test_what_a_sweep_puts_back_keeps_its_order(which: int) -> None:
    both, place = lists()
    idle = both[which]
    slots = [idle_at(place, number) for number in range(4)]
    for one in slots[:3]:
        idle.put(one)
    taken = idle.take_all(place)
    assert taken == slots[:3]
    assert not place.idle
    idle.put(slots[3])  # comes back meanwhile
    idle.remove(taken[1])  # is closed
    idle.put_back(place, [taken[0], taken[2]])
    assert list(place.idle) == [slots[0], slots[2], slots[3]]
    assert [idle.take_surplus() for _ in range(3)] == [slots[0], slots[2], slots[3]]


@pytest.mark.parametrize("which", [0, 1], ids=["one", "keyed"])
def test_one_connection_is_taken_out_wherever_it_stands(which: int) -> None:
    both, place = lists()
    idle = both[which]
    slots = [idle_at(place, number) for number in range(3)]
    for one in slots:
        idle.put(one)
    assert idle.take_out(slots[1])
    assert list(place.idle) == [slots[0], slots[2]]
    assert len(idle) == 2


def test_a_connection_that_another_thread_has_just_taken_is_not_taken_out() -> None:
    place = endpoint()
    assert not OneIdleSlots().take_out(idle_at(place))


def test_with_one_endpoint_no_further_one_may_be_idle_beyond_max_idle() -> None:
    [idle, _], place = lists()
    for number in range(2):
        idle.put(idle_at(place, number))
    assert not idle.full(size())
    assert idle.full(size(max_idle=2))
    assert not idle.full(size(max_size=2, max_idle=2)), "there cannot be more"
    assert idle.make_room(size(max_idle=2)) is None
    assert not idle.too_many(size(max_idle=2))
    assert idle.too_many(size(max_idle=1))
    place.queue.add(request())
    assert not idle.too_many(size(max_idle=1)), "the waiting is told of them"


def test_with_many_endpoints_the_longest_unused_makes_room() -> None:
    idle = KeyedIdleSlots()
    here, there = endpoint(), endpoint()
    first, second, third = idle_at(here), idle_at(there), idle_at(here)
    for one in (first, second, third):
        idle.put(one)
    assert idle.full(size(max_idle=0))
    assert not idle.full(size(max_idle=3))
    assert idle.make_room(size(max_idle=4)) is None
    assert idle.make_room(size(max_idle=3)) is first
    assert list(here.idle) == [third]
    assert idle.too_many(size(max_idle=1))
    there.queue.add(request())
    assert idle.take_surplus() is third, "a waiting takes the other one"


def test_after_an_interruption_the_order_follows_from_the_endpoints() -> None:
    idle = KeyedIdleSlots()
    place = endpoint()
    known, gone, missing = idle_at(place, 1), slot(2), idle_at(place, 3)
    unlisted = idle_at(place, 4)  # its thread was interrupted while it put it back or closed it
    idle.order[known] = idle.order[gone] = idle.order[unlisted] = None
    place.idle = deque([known, missing])
    idle.reorder([place])
    assert list(idle.order) == [known, missing]
