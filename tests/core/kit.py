"""A core that settles after each event, as it does behind a pool's gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from poolkit._core.machine import Core

__all__ = ("SettlingCore", "do")

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
