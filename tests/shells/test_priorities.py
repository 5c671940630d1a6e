"""Classes of callers in threads and tasks: reserved connections, weights, limits, and their messages."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import poolkit
from poolkit import (
    AcquireTimeout,
    AsyncPool,
    Cause,
    ClassConfig,
    ConfigError,
    Pool,
    PoolConfig,
    PoolConfigWarning,
    UsageError,
    priority,
)
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.shells.kit import Outcome, Rig, attempt
from tests.support.waiting import leak_warning

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]

USUAL = {"health": ClassConfig(reserved=1), "web": ClassConfig(weight=4), "bulk": ClassConfig(limit=2)}


async def test_a_health_check_is_served_at_once_while_bulk_work_waits(make: Make) -> None:
    async with make(max_size=3, classes=USUAL) as rig, anyio.create_task_group() as group:
        with priority("bulk"):
            held = [await rig.lease() for _ in range(2)]
            late = Outcome()
            group.start_soon(attempt, rig, late)
            await rig.queued(1)
        with priority("health"):
            check = await rig.lease(timeout=0.5)
        assert not late.done
        assert rig.stats.classes["bulk"].waiting == 1
        for lease in [*held, check]:
            await rig.give(lease)
        await rig.until(lambda: late.done, "the bulk work goes on")
        await rig.give(late.lease)


async def test_who_waits_is_served_by_weight_and_in_order_within_its_class(make: Make) -> None:
    classes = {"web": ClassConfig(weight=3), "bulk": ClassConfig()}
    async with make(max_size=1, classes=classes) as rig, anyio.create_task_group() as group:
        held = await rig.lease()
        order: list[tuple[str, int]] = []

        async def work(name: str, number: int) -> None:
            lease = await rig.lease()
            order.append((name, number))
            await rig.give(lease)

        for number in range(6):
            for name in ("bulk", "web"):
                with priority(name):
                    group.start_soon(work, name, number)
                await rig.queued(2 * number + (1 if name == "bulk" else 2))
        await rig.give(held)
        await rig.until(lambda: len(order) == 12, "all are served")
        for name in ("web", "bulk"):
            assert [number for one, number in order if one == name] == list(range(6)), "not in order of arrival"
        assert sum(name == "web" for name, _ in order[:8]) in (5, 6), order


async def test_a_timeout_names_the_class_and_what_it_is_entitled_to(make: Make) -> None:
    async with make(max_size=4, classes=USUAL, name="orders-db") as rig:
        with priority("bulk"):
            held = [await rig.lease() for _ in range(2)]
            with pytest.raises(AcquireTimeout) as caught:
                await rig.lease(timeout=0.01)
        error = caught.value
        assert error.caller_class == "bulk"
        assert "class 'bulk': 2 in use of at most 2 (weight 1 of 7)" in str(error)
        assert "diagnosis: class limit" in str(error)
        assert "0 ahead of you" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (again.caller_class, str(again)) == ("bulk", str(error))
        assert rig.stats.classes["bulk"].timeouts == 1
        assert rig.stats.classes["web"].timeouts == 0
        for lease in held:
            await rig.give(lease)


async def test_statistics_and_explanations_tell_the_classes_apart(make: Make) -> None:
    async with make(max_size=4, classes=USUAL) as rig, anyio.create_task_group() as group:
        leases = []
        for name in ("bulk", "bulk", "web", "health", None):
            with priority(name):
                if name is not None:
                    leases.append(await rig.lease())
        late = Outcome()
        with priority("bulk"):
            group.start_soon(attempt, rig, late)
        await rig.queued(1)
        found = {name: (one.in_use, one.waiting, one.most) for name, one in rig.stats.classes.items()}
        assert found == {"health": (1, 0, 4), "web": (1, 0, 3), "bulk": (2, 1, 2), "default": (0, 0, 3)}
        assert rig.stats.classes["bulk"].acquires == 2
        assert "class 'bulk' 2/2, 1 waiting" in rig.pool.explain()
        assert "of class 'bulk'" in rig.pool.dump()
        for lease in leases:
            await rig.give(lease)
        await rig.until(lambda: late.done, "it is served")
        await rig.give(late.lease)
        assert {name: one.in_use for name, one in rig.stats.classes.items()} == dict.fromkeys(found, 0)


async def test_an_unknown_class_is_one_clear_error_and_changes_nothing(make: Make) -> None:
    async with make(max_size=2, classes=USUAL, name="orders-db") as rig:
        with priority("helth"), pytest.raises(ConfigError, match=r"orders-db: priority\('helth'\): .*mean 'health'"):
            await rig.lease()
        await rig.give(await rig.lease())


async def test_a_pool_without_classes_takes_no_notice(make: Make) -> None:
    async with make(max_size=1) as rig:
        with priority("whatever"):
            await rig.give(await rig.lease())
        assert rig.stats.classes == {}


async def test_the_innermost_block_counts_and_none_is_the_default(make: Make) -> None:
    async with make(max_size=3, classes=USUAL, default_class="web") as rig:

        async def served_as() -> str:
            lease = await rig.lease()
            [name] = [name for name, one in rig.stats.classes.items() if one.in_use]
            await rig.give(lease)
            return name

        assert await served_as() == "web"
        with priority("bulk"):
            assert await served_as() == "bulk"
            with priority("health"):
                assert await served_as() == "health"
                with priority(None):
                    assert await served_as() == "web"
            assert await served_as() == "bulk"
        assert await served_as() == "web"


async def test_one_block_may_be_entered_again_inside_itself(make: Make) -> None:
    async with make(max_size=2, classes=USUAL) as rig:
        bulk = priority("bulk")
        with bulk:
            with bulk, priority("web"):
                pass
            lease = await rig.lease()
        assert rig.stats.classes["bulk"].in_use == 1
        await rig.give(lease)


async def test_classes_are_changed_in_a_live_pool(make: Make) -> None:
    async with make(max_size=3, classes=USUAL) as rig, anyio.create_task_group() as group:
        with priority("bulk"):
            held = [await rig.lease() for _ in range(2)]
            late = Outcome()
            group.start_soon(attempt, rig, late)
            await rig.queued(1)
        rig.pool.reconfigure(classes={"bulk": ClassConfig()})
        await rig.until(lambda: late.done, "the limit is gone")
        with pytest.raises(ConfigError, match="3 connections are reserved"):
            rig.pool.reconfigure(classes={"bulk": ClassConfig(reserved=3)})
        rig.pool.reconfigure(classes=None)
        for lease in [*held, late.lease]:
            await rig.give(lease)
        assert rig.stats.classes == {}
        rig.pool.reconfigure(classes=USUAL)
        with priority("health"):
            await rig.give(await rig.lease())


async def test_suspended_and_cleared_pools_keep_the_classes_apart(make: Make) -> None:
    async with make(max_size=2, classes={"health": ClassConfig(reserved=1)}) as rig, anyio.create_task_group() as group:
        held = await rig.lease()
        rig.pool.suspend()
        waiting = {name: Outcome() for name in ("default", "health")}
        for number, (name, outcome) in enumerate(waiting.items(), 1):
            with priority(name):
                group.start_soon(attempt, rig, outcome)
            await rig.queued(number)
        rig.pool.clear()
        rig.pool.resume()
        await rig.until(lambda: waiting["health"].done, "the reserve is there at once")
        assert not waiting["default"].done
        await rig.give(held)
        await rig.until(lambda: waiting["default"].done, "the other follows")
        for outcome in waiting.values():
            await rig.give(outcome.lease)


async def test_a_dropped_lease_gives_the_place_of_its_class_back(make: Make) -> None:
    async with make(max_size=3, classes=USUAL) as rig:
        with priority("bulk"):
            leases = [await rig.lease() for _ in range(2)]
            with leak_warning("dropped"):
                leases.pop()
                third = await rig.lease()
            await rig.give(third)
            await rig.give(leases.pop())


async def test_a_detached_connection_counts_for_no_class(make: Make) -> None:
    async with make(max_size=3, classes=USUAL) as rig:
        with priority("bulk"):
            connection = await rig.acquire()
            rig.pool.detach(connection)
            assert rig.stats.classes["bulk"].in_use == 0
        rig.connector.abort(connection)


def test_a_thread_begins_without_a_class_and_a_copied_context_takes_it_along() -> None:
    with Pool(FakeConnector(), max_size=3, classes=USUAL) as pool:

        def work() -> None:
            with pool.lease():
                found.append([name for name, one in pool.stats().classes.items() if one.in_use])

        found: list[list[str]] = []
        with priority("bulk"):
            context = contextvars.copy_context()
            for target in (work, lambda: context.run(work)):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()
        assert found == [["default"], ["bulk"]]


def test_tasks_inherit_the_class_of_whoever_starts_them_and_keep_their_own() -> None:
    async def main() -> None:
        async with AsyncPool(AsyncFakeConnector(), max_size=4, classes=USUAL) as pool:

            async def work(name: str | None) -> str:
                if name is None:
                    lease = await pool.lease()
                else:
                    with priority(name):
                        await asyncio.sleep(0)
                        lease = await pool.lease()
                slot: Any = lease._record
                await lease.close()
                return str(slot)

            with priority("web"):
                tasks = [asyncio.create_task(work(name)) for name in (None, "bulk", "health", None)]
            await asyncio.gather(*tasks)
            counted = {name: one.acquires for name, one in pool.stats().classes.items()}
            assert counted == {"health": 1, "web": 2, "bulk": 1, "default": 0}

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_with_all_places_free() -> None:
    pool = Pool(FakeConnector(), max_size=2, classes={"bulk": ClassConfig(limit=1)})
    with priority("bulk"):
        lease = pool.lease()
        child = os.fork()
        if child == 0:
            try:
                with pool.lease(timeout=5):
                    os._exit(0 if pool.stats().classes["bulk"].in_use == 1 else 2)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lease.close()
    pool.check_books()
    pool.close()


def test_what_cannot_be_meant_is_refused_with_the_reason() -> None:
    for settings, words in (
        ({"classes": {}}, r"classes=\{\}: must be a ClassConfig for each name"),
        ({"classes": {"bulk": 3}}, r"classes=\{'bulk': 3\}: must be a name and its ClassConfig"),
        ({"classes": {"bulk": ClassConfig()}, "default_class": "bulky"}, "default_class='bulky': .*mean 'bulk'"),
        (
            {"classes": {"a": ClassConfig(reserved=2), "b": ClassConfig(reserved=2)}, "max_size": 4},
            "fewer than max_size",
        ),
        (
            {"classes": {"a": ClassConfig(reserved=1)}, "max_size": None},
            "reserved connections need a pool with max_size",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            PoolConfig(**settings)  # type: ignore[arg-type]
    for one, words in (
        ({"reserved": -1}, "reserved=-1: must be a whole number"),
        ({"weight": 0}, "weight=0: must be a number above 0"),
        ({"limit": 0}, "limit=0: must be a whole number, 1 or more"),
        ({"reserved": 3, "limit": 2}, r"reserved=3: must be at most limit \(2\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            ClassConfig(**one)  # type: ignore[arg-type]
    for name in ("", 3):
        with pytest.raises(UsageError, match="must be the name of a class of callers"):
            priority(name)  # type: ignore[arg-type]


def test_settings_without_effect_are_warned_about() -> None:
    with pytest.warns(PoolConfigWarning, match="default_class='bulk' has no effect without classes"):
        PoolConfig(default_class="bulk").warn()
    with pytest.warns(PoolConfigWarning, match="barging_window=0.01 has no effect with classes"):
        PoolConfig(classes=USUAL, barging_window=0.01).warn()


def test_classes_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pools.toml"
    file.write_text(
        '[orders-db]\nmax_size = 5\ndefault_class = "web"\n[orders-db.classes]\n'
        "health = {reserved = 1}\nweb = {weight = 4}\nbulk = {limit = 2}\n"
    )
    config = poolkit.load("orders-db", file=file)
    assert config.classes == USUAL
    assert config.default_class == "web"
    file.write_text("[orders-db.classes]\nbulk = {wait = 1}\n")
    with pytest.raises(ConfigError, match=r"classes.bulk.wait=1.*did you mean"):
        poolkit.load("orders-db", file=file)


def test_a_config_does_not_change_with_the_mapping_it_was_made_from() -> None:
    mine = {"bulk": ClassConfig(limit=1)}
    config = PoolConfig(classes=mine)
    mine["web"] = ClassConfig()
    assert config.classes == {"bulk": ClassConfig(limit=1)}
    assert hash(config) == hash(PoolConfig(classes={"bulk": ClassConfig(limit=1)}))


def test_the_diagnosis_tells_a_class_limit_from_a_pool_that_is_used_up() -> None:
    with Pool(FakeConnector(), max_size=3, classes=USUAL) as pool:
        with priority("bulk"):
            held = [pool.lease(), pool.lease()]
            with pytest.raises(AcquireTimeout, match="class limit: the rest is kept for other classes of callers"):
                pool.lease(timeout=0.01)
        with priority("health"):
            held.append(pool.lease())
        with pytest.raises(AcquireTimeout, match="diagnosis: self-deadlock"):
            pool.lease(timeout=0.01)
        for lease in held:
            lease.close()
    assert Cause.CLASS_LIMIT.value == "class limit"
