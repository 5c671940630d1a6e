"""Starlette, FastAPI and other ASGI applications: a lifespan that opens and drains pools, and a readiness endpoint.

::

    pools = PoolLifespan({"db": lambda: AsyncPool(connector, name="orders-db")}, drain_timeout=20)
    app = Starlette(lifespan=pools, routes=[Route("/ready", pools.ready), ...])

Needs anyio, which Starlette brings with it: ``pip install 'poolkit[asgi]'``.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

from .._log import logger
from .._numbers import seconds
from .._threads import Pool
from ..errors import ConfigError, ConnectFailed, MissingExtra, UsageError, describe, shown
from ._pools import checked, engine_of, opened, trouble

try:
    import anyio
    import anyio.to_thread
except ImportError as error:
    raise MissingExtra("poolkit.frameworks.asgi needs anyio: pip install 'poolkit[asgi]'") from error

__all__ = ("PoolLifespan", "Readiness")

Connect = Literal["require", "try", "lazy"]


class PoolLifespan:
    """A lifespan for an ASGI application: opens pools when it starts and drains them when it stops.

    Requests find the pools as ``request.state.NAME``, other code as ``lifespan["NAME"]``. Works on asyncio and trio.

    Args:
        pools: by name, an object that uses a poolkit pool (a :class:`~poolkit.Pool` or :class:`~poolkit.AsyncPool`, a
            cluster, an adapter's pool or transport, a SQLAlchemy engine, a redis or httpx client), or a function
            without arguments that creates one. With functions the application can be started again: a pool that was
            drained stays closed.
        inside: the application's own lifespan. It runs while the pools are open; what it yields is added to the state.
        connect: at the start, "require" opens ``min_size`` connections of each pool (at least one) and fails the start
            if that takes longer than ``connect_timeout``; "try" logs the failure and continues; "lazy" opens none.
            Keyed pools (httpx) and clusters open nothing at the start. asyncpg's pool is opened in any case. With an
            ``init_size`` above 0 it connects then; if that fails, the start fails, as with asyncpg.
        connect_timeout: seconds.
        drain_timeout: seconds that leases get to end when the application stops, for all pools together. Set it below
            the time that the server or the orchestrator grants.

    Raises ConfigError for an invalid argument, and UsageError at the start for a pool that is closed.
    """

    def __init__(
        self,
        pools: Mapping[str, Any],
        *,
        inside: Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]] | None = None,
        connect: Connect = "try",
        connect_timeout: float = 10.0,
        drain_timeout: float = 10.0,
    ) -> None:
        self._given = checked(pools, "PoolLifespan")
        if connect not in get_args(Connect):
            raise ConfigError(f"connect={connect!r}: must be 'require', 'try' or 'lazy'", "connect")
        seconds("connect_timeout", connect_timeout)
        seconds("drain_timeout", drain_timeout)
        self._inside = inside
        self._connect = connect
        self._connect_timeout = connect_timeout
        self._drain_timeout = drain_timeout
        self._running: dict[str, Any] = {}
        self.ready = Readiness(self)
        """The readiness endpoint for all pools."""

    def __getitem__(self, name: str) -> Any:
        """The object of this name. Raises UsageError while the application does not run, KeyError for another name."""
        if name in self._running:
            return self._running[name]
        if name in self._given:
            raise UsageError(f"PoolLifespan: {name!r} is open only while the application runs")
        raise KeyError(name)

    @asynccontextmanager
    async def __call__(self, app: Any) -> AsyncIterator[dict[str, Any]]:
        """Called by the application: ``Starlette(lifespan=...)``, ``FastAPI(lifespan=...)``."""
        if self._running:
            raise UsageError("PoolLifespan: already used by a running application; each application needs its own")
        running: dict[str, Any] = {}
        try:
            for name, thing in self._given.items():
                running[name] = opened(name, thing, "PoolLifespan")
            self._running = running
            await _each(running, self._open)
            async with nullcontext() if self._inside is None else self._inside(app) as state:
                yield {**running, **(state or {})}
        finally:
            try:
                with anyio.CancelScope(shield=True):  # a cancellation here would leave connections open
                    await _each(running, self._end)
            finally:
                self._running = {}

    async def _open(self, name: str, thing: Any, threads: anyio.CapacityLimiter) -> None:
        if callable(getattr(thing, "open", None)):  # psycopg's
            await _call(thing, thing.open, threads)
        if _unopened(thing):
            with anyio.move_on_after(self._connect_timeout) as limit:
                await thing
            if limit.cancelled_caught:
                raise ConnectFailed(f"PoolLifespan: {name} did not open within {self._connect_timeout:g} s")
        engine = engine_of(thing)
        if self._connect == "lazy" or not hasattr(engine, "warm_up") or engine._core.features.on_demand:
            return
        try:
            connect = _connect if isinstance(engine, Pool) else _connect_async
            await _call(thing, partial(connect, engine, self._connect_timeout), threads)
        except Exception as error:
            if self._connect == "require":
                raise
            logger.warning(
                "PoolLifespan: %s cannot connect yet; the application starts anyway: %s", shown(name), describe(error)
            )

    async def _end(self, name: str, thing: Any, threads: anyio.CapacityLimiter) -> None:
        engine = engine_of(thing)
        if not await _call(thing, partial(engine.drain, self._drain_timeout), threads):
            logger.warning(
                "PoolLifespan: leases of %s did not end within %g s and were aborted", name, self._drain_timeout
            )
        if _unopened(thing):  # drained, that is closed; its close() would refuse
            return
        close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
        if thing is not engine and callable(close):
            await _call(thing, close, threads)


def _unopened(thing: Any) -> bool:
    """Whether it is a pool that has to be awaited before its first use, as asyncpg's, and has not been."""
    return inspect.isawaitable(thing) and not getattr(thing, "_initialized", True)


async def _each(things: Mapping[str, Any], step: Callable[..., Awaitable[None]]) -> None:
    """Run ``await step(name, thing, threads)`` for all pools concurrently; raise the first error when all are done."""
    failed: list[Exception] = []
    # a separate limiter: requests that hold leases may use all threads of the default one
    threads = anyio.CapacityLimiter(max(1, len(things)))

    async def one(name: str, thing: Any) -> None:
        try:
            await step(name, thing, threads)
        except Exception as error:  # noqa: BLE001 - raised when the others are done
            failed.append(error)

    async with anyio.create_task_group() as group:
        for name, thing in things.items():
            group.start_soon(one, name, thing)
    if failed:
        raise failed[0]


def _connect(engine: Any, timeout: float) -> None:
    """Open ``min_size`` connections, at least one, then lease one: other connects may have been running already."""
    deadline = time.monotonic() + timeout
    engine.warm_up(max(1, engine.config.min_size), timeout=timeout)
    engine.lease(max(0.0, deadline - time.monotonic())).close()


async def _connect_async(engine: Any, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    await engine.warm_up(max(1, engine.config.min_size), timeout=timeout)
    async with engine.lease(max(0.0, deadline - time.monotonic())):
        pass


async def _call(thing: Any, call: Callable[[], Any], threads: anyio.CapacityLimiter) -> Any:
    """Run ``call()``: a coroutine function here, a function of SQLAlchemy in its greenlet, others in a thread."""
    if inspect.iscoroutinefunction(call.func if isinstance(call, partial) else call):
        return await call()
    if hasattr(thing, "sync_engine"):
        from sqlalchemy.util import greenlet_spawn

        return await greenlet_spawn(call)
    return await anyio.to_thread.run_sync(call, limiter=threads)


class Readiness:
    """An ASGI endpoint: 200 while every pool serves, else 503. The JSON body names the pools that do not serve.

    A pool does not serve while it is suspended, draining or closed, or while its circuit breaker is open. In a keyed
    pool all breakers must be open. After its ``reset_timeout`` a breaker lets a probe through. The pool then counts as
    ready, so that a request can be that probe. An exhausted pool is ready: sending its load to other processes would
    exhaust them too. Before the start and after the end of the application the answer is 503.

    ``names``: the pools that count (None: all). Does no I/O. Thread-safe. Raises ConfigError for an unknown name.
    """

    def __init__(self, lifespan: PoolLifespan, names: Iterable[str] | None = None) -> None:
        self._lifespan = lifespan
        self._names = None if names is None else tuple(names)
        for name in self._names or ():
            if name not in lifespan._given:
                known = ", ".join(lifespan._given)
                raise ConfigError(f"Readiness: {name!r}: no such pool; the pools are {known}", "names")

    def check(self) -> dict[str, str]:
        """By pool name, "ok" or the reason why it does not serve. Empty while the application does not run."""
        running = self._lifespan._running
        return {
            name: trouble(engine_of(thing)) or "ok"
            for name, thing in running.items()
            if self._names is None or name in self._names
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI interface."""
        found = self.check()
        good = bool(self._lifespan._running) and all(text == "ok" for text in found.values())
        body = json.dumps({"ready": good, "pools": found}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200 if good else 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
