"""The common part of the sync and the async pool: everything that never waits."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus

from poolkit import PoolConfig
from poolkit.errors import shown

from .._errors import both
from ._config import NULL_MIN_SIZE, check_callback, check_conninfo, numbered, pool_config, sizes
from ._counters import Counters
from ._errors import LeaseCut, UsageError

__all__ = (
    "Leftovers",
    "PoolBase",
    "cut_block_error",
    "entered_twice",
    "left_in",
    "logger",
    "new_sizes",
    "null_arguments",
    "prepare",
    "reconnect_timeout_of",
    "report_outage",
)

logger = logging.getLogger("psycopg.pool")

RETRY_PAUSE = 0.1
"""Seconds between two attempts of a null pool, which retries in its caller and not in the background."""

PSYCOPG_VERSION = tuple(int(part) for part in psycopg.__version__.split(".")[:2])


def status_name(connection: psycopg.BaseConnection[Any]) -> str:
    """Return the name of a connection's transaction status."""
    return TransactionStatus(connection.pgconn.transaction_status).name


def left_in(connection: psycopg.BaseConnection[Any], who: str, callback: object) -> psycopg.ProgrammingError:
    """Return the error for a callback that left a transaction open."""
    return psycopg.ProgrammingError(
        f"{who} {callback!r} left the connection in status {status_name(connection)}; it must end its transaction"
    )


def cut_block_error(pool: str, connection: psycopg.BaseConnection[Any], error: BaseException | None) -> BaseException:
    """Return the error for a ``connection()`` block during which the pool closed the connection.

    That is the block's own error of psycopg with poolkit's class added, or a LeaseCut if the block had no error.
    """
    text = (
        f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
        f"pool); uncommitted changes are lost: {shown(repr(connection))}"
    )
    if error is None:
        return LeaseCut(text)
    told = both(LeaseCut, error)
    told.__notes__ = [*getattr(told, "__notes__", ()), text]  # type: ignore[attr-defined]
    return told


def entered_twice(pool: PoolBase[Any]) -> UsageError:
    """Return the error for a block that is entered inside or beside itself."""
    return UsageError(f"{pool.name}: this connection() is already in use by another block; call it for each block")


E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool
F = TypeVar("F", bound=Callable[..., None])


def _setting(name: str, doc: str, *, none: float = math.inf) -> Any:
    """Return a property for a setting of the engine that may change at any time. ``none`` is its value for None."""

    def read(pool: PoolBase[Any]) -> Any:
        value = getattr(pool._engine.config, name)
        return none if value is None else value

    def change(pool: PoolBase[Any], value: Any) -> None:
        pool._engine.reconfigure(**{name: None if value == none else value})

    return property(read, change, doc=doc)


class PoolBase(Generic[E]):
    """Settings, attributes, statistics and errors of both pools. Comes before psycopg_pool's class among the bases."""

    _null = False
    _probes = 0  # connects of wait(), and their time in ms
    _probes_ms = 0.0
    _engine: E
    _counters: Counters
    _opened: bool
    _open_implicit: bool
    _eager: bool
    name: str
    num_workers: int
    reconnect_timeout: float

    # -- attributes of psycopg_pool, taken from the settings in effect --------------------------------------------

    timeout: float = _setting("acquire_timeout", "Seconds that getconn waits by default (infinity: no limit).")
    max_waiting: int = _setting("max_waiting", "Callers that may wait at the same time (0: no limit).", none=0)
    max_lifetime: float = _setting("max_lifetime", "Seconds after which a connection is replaced.")
    max_idle: float = _setting("idle_timeout", "Seconds after which an unused connection above ``min_size`` is closed.")

    @property
    def poolkit(self) -> E:
        """The underlying engine: ``stats()``, ``explain()``, ``suspend()``, ``reconfigure()``, events."""
        return self._engine

    @property
    def min_size(self) -> int:
        """Connections kept open."""
        return int(self._engine.config.min_size)

    @property
    def max_size(self) -> int:
        """Connections that may exist at the same time. 0 in a null pool means no limit."""
        return self._engine.config.max_size or 0

    @property
    def closed(self) -> bool:
        """Whether the pool is closed or not open yet."""
        return not self._opened or bool(self._engine.closed)

    # -- statistics -----------------------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Return measures and counters under psycopg_pool's names. Thread-safe, and never waits for I/O."""
        return _report(self, pop=False)

    def pop_stats(self) -> dict[str, int]:
        """Return the same as :meth:`get_stats`, and reset the counters to zero."""
        return _report(self, pop=True)


