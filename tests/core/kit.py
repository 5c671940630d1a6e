"""A core that settles after each event, as it does behind a pool's gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from poolkit._core.dialer import Dialer
from poolkit._core.entry import Entry as Slot
from poolkit._core.entry import Purpose
from poolkit._core.lane import Lane as Endpoint
from poolkit._core.machine import Core
from poolkit._core.queue import FifoQueue, Queue
from poolkit._core.waiter import Waiter as Request
from poolkit.config import PoolConfig

__all__ = ("Endpoint", "Request", "SettlingCore", "Slot", "do", "endpoint", "request", "slot")

T = TypeVar("T")

EVENTS = (
    "acquire", "look", "abandon", "checked", "retry", "give_back", "discard", "dropped", "set_capacity", "closed",
    "detach", "connected", "connect_failed",
)  # fmt: skip


class SettlingCore(Core):
    """For tests that look at one decision after the other."""

    _inside = False

    def _event(self, event: Callable[..., Any], now: float, *args: Any, **kwargs: Any) -> Any:
        outermost = not self._inside
        self._inside = True
        try:
            result = event(self, *args, **kwargs)
        finally:
            if outermost:
                self._inside = False
        if outermost:
            self.settle(now)
        return result


def _settling(name: str) -> Callable[..., Any]:
    event = getattr(Core, name)
    signature = inspect.signature(event)

    def settled(self: SettlingCore, *args: Any, **kwargs: Any) -> Any:
        now: float = signature.bind(self, *args, **kwargs).arguments["now"]
        return self._event(getattr(super(SettlingCore, self), name).__func__, now, *args, **kwargs)

    return settled


for _name in EVENTS:
    setattr(SettlingCore, _name, _settling(_name))


def do(step: Callable[..., T], core: Core, *args: Any) -> T:
    """A command for the whole pool, or something that time has brought; the last argument is now."""
    result = step(core, *args)
    core.settle(args[-1])
    return result


def endpoint(queue: Queue | None = None) -> Endpoint:
    """An endpoint without a pool."""
    return Endpoint(None, Dialer("pool", PoolConfig()), queue or FifoQueue())


def request(ticket: int = 0, at: float = 1000.0) -> Request:
    """A caller of an endpoint of its own."""
    made = Request(endpoint(), at)
    made.ticket = ticket
    return made


def slot(number: int = 1, at: float = 1000.0) -> Slot:
    """A connection of an endpoint of its own, being opened."""
    return Slot(endpoint(), number, Purpose.DEMAND, at)
