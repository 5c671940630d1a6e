"""Cancel each asynchronous operation of the engine at its 1st, 2nd, ... suspension until it runs to its end.

After each: the cancellation was delivered, the whole capacity is there at once, nobody else's connection was
touched, and the invariants hold.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from poolkit import AsyncPool
from poolkit.testing import AsyncFakeConnector, FakeConnection
from tests.faults.cancelling import by_scope, by_timeout, by_wait_for, natively, natively_twice

SIZE = 3
MOST = 60  # suspensions; no operation of this test should have more
TICK = 0.0005

Act = Callable[[], Awaitable[Any]]


class Stage:
    """A pool before the scene. Another caller holds one connection throughout."""

    pool: AsyncPool[FakeConnection]
    other: FakeConnection

    def __init__(self, world: dict[str, Any]) -> None:
        features = dict(world.get("features", ()))
        self.connector = AsyncFakeConnector(connect=TICK, close=TICK, check=TICK, reset=TICK, **features)
        self.settings: dict[str, Any] = world.get("settings", {})
        self.idle: int = world.get("idle", 0)

    async def begin(self) -> Stage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pool = AsyncPool(self.connector, max_size=SIZE, **self.settings)
        self.other = await self.pool.acquire()
        rest = [await self.pool.acquire() for _ in range(self.idle)]
        for connection in rest:
            await self.pool.release(connection)
        return self

    async def quiet(self) -> None:
        """Wait for the end of the background work."""
        await anyio.sleep(TICK)
        for _ in range(2000):
            stats = self.pool.stats()
            busy = stats.waiting or stats.checking or stats.resetting or stats.closing or stats.connecting
            if not busy and not self.connector.dialling:
                return
            await anyio.sleep(TICK)
        raise AssertionError(f"never quiet: {self.pool.stats()}")

    async def all_is_well(self) -> None:
        pool = self.pool
        await self.quiet()
        pool.check_books()
        assert pool.stats().in_use == 1, f"on lease: {pool._core.leased}"
        assert not self.other.closed, "somebody else's connection was closed"
        got = [await pool.acquire(timeout=5) for _ in range(SIZE - 1)]
        assert len({id(connection) for connection in (self.other, *got)}) == SIZE, "in two hands"
        assert not any(connection.closed or connection.dirty for connection in got)
        assert self.connector.max_live <= SIZE
        for connection in (self.other, *got):
            await pool.release(connection)
        await self.ended()

    async def ended(self) -> None:
        """Close, and check that nothing is left."""
        await self.pool.close()
        await self.quiet()
        self.pool.check_books()
        assert self.pool.stats().size == 0
        assert self.connector.live == 0


WORLDS: dict[str, dict[str, Any]] = {
    "idle": {"idle": 2},
    "connects": {},
    "connects in the caller": {"features": {"in_caller": True}},
    "checked first": {"idle": 2, "settings": {"check_after_idle": 0}},
    "told to listeners": {"settings": {"listeners": [lambda event: None]}},
}


async def _acquire(stage: Stage) -> Act:
    async def act() -> None:
        connection = await stage.pool.acquire(timeout=5)
        stage.pool.release_nowait(connection)

    return act


async def _acquire_when_full(stage: Stage) -> Act:
    """Both other connections are returned while the caller waits."""
    held = [await stage.pool.acquire() for _ in range(SIZE - 1)]

    async def act() -> None:
        for connection in held:
            soon(partial(stage.pool.release_nowait, connection))
        connection = await stage.pool.acquire(timeout=5)
        stage.pool.release_nowait(connection)

    return act


async def _lease(stage: Stage) -> Act:
    async def act() -> None:
        async with stage.pool.lease(timeout=5) as connection:
            connection.dirty = True
            await anyio.sleep(TICK)

    return act


async def _release(stage: Stage) -> Act:
    connection = await stage.pool.acquire()
    connection.dirty = True

    async def act() -> None:
        await stage.pool.release(connection)

    return act


async def _discard(stage: Stage) -> Act:
    connection = await stage.pool.acquire()
    return lambda: stage.pool.release(connection, discard=True)


async def _warm_up(stage: Stage) -> Act:
    return lambda: stage.pool.warm_up(SIZE, timeout=5)


SCENES: dict[str, Callable[[Stage], Awaitable[Act]]] = {
    "acquire": _acquire,
    "acquire when full": _acquire_when_full,
    "lease": _lease,
    "release with a reset": _release,
    "release with a close": _discard,
    "warm_up": _warm_up,
}
ENDS: dict[str, Callable[[AsyncPool[FakeConnection]], Awaitable[Any]]] = {
    "close": lambda pool: pool.close(timeout=5),
    "drain": lambda pool: pool.drain(timeout=0.004),
}


def soon(call: Callable[[], object]) -> None:
    """Run it soon, while the caller is suspended."""
    try:
        asyncio.get_running_loop().call_soon(call)
    except RuntimeError:
        import trio

        trio.lowlevel.current_trio_token().run_sync_soon(call)


ASYNCIO = [natively, natively_twice, by_scope, by_wait_for]
if sys.version_info >= (3, 11):
    ASYNCIO.append(by_timeout)
WAYS = [pytest.param("asyncio", way, id=f"asyncio {way.__name__}") for way in ASYNCIO]
WAYS.append(pytest.param("trio", by_scope, id="trio by_scope"))
Way = Callable[[int, Act], Awaitable[bool]]


def everywhere(backend: str, way: Way, scene: Callable[[int], Awaitable[bool]]) -> int:
    """Return the number of points at which ``scene`` was cancelled."""

    async def main() -> int:
        point = 1
        while await scene(point):
            point += 1
            assert point < MOST, "does not come to its end"
        return point - 1

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize(("backend", "way"), WAYS)
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("world", WORLDS)
def test_cancelled_callers_cost_nothing(world: str, scene: str, backend: str, way: Way) -> None:
    async def play(point: int) -> bool:
        stage = await Stage(WORLDS[world]).begin()
        act = await SCENES[scene](stage)
        more = await way(point, act)
        try:
            await stage.all_is_well()
        except BaseException as error:
            raise AssertionError(f"cancelled at suspension {point}: {error!r}") from error
        return more

    points = everywhere(backend, way, play)
    full = scene == "warm_up" and WORLDS[world].get("idle")
    if not full and scene not in {"release with a close", "acquire"}:  # these may not suspend at all
        assert points, "there was nothing to cancel"


@pytest.mark.parametrize(("backend", "way"), WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_a_cancelled_close_closes(end: str, backend: str, way: Way) -> None:
    async def play(point: int) -> bool:
        stage = await Stage(WORLDS["idle"]).begin()
        more = await way(point, lambda: ENDS[end](stage.pool))
        assert stage.pool.closed
        await stage.pool.release(stage.other)
        await stage.ended()
        return more

    assert everywhere(backend, way, play)
