"""The common part of both pools: settings, the register of connections and redis-py's metrics. Does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial, partialmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from poolkit import PoolConfig
from poolkit.events import Listener
from poolkit.settings import layer, layer_of

from .._options import driver_default, is_default, split_options
from ._connection_watch import USED, State
from ._driver import EventDispatcher, metering, record_count
from ._keywords import ConnectionKeywords, check_keywords
from ._other_library import check_connection_class
from ._settings import DEFAULT_LIMIT, DEFAULT_TIMEOUT, from_text, plan, settle_connect_timeout
from ._shared import Former, Shared

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolBase", "count", "first_config", "in_state", "must_notify")

E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool
G = TypeVar("G", bound=Any)  # ConnectionWatch or AsyncConnectionWatch


def in_state(pool: PoolBase[Any, Any], *states: State) -> list[Any]:
    """Return the connections of a pool in these states."""
    return [watch.connection for watch in list(pool._watches.values()) if watch.state in states]


class _Listed:
    """An attribute of redis-py's pools, for programs that read it: the connections in certain states, or their number.

    Each read makes a new value from a list of these connections with ``kind``, so changes to it have no effect. Values
    that redis-py's constructors assign are ignored.
    """

    def __init__(self, kind: Callable[[list[Any]], Any], *states: State) -> None:
        self._kind = kind
        self._states = states

    def __get__(self, pool: Any, owner: type) -> Any:
        return self if pool is None else self._kind(in_state(pool, *self._states))

    def __set__(self, pool: Any, value: Any) -> None:
        """Ignore the empty collection, or zero."""


class PoolBase(Generic[E, G]):
    """The part of a pool that does no I/O. Comes before redis-py's class, whose constructor sets some attributes."""

    _limit: int
    _unused: Mapping[str, tuple[Any, str]] = {}
    """Settings that cannot apply to this class of pool, each with the value that applies instead and the reason."""
    _released_event: Any = None
    """redis-py's event for a release; None in versions that have none."""
    _re_auth_listener: Any = None
    """redis-py's own listener for that event, which only re-authenticates."""

    connection_kwargs: dict[str, Any]
    reset: Any
    _event_dispatcher: Any

    _connection_class: Any
    _queue_class: Any
    """redis-py's defaults of these arguments."""

    def __init__(
        self,
        max_connections: int | None = DEFAULT_LIMIT,
        timeout: float | None = DEFAULT_TIMEOUT,
        connection_class: Any = None,
        queue_class: Any = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        **connection_kwargs: Unpack[ConnectionKeywords],
    ) -> None:
        connection_class = self._connection_class if connection_class is None else connection_class
        check_connection_class(connection_class)
        queue_class = self._queue_class if queue_class is None else queue_class
        settings, driver = split_options(from_text(connection_kwargs))
        check_keywords(driver, type(self), connection_class)
        time_to_connect = settle_connect_timeout({**layer_of(config), **layer(settings)}, driver, connection_class)
        self._first_limit = PoolConfig().connect_timeout if time_to_connect is None else time_to_connect[0]
        self._watches: dict[int, G] = {}
        self._former = Former()
        self._shared = Shared(self)
        self._engine: E | None = None
        self._engine_args: dict[str, Any] = {"name": name, "listeners": tuple(listeners), "debug": debug}
        self._plan = partial(
            plan, config, settings, time_to_connect, timeout=timeout, queue_class=queue_class, unused=self._unused
        )
        self._connects_in_caller = {**layer_of(config), **layer(settings)}.get("connect_in_caller", (False,))[0]
        self._limit_given = not (max_connections is None or is_default(max_connections))
        self.queue_class = queue_class
        of_redis_py: Any = super()
        of_redis_py.__init__(**driver, connection_class=connection_class, max_connections=max_connections)
        if self._engine is None:  # redis-py's constructor of a synchronous pool has called reset() already
            self.reset()

    # -- settings that redis-py keeps as attributes -----------------------------------------------------------------

    @property
    def poolkit(self) -> E:
        """The engine: ``stats()``, ``explain()``, ``describe()``, ``suspend()``, ``drain()``, ``reconfigure()``..."""
        assert self._engine is not None
        return self._engine

    @property
    def max_connections(self) -> Any:
        """Connections that may exist at the same time. May be set while the pool is in use."""
        return self._limit if self._engine is None else self._engine.config.max_size

    @max_connections.setter
    def max_connections(self, value: int) -> None:
        if self._engine is None:
            self._limit = value
        else:
            self._engine.reconfigure(max_size=value)

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for a connection. May be set while the pool is in use."""
        limit: float | None = self.poolkit.config.acquire_timeout
        return limit

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        # a caller that does not wait has to open its own connection
        self.poolkit.reconfigure(acquire_timeout=value, connect_in_caller=self._connects_in_caller or value == 0)

    def set_retry(self, retry: Any) -> None:
        """Use ``retry`` for all connections, present and future."""
        self.connection_kwargs.update({"retry": retry})
        for watch in list(self._watches.values()):
            watch.connection.retry = retry

    # -- used by redis-py's maintenance notifications and metrics -----------------------------------------------------

    _available_connections = _Listed(list, State.IDLE)
    _in_use_connections = _Listed(set, State.USED, State.OPENING)
    _created_connections = _Listed(len, *State)
    _get_free_connections = partialmethod(in_state, State.IDLE)
    _get_in_use_connections = partialmethod(in_state, State.USED, State.OPENING)

    def __del__(self) -> None:
        try:
            for watch in list(self._watches.values()):
                count(self, watch, None)
        except Exception:  # noqa: BLE001  modules may be gone already when the interpreter shuts down
            pass


def first_config(pool: PoolBase[Any, Any]) -> PoolConfig:
    """Return the settings of the engine. Without ``max_connections`` redis-py's default is the limit."""
    limit = pool._limit if pool._limit_given else driver_default(pool._limit)
    config: PoolConfig = pool._plan(limit=limit)
    return config


def must_notify(pool: PoolBase[Any, Any], connection: Any, keep: bool) -> bool:
    """Return whether the listeners must hear of this release. redis-py's own listener does so only for a new token."""
    if getattr(connection, "_re_auth_token", None) is not None:
        if keep:
            return True
        connection.set_re_auth_token(None)  # otherwise it would reconnect, and then be closed
    dispatcher = pool._event_dispatcher
    if type(dispatcher) is not EventDispatcher:
        return True
    for listener in dispatcher._event_listeners_mapping.get(pool._released_event, ()):
        if type(listener) is not pool._re_auth_listener:
            return True
    return False


def count(pool: PoolBase[Any, Any], watch: Any, state: State | None) -> None:
    """Update redis-py's metric, which counts each connection in the state that was reported last."""
    if watch.counted is state or (watch.counted is None and not metering()):
        return
    if watch.counted is not None:
        record_count(pool, watch.counted is USED, -1)
    watch.counted = state
    if state is not None:
        record_count(pool, state is USED, 1)
