"""The pools of this process as a source for the dashboard."""

from __future__ import annotations

from typing import Any

from .._log import logger
from ..errors import ConfigError, PoolClosed
from ._desk import Refused
from ._recorder import Recorder, shared
from ._state import detail_of, history_of, state_of

__all__ = ("Local",)


class Local:
    """Reads the pools on request. Thread-safe; may be called in any thread or task, and never waits."""

    def __init__(self, *, actions: bool, recorder: Recorder | None = None, service: str | None = None) -> None:
        self.recorder = recorder or shared()
        self._actions = actions
        self._service = _checked_name(service)

    def state(self) -> dict[str, Any]:
        """Return a snapshot of all pools of this process."""
        return state_of(self.recorder, actions=self._actions, service=self._service)

    def history(self) -> dict[str, Any]:
        """Return the history of each pool."""
        return history_of(self.recorder)

    def detail(self, pool: str) -> dict[str, Any]:
        """Return the details of one pool. Raises Refused if there is no such pool."""
        return detail_of(self._pool(pool), pool)

    def mark(self) -> object:
        """Return a value that changes when a pool is created or closed."""
        return frozenset((self.recorder.id_of(pool), pool.closed) for pool in self.recorder.pools())

    def act(self, pool: str, action: str, options: dict[str, Any]) -> str:
        """Perform the action. Raises Refused if there is no such pool or the action is not possible."""
        return _do(self._pool(pool), action, options)

    def _pool(self, number: str) -> Any:
        for one in self.recorder.pools():
            if self.recorder.id_of(one) == number:
                return one
        raise Refused(404, f"there is no pool {number!r} in this process, or it was closed")


def _checked_name(service: Any) -> str | None:
    if service is None or (isinstance(service, str) and service.strip()):
        return service
    raise ConfigError(f"service={service!r}: must be the name of the service (or None: the program's)", "service")


def _do(pool: Any, action: str, options: dict[str, Any]) -> str:
    """Perform an action on a pool of this process. Raises Refused without changing anything."""
    if pool.closed:
        raise Refused(409, f"{pool.name} is closed")
    try:
        if action == "resize":
            pool.reconfigure(max_size=options["max_size"])
            said = f"max_size is {options['max_size']}"
        elif action == "suspend":
            pool.suspend(fail_fast=options.get("fail_fast", False))
            said = "suspended"
        elif action == "resume":
            pool.resume()
            said = "resumed"
        else:
            pool.clear()
            said = "cleared"
    except ConfigError as error:
        raise Refused(400, str(error)) from None
    except PoolClosed as error:
        raise Refused(409, str(error)) from None
    logger.info("%s: %s, by the dashboard", pool.name, said)
    return f"{pool.name}: {said}"
