"""What the core asks of its shell. Carried out in order, after the lock is let go."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .queue import Request
    from .slots import Slot

__all__ = ("Do", "Effect")


class Do(Enum):
    """The kinds of work."""

    CONNECT = "connect"
    CLOSE = "close"  # in good order: ask the server, may take time
    ABORT = "abort"  # at once
    PING = "ping"  # look at (and, if it is due, ask) an idle connection
    WAKE = "wake"
    TELL = "tell"  # events are pending
    SHARE = "share"  # the budget has news for other pools
    REPORT = "report"  # leases were dropped


class Effect(NamedTuple):
    """One piece of work, with the one thing that it is about."""

    do: Do
    slot: Slot | None = None
    request: Request | None = None