def prepare(
    pool: PoolBase[Any], config: PoolConfig | None, settings: dict[str, Any], *, sync: bool, **arguments: Any
) -> PoolConfig:
    """Check every argument of a pool, set its attributes, and return the engine's settings."""
    for name in ("configure", "check", "reset", "reconnect_failed"):
        check_callback(name, arguments[name], synchronous=sync)
    del arguments["configure"], arguments["reset"], arguments["reconnect_failed"]
    pool.reconnect_timeout = numbered("reconnect_timeout", arguments.pop("reconnect_timeout"))
    conninfo, kwargs = arguments.pop("conninfo"), arguments.pop("kwargs")
    pool.num_workers = int(arguments["num_workers"])
    result = pool_config(config, settings, null=pool._null, **arguments)
    pool._eager = result.start == "eager"
    pool._counters = Counters()
    pool._opened = False
    pool._open_implicit = False
    return check_conninfo(conninfo, kwargs, result)


def null_arguments(base: Callable[..., None]) -> Callable[[F], F]:
    """Return a decorator for the constructor of a null pool: ``min_size`` is 0 if it is not given. ``base``: the
    constructor whose signature and text it has.
    """
    signature = inspect.signature(base)

    def decorate(init: F) -> F:
        @functools.wraps(base)
        def constructor(pool: PoolBase[Any], *conninfo: Any, **arguments: Any) -> None:
            arguments.setdefault("min_size", NULL_MIN_SIZE)
            arguments["close_returns"] = False  # as in psycopg_pool: close() closes, and the pool would do the same
            init(pool, *conninfo, **arguments)

        constructor.__signature__ = signature.replace(parameters=[  # type: ignore[attr-defined]
            each.replace(default=NULL_MIN_SIZE) if each.name == "min_size" else each
            for each in signature.parameters.values()
        ])  # fmt: skip
        return cast("F", constructor)

    return decorate


def new_sizes(pool: PoolBase[Any], min_size: int, max_size: int | None) -> dict[str, Any]:
    """Return the arguments of ``resize()`` as settings of the engine."""
    low, high = sizes(min_size, max_size, null=pool._null)
    logger.info("resizing %r to min_size=%s max_size=%s", pool.name, low, high)
    return {"min_size": low, "max_size": high}


def _report(pool: PoolBase[Any], *, pop: bool) -> dict[str, int]:
    counters = pool._counters
    if pool._null:  # a caller that only had to connect was neither queued nor waiting
        own = counters.total("connections_num") - pool._probes
        own_ms = counters.total("_opening_ms") - pool._probes_ms
        return counters.report(pool._engine.stats(), own_connects=own, own_connects_ms=own_ms, pop=pop)
    return counters.report(pool._engine.stats(), pop=pop)


def reconnect_timeout_of(pool: weakref.ref[Any]) -> float:
    """Return the pool's ``reconnect_timeout``, which may be changed at any time; infinity for one that is gone."""
    living = pool()
    return math.inf if living is None else float(living.reconnect_timeout)


def report_outage(pool: PoolBase[Any]) -> None:
    """Log that no connect has succeeded for ``reconnect_timeout`` seconds."""
    logger.warning("reconnection attempt in pool %r failed after %s sec", pool.name, pool.reconnect_timeout)


class Leftovers:
    """Sessions that failed connects have left on the server, by thread or task. The engine takes them over."""

    def __init__(self) -> None:
        self._left: dict[object, Any] = {}

    def put(self, caller: object, left: Any) -> None:
        """Store what a failing connect of the caller leaves behind: a future, or None."""
        if left is not None:
            self._left[caller] = left

    def take(self, caller: object) -> Any:
        """See :meth:`poolkit.Connector.leftover`."""
        return self._left.pop(caller, None)
