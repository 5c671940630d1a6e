"""What the two pools share: their settings, the register of connections, redis-py's counts. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from poolkit import PoolConfig
from poolkit.events import Listener
from poolkit.settings import layer, layer_of
from poolkit_adapters._options import driver_default, is_default, split_options
from poolkit_adapters.redis._driver import EventDispatcher, metering, record_count
from poolkit_adapters.redis._guard import USED, State
from poolkit_adapters.redis._settings import from_text, plan, settle_connect_timeout
from poolkit_adapters.redis._shared import Former, Shared

__all__ = ("PoolBase",)

E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool
G = TypeVar("G", bound=Any)  # Guard or AsyncGuard


class PoolBase(Generic[E, G]):
    """The part of a pool that does no I/O. Stands before redis-py's class, whose constructor sets some of it."""

    _limit: int
    _unused: Mapping[str, tuple[Any, str]] = {}
    """Settings that cannot apply to this class of pool, each with what holds instead and the reason."""
    _released_event: Any = None
    """redis-py's event that tells of a release; None where redis-py has none."""
    _re_auth_listener: Any = None
    """redis-py's own listener to it, which only authenticates anew."""

    connection_kwargs: dict[str, Any]
    _event_dispatcher: Any

    def _settle(
        self,
        connection_kwargs: dict[str, Any],
        *,
        max_connections: int | None,
        timeout: float | None,
        connection_class: Any,
        queue_class: Any,
        config: PoolConfig | None,
        name: str | None,
        listeners: Iterable[Listener],
        debug: bool,
    ) -> dict[str, Any]:
        """Keep what the engine will be made of. The arguments that are redis-py's."""
        settings, driver = split_options(connection_kwargs)
        settings = from_text(settings)
        time_to_connect = settle_connect_timeout({**layer_of(config), **layer(settings)}, driver, connection_class)
        self._guards: dict[int, G] = {}
        self._former = Former()
        self._shared = Shared(self)
        self._engine: E | None = None
        self._engine_args: dict[str, Any] = {"name": name, "listeners": tuple(listeners), "debug": debug}
        self._plan = partial(
            plan, config, settings, time_to_connect, timeout=timeout, queue_class=queue_class, unused=self._unused
        )
        self._limit_given = not (max_connections is None or is_default(max_connections))
        self.queue_class = queue_class
        return {**driver, "connection_class": connection_class, "max_connections": max_connections}

    def _first_config(self) -> PoolConfig:
        """The settings of the engine; without ``max_connections`` redis-py has a number of its own."""
        limit = self._limit if self._limit_given else driver_default(self._limit)
        config: PoolConfig = self._plan(limit=limit)
        return config

    # -- settings that redis-py keeps as attributes -----------------------------------------------------------------

    @property
    def poolkit(self) -> E:
        """The engine: ``stats()``, ``explain()``, ``describe()``, ``suspend()``, ``drain()``, ``reconfigure()``..."""
        assert self._engine is not None
        return self._engine

    @property
    def max_connections(self) -> Any:
        """Connections that exist at once; may be set on the live pool."""
        return self._limit if self._engine is None else self._engine.config.max_size

    @max_connections.setter
    def max_connections(self, value: int) -> None:
        if self._engine is None:
            self._limit = value
        else:
            self._engine.reconfigure(max_size=value)

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for a connection; may be set on the live pool."""
        limit: float | None = self.poolkit.config.acquire_timeout
        return limit

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self.poolkit.reconfigure(acquire_timeout=value)

    def set_retry(self, retry: Any) -> None:
        """Use ``retry`` for all connections, present and future."""
        self.connection_kwargs.update({"retry": retry})
        for guard in list(self._guards.values()):
            guard.connection.retry = retry

    # -- what redis-py's maintenance notifications and metrics look at ------------------------------------------------

    def _must_tell(self, connection: Any, keep: bool) -> bool:
        """Whether listeners are to be told of the release; the default one only authenticates anew."""
        if getattr(connection, "_re_auth_token", None) is not None:
            if keep:
                return True
            connection.set_re_auth_token(None)  # it would connect again only to be closed
        dispatcher = self._event_dispatcher
        if type(dispatcher) is not EventDispatcher:
            return True
        for listener in dispatcher._event_listeners_mapping.get(self._released_event, ()):
            if type(listener) is not self._re_auth_listener:
                return True
        return False

    def _in_state(self, *states: State) -> list[Any]:
        return [guard.connection for guard in list(self._guards.values()) if guard.state in states]

    def _get_free_connections(self) -> Any:
        return self._in_state(State.IDLE)

    def _get_in_use_connections(self) -> Any:
        return set(self._in_state(State.USED, State.OPENING))

    @property
    def _available_connections(self) -> list[Any]:
        """For programs that count redis-py's lists; changing the answer changes nothing."""
        return self._in_state(State.IDLE)

    @_available_connections.setter
    def _available_connections(self, value: Any) -> None:
        """redis-py's constructor makes an empty list of its own."""

    @property
    def _in_use_connections(self) -> set[Any]:
        return set(self._in_state(State.USED, State.OPENING))

    @_in_use_connections.setter
    def _in_use_connections(self, value: Any) -> None:
        """redis-py's constructor makes an empty set of its own."""

    def _count(self, guard: G, state: State | None) -> None:
        """Keep redis-py's metric: each connection is counted in the state that was told last."""
        if guard.counted is state or (guard.counted is None and not metering()):
            return
        if guard.counted is not None:
            record_count(self, guard.counted is USED, -1)
        guard.counted = state
        if state is not None:
            record_count(self, state is USED, 1)

    def __del__(self) -> None:
        try:
            for guard in list(self._guards.values()):
                self._count(guard, None)
        except Exception:  # noqa: BLE001  at the end of the interpreter anything may be gone
            pass
