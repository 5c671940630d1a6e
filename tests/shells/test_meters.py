"""The durations of waits, connects and leases, as a pool reports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import ClassConfig, ConfigError, Pool, PoolConfig, load
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


async def test_waits_and_connects_are_measured_and_the_others_waited_for_nothing(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=1, clock=clock) as rig:
        for _ in range(5):
            await rig.give(await rig.lease())
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            clock.advance(0.3)
            await rig.give(held)
        await rig.give(waiter.lease)
        stats = rig.stats
        assert stats.wait.count == stats.acquires == 7
        assert stats.wait.sum == pytest.approx(0.3)
        assert stats.wait.counts[0] == 6
        assert stats.connect.count == stats.connects == 1
        assert stats.use.count == 0  # not requested
        assert stats.windows[10].mean_use == pytest.approx(0.3 / 7)


@pytest.mark.parametrize("resets", [True, False])
async def test_the_length_of_every_lease_is_measured_when_asked_for(make: Make, resets: bool) -> None:
    clock = ManualClock()
    async with make(max_size=2, clock=clock, use_histogram=True, features={"resets": resets}) as rig:
        for _ in range(600):  # more than are buffered
            lease = await rig.lease()
            clock.advance(0.003)
            await rig.give(lease)
            lease = None
        last = await rig.lease()
        clock.advance(7)
        await rig.give(last, discard=True)
        use = rig.stats.use
        assert use.count == 601
        assert use.sum == pytest.approx(600 * 0.003 + 7)
        rig.pool.reconfigure(use_histogram=False)
        await rig.give(await rig.lease())
        assert rig.stats.use.count == 601


async def test_who_gets_nothing_is_no_wait_but_a_timeout(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        with pytest.raises(TimeoutError):
            await rig.lease(0.01)
        stats = rig.stats
        assert (stats.wait.count, stats.timeouts) == (1, 1)
        assert stats.windows[60].timeouts == 1
        await rig.give(held)


async def test_an_observer_is_called_for_callers_that_did_not_find_an_idle_connection(make: Make) -> None:
    seen: list[tuple[float, BaseException | None]] = []
    async with make(max_size=1, features={"resets": False}) as rig:
        rig.pool.add_wait_observer(lambda pool, seconds, error: seen.append((seconds, error)))
        held = await rig.lease()
        assert len(seen) == 1  # waited for a connect
        await rig.give(held)
        held = await rig.lease()
        assert len(seen) == 1  # found it idle
        with pytest.raises(TimeoutError) as caught:
            await rig.lease(0.01)
        assert seen[1][1] is caught.value
        assert seen[1][0] >= 0.01
        await rig.give(held)


@pytest.mark.parametrize("settings", [
    {"use_histogram": True}, {"leak_after": 60.0}, {"classes": {"bulk": ClassConfig()}, "default_class": "bulk"},
], ids=["histogram", "leaks", "classes"])  # fmt: skip
async def test_the_calls_of_an_observer_do_not_depend_on_the_path_of_an_acquire(
    make: Make, settings: dict[str, Any]
) -> None:
    """With these settings too, an acquire that finds an idle connection at once is not a wait."""
    seen: list[float] = []
    async with make(max_size=1, **settings) as rig:
        rig.pool.add_wait_observer(lambda pool, seconds, error: seen.append(seconds))
        for _ in range(3):
            await rig.give(await rig.lease())
        assert len(seen) == 1, "only the first one waited, for a connect"


async def test_an_observer_that_raises_is_removed_and_callers_do_not_notice(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(pool: object, seconds: float, error: BaseException | None) -> None:
        raise RuntimeError("no")

    async with make(max_size=2) as rig:
        rig.pool.add_wait_observer(bad)
        first, second = await rig.lease(), await rig.lease()
        assert caplog.text.count("wait observer") == 1
        await rig.give(first)
        await rig.give(second)


def test_use_histogram_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="use_histogram='maybe': must be True or False"):
        PoolConfig(use_histogram="maybe")  # type: ignore[arg-type]
    assert load("db", environ={"POOLKIT_DB_USE_HISTOGRAM": "yes"}).use_histogram is True
    assert load("db", environ={"POOLKIT_USE_HISTOGRAM": "0"}).use_histogram is False
    with pytest.raises(ConfigError, match=r"POOLKIT_DB_USE_HISTOGRAM\): must be true or false"):
        load("db", environ={"POOLKIT_DB_USE_HISTOGRAM": "perhaps"})


def test_the_waits_of_many_threads_are_all_counted() -> None:
    import threading

    with Pool(FakeConnector(resets=False), max_size=2, use_histogram=True) as pool:

        def work() -> None:
            for _ in range(200):
                with pool.lease():
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = pool.stats()
        assert stats.acquires == stats.wait.count == stats.use.count == 1600
