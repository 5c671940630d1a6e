"""Overloaded pools: what they report, and how they detect a lease that its holder has given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, ConfigError, Event, EventKind, OverloadConfig, Pool, PoolBusy, PoolConfig, load
from poolkit.testing import FakeConnector
from tests.shells.kit import ASYNC, NO_DEADLINE, Rig
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]

SOON = OverloadConfig(interval=0.001)


async def impatient(rig: Rig, enough: Callable[[], bool], *, hold: float = 0.002, patience: float = 0.01) -> None:
    """Run callers that give up soon and ask again at once, until ``enough()``."""

    async def work() -> None:
        while not enough():
            try:
                lease = await rig.lease(patience)
            except (AcquireTimeout, PoolBusy):
                continue
            await anyio.sleep(hold)
            await rig.give(lease)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(work)


async def test_an_overloaded_pool_says_so_and_says_when_it_is_over(make: Make) -> None:
    told: list[Event] = []
    words: list[str] = []

    async with make(max_size=1, overload=SOON, listeners=[told.append], name="orders") as rig:

        def enough() -> bool:
            stats = rig.pool.stats()
            if stats.overloaded:
                words.extend([rig.pool.explain(), stats.overload_reason, rig.pool.dump()])
            return bool(words)

        with anyio.fail_after(30):
            await impatient(rig, enough)
        assert "; overloaded: " in words[0]
        assert "of the callers that waited gave up, so the newest are served first" in words[0]
        assert words[1].endswith("of the callers that waited gave up")
        assert "overloaded: " in words[2]
        assert rig.stats.overloads >= 1
        await rig.until(lambda: not rig.stats.overloaded, "the overload is over")
        assert "overloaded" not in rig.pool.explain()
        kinds = [event.kind for event in told if event.kind.name.startswith("OVERLOAD_")]
        await rig.until(lambda: told[-1].kind is not EventKind.OVERLOAD_BEGAN, "its end is told")
        assert kinds[0] is EventKind.OVERLOAD_BEGAN
        (began, *_) = [event for event in told if event.kind is EventKind.OVERLOAD_BEGAN]
        assert began.detail is not None
        assert began.detail.endswith("of the callers that waited gave up")


async def test_patient_callers_are_served_in_order_though_the_queue_stands(make: Make) -> None:
    async with make(max_size=1, overload=SOON, barging_window=0.0) as rig:
        first = await rig.lease()
        order: list[int] = []

        async def work(number: int) -> None:
            lease = await rig.lease(NO_DEADLINE)
            order.append(number)
            await rig.give(lease)

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(work, number)
                await rig.queued(number + 1)
            await rig.give(first)
        assert order == list(range(20))
        assert rig.stats.overloads == 0


async def test_the_rule_can_be_switched_off_in_a_live_pool(make: Make) -> None:
    async with make(max_size=1, overload=SOON) as rig:
        with anyio.fail_after(30):
            await impatient(rig, lambda: bool(rig.stats.overloads))
        await rig.call(rig.pool.reconfigure, overload=None)
        assert rig.pool.describe()["overload"].value is None
        assert not rig.stats.overloaded
        before = rig.stats
        with anyio.fail_after(30):
            await impatient(rig, lambda: rig.stats.timeouts > before.timeouts + 60)
        assert rig.stats.overloads == before.overloads


async def test_who_has_waited_too_long_is_refused(make: Make) -> None:
    busy: list[PoolBusy] = []
    config = OverloadConfig(interval=0.001, max_wait=0.005)
    async with make(max_size=1, overload=config, name="orders") as rig:

        async def work() -> None:
            while not busy:
                try:
                    lease = await rig.lease(0.02)
                except PoolBusy as error:
                    busy.append(error)
                except AcquireTimeout:
                    continue
                else:
                    await anyio.sleep(0.002)
                    await rig.give(lease)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(work)
        assert str(busy[0]).startswith("orders: overloaded: refused after 0.")
        assert rig.stats.overloads >= 1


# -- leases that are given up -----------------------------------------------------------------------------------------


def lost(pool: Any) -> float:
    """Return how many callers the pool has counted as given up."""
    evidence = pool._core.endpoint.queue.line_of(None).evidence
    return 0.0 if evidence is None else float(evidence.lost)


@ASYNC
@pytest.mark.parametrize("silent", [False, True], ids=["the lease's own end", "closed by a driver without a reason"])
async def test_a_cancelled_holder_gave_up_and_the_server_is_not_suspected(make: Make, silent: bool) -> None:
    async with make(max_size=3, features={"checks": True}) as rig:
        others = [await rig.lease(), await rig.lease()]
        scope = anyio.CancelScope()
        held = anyio.Event()

        async def hold() -> None:
            with scope:
                if silent:
                    connection = await rig.pool.acquire()
                    try:
                        held.set()
                        await anyio.sleep_forever()
                    finally:
                        rig.pool.release_nowait(connection, discard=True)
                async with rig.pool.lease():
                    held.set()
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            await held.wait()
            waiting = [Waiting(rig), Waiting(rig)]
            for one in waiting:
                group.start_soon(one.run)
            await rig.queued(2)
            await rig.give(others.pop())  # served: otherwise no caller would have left the queue
            await rig.queued(1)
            before = rig.stats
            scope.cancel()
            await rig.queued(0)
            assert lost(rig.pool) == 1.0
            for other in others:
                await rig.give(other)
            await rig.until(lambda: rig.stats.idle, "one is idle")
            again = await rig.lease()
            await rig.give(again)
            assert rig.stats.checks == before.checks == 0, "an idle connection was doubted"
            assert rig.stats.failed_checks == rig.stats.connect_errors == 0
            assert rig.stats.closes["discarded"] == 1
            for one in waiting:
                one.over.set()


class Waiting:
    """A caller that keeps its connection until it is told to end."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.over = anyio.Event()

    async def run(self) -> None:
        lease = await self.rig.lease(NO_DEADLINE)
        await self.over.wait()
        await self.rig.give(lease)


