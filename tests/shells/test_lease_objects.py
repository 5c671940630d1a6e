"""The object that ``AsyncPool.lease()`` and ``AsyncCluster.lease()`` return."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, AsyncPool, UsageError
from poolkit.cluster import AsyncCluster
from poolkit.testing import AsyncFakeConnector
from tests.shells.kit import ASYNC
from tests.support.waiting import until_async


@ASYNC
@pytest.mark.anyio
@pytest.mark.parametrize("clustered", [False, True])
async def test_one_lease_object_serves_one_block_at_a_time(flavour: str, clustered: bool) -> None:
    """Beside or inside another block it is refused, and the first one keeps its connection; afterwards it works."""
    fake = AsyncFakeConnector()
    where: Any = AsyncCluster(lambda _: fake, ["a"]) if clustered else AsyncPool(fake)
    shared = where.lease()
    async with shared as connection:
        with pytest.raises(UsageError, match="already in use by another 'async with'"):
            async with shared:
                pytest.fail("entered twice")
        assert connection in fake.connections
    async with shared as again:
        assert again is connection, "it was returned, not closed"

    release = fake.hold("connect")
    async with anyio.create_task_group() as group:
        entered: list[Any] = []

        async def enter() -> None:
            async with busy as one:
                entered.append(one)

        async with shared:  # the next one has to connect
            busy = where.lease()
            group.start_soon(enter)
            await until_async(lambda: fake.calls["connect"] == 2, "the task waits for its connect")
            with pytest.raises(UsageError, match="already in use"):
                async with busy:
                    pytest.fail("entered while another task waits for it")
            release.set()
            await until_async(lambda: entered, "the task is served")
    await where.close()


@ASYNC
@pytest.mark.anyio
async def test_a_lease_object_whose_acquire_failed_may_be_entered_again(flavour: str) -> None:
    pool = AsyncPool(AsyncFakeConnector(), max_size=1)
    held = await pool.acquire()
    request = pool.lease(0.01)
    with pytest.raises(AcquireTimeout):
        async with request:
            pytest.fail("there is no connection")
    await pool.release(held)
    async with request as connection:
        assert connection is held
    await pool.close()
