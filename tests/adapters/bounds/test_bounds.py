"""The table: each operation of each driver ends, against a peer that takes everything and says nothing.

A second peer says one byte now and then: a limit for each answer, or each read, would hardly ever end that. While the
peer is silent the operation ends, the place in the pool is free and no socket is left that the pool does not count.
Then the peer answers everything that it has taken ("after ten minutes"), which must confuse nobody: both places serve
again. No cell asserts how long anything took.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit.testing.servers import Certificates, HTTPServer, PostgresServer, RedisServer
from tests.adapters.bounds.columns import COLUMNS, NO_COLUMN, SIZE, Column, Servers, run
from tests.adapters.sqlalchemy.servers import sockets_to
from tests.support.resolver import Resolver
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.timeout(240)

ROWS = {
    "connect": "the peer accepts and says nothing",
    "tls": "it agrees to TLS and says nothing in the handshake",
    "names": "the resolver does not answer for its name",
    "prepare": "it falls silent in what the application does with each new connection",
    "check": "the question to an idle connection is not answered, and no other one can be opened",
    "reset": "a connection comes back in a transaction",
    "close": "idle connections are ended in the background",
    "cancel": "a caller is cancelled in the middle of its work",
}
PEERS = {"silent": "it takes everything and says nothing", "dripping": "its answers come byte by byte"}
DRIPPING = ("connect", "prepare", "check", "reset")
"""Rows in which the driver reads an answer."""
FEW = 80
"""Bytes that a dripping peer sends within the limits of a connect: about ten in one attempt. A handshake has more."""
CELLS = [
    (peer, row, column)
    for column in COLUMNS
    for row in ROWS
    for peer in PEERS
    if column.lacks(row) is None and (peer == "silent" or (row in DRIPPING and row not in column.drips))
]


@pytest.fixture(scope="module")
def servers(
    _postgres: PostgresServer,
    _redis_server: RedisServer,
    _http_server: HTTPServer,
    _https_server: HTTPServer,
    certificates: Certificates,
) -> Iterator[Servers]:
    servers = Servers(
        _postgres.start(), _redis_server.start(), _http_server.start(), _https_server.start(), certificates
    )
    yield servers
    servers.stop()


@pytest.fixture
def column(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Column]:
    kind: type[Column] = request.param
    try:
        importlib.import_module(kind.module)
    except ImportError:
        pytest.skip(f"{kind.module} is not installed")
    made = kind(servers)
    yield made
    made.proxy.stop()


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    """SQLAlchemy logs failed closes with their traceback, in which pytest would keep the socket open."""
    caplog.set_level("CRITICAL", logger="sqlalchemy")


async def until(column: Column, condition: Any, what: str) -> None:
    """Wait in the column's runtime."""
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        await column.pause()
    raise AssertionError(f"waited in vain until {what}: {column.engine.explain()}")


async def serve(column: Column) -> None:
    """Check that all slots soon have working connections. A busy machine may miss limits as short as these."""
    for _ in range(20):
        leases: list[Any] = []
        with contextlib.suppress(Exception):
            while len(leases) < SIZE:
                leases.append(await column.take())
        for lease in leases:
            await column.give(lease)
        if len(leases) == SIZE:
            return
    raise AssertionError(f"not all places serve: {column.engine.explain()}")


async def places_are_free(column: Column) -> None:
    """Check that, while the peer is silent, no caller holds a slot and the pool counts every socket."""

    def free() -> bool:
        stats = column.engine.stats()
        return bool(stats.size == stats.idle)

    await until(column, free, "no place is taken")
    if column.collected:
        gc.collect()
    if sys.platform == "linux":
        port = column.proxy.port
        await until(column, lambda: sockets_to(port) <= column.engine.stats().size, "no socket is left")


async def refused(column: Column, what: str) -> None:
    """Check that no connection is available, and that this is known before the peer has sent much."""
    with pytest.raises(Exception):  # noqa: B017  each driver has its own; which one is tested elsewhere
        await column.take()
    await places_are_free(column)
    assert column.proxy.trickled < FEW, f"the limit of the {what} is not one for all of it"


async def in_silence(column: Column, row: str) -> None:
    """Run the operation to its end, with any result."""
    if row == "connect":
        column.fall_silent()
        await refused(column, "connect")
    elif row == "tls":
        column.proxy.reply_limit = 1  # the byte by which the server agrees
        await refused(column, "handshake")
    elif row == "names":
        await refused(column, "lookup")
    elif row == "prepare":
        column.silent_when_new = True
        await refused(column, "work on a new connection")
        column.silent_when_new = False
    elif row == "check":
        await serve(column)
        column.fall_silent()
        with pytest.raises(Exception):  # noqa: B017  neither an old connection nor a new one can be had
            await column.take()
    elif row == "reset":
        lease = await column.take()
        column.fall_silent()
        with contextlib.suppress(Exception):
            await column.give(lease)
    elif row == "close":
        await serve(column)
        column.fall_silent()
        column.engine.clear()
    else:
        await serve(column)
        await cancelled(column)


async def cancelled(column: Column) -> None:
    """Cancel a caller during its work. What it does with its connection belongs to the operation."""

    async def work() -> None:
        lease = await column.take()
        try:
            await column.work(lease)
        finally:
            await column.give(lease)

    async def silence() -> None:
        await until(column, lambda: column.engine.stats().size > column.engine.stats().idle, "the work has begun")
        for _ in range(20):
            await column.pause()
        column.fall_silent()
        for _ in range(20):
            await column.pause()

    if column.world == "asyncio":
        task = asyncio.ensure_future(work())
        await silence()
        assert not task.done(), task
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=PATIENCE)
        assert done, "the cancelled task does not end"
        with contextlib.suppress(BaseException):
            task.result()
        return
    trio = importlib.import_module("trio")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await silence()
        nursery.cancel_scope.cancel()


async def scenario(column: Column, row: str) -> None:
    await column.open()
    try:
        if row not in ("connect", "tls", "names", "prepare"):
            await serve(column)
        await in_silence(column, row)
        await places_are_free(column)
        column.speak()
        await serve(column)
    finally:
        column.speak()
        await column.close()


@pytest.mark.parametrize(
    ("peer", "row", "column"),
    CELLS,
    indirect=["column"],
    ids=[f"{kind.name}-{row}-{peer}" for peer, row, kind in CELLS],
)
def test_it_ends_and_its_place_is_free(peer: str, row: str, column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    column.dripping = peer == "dripping"
    if row == "tls":
        column.encrypt()
    if row == "names":
        column.look_up(Resolver(monkeypatch))
    with warnings.catch_warnings():
        if column.unclosed:
            warnings.simplefilter("ignore", ResourceWarning)
        run(column.world, scenario(column, row))


def test_each_cell_is_tried_or_has_a_reason() -> None:
    for column in COLUMNS:
        assert set(column.absent) <= set(ROWS), column.name
        assert all((*column.absent.values(), *column.drips.values())), column.name
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert not {column.name for column in COLUMNS} & set(NO_COLUMN)