def test_an_interrupted_thread_gave_up_its_lease() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        waiting = threading.Thread(target=lambda: pool.lease(60).close())
        with pytest.raises(KeyboardInterrupt), pool.lease():
            waiting.start()
            until(lambda: pool.stats().waiting == 1, "the other waits")
            raise KeyboardInterrupt
        waiting.join(60)
        assert lost(pool) == 1.0


def test_an_error_of_the_server_is_no_giving_up() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        waiting = threading.Thread(target=lambda: pool.lease(60).close())
        with pytest.raises(ConnectionResetError), pool.lease():
            waiting.start()
            until(lambda: pool.stats().waiting == 1, "the other waits")
            raise ConnectionResetError
        waiting.join(60)
        assert lost(pool) == 0.0


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"give_up_share": 0}, r"overload.give_up_share=0: must be a share, above 0 to below 1"),
        ({"give_up_share": 1}, r"overload.give_up_share=1: must be a share, above 0 to below 1"),
        ({"give_up_share": "some"}, r"overload.give_up_share='some': must be a share"),
        ({"interval": 0}, r"overload.interval=0: must be a time in seconds, above 0"),
        (
            {"max_wait": -1},
            r"overload.max_wait=-1: must be a time in seconds, above 0 \(or None: until its own deadline",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OverloadConfig(**settings)


def test_anything_else_than_its_config_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overload=True: must be an OverloadConfig, or None"):
        PoolConfig(overload=True)  # type: ignore[arg-type]


def test_it_is_on_by_default_and_a_file_or_the_environment_switches_it_off(tmp_path: Path) -> None:
    assert PoolConfig().overload == OverloadConfig()
    file = tmp_path / "pools.toml"
    file.write_text('[orders.overload]\ninterval = 0.5\nmax_wait = "none"\n[other]\noverload = "none"\n')
    assert load("orders", file=file, environ={}).overload == OverloadConfig(interval=0.5)
    assert load("other", file=file, environ={}).overload is None
    assert load("orders", environ={"POOLKIT_ORDERS_OVERLOAD": "none"}).overload is None
    file.write_text("[orders.overload]\nintervall = 0.5\n")
    with pytest.raises(ConfigError, match=r"overload.intervall=0.5: no such setting; did you mean 'interval'"):
        load("orders", file=file, environ={})
