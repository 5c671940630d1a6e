"""Actions that the core decides. The shell performs them in order, after it has released the lock."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .queue import Request
    from .slots import Slot

__all__ = ("Do", "Effect")


class Do(Enum):
    """The kinds of action."""

    CONNECT = "connect"
    CLOSE = "close"  # orderly: exchanges messages with the server, may take time
    ABORT = "abort"  # at once
    PING = "ping"  # peek at an idle connection, and check it if that is due
    WAKE = "wake"
    TELL = "tell"  # call the listeners: events are pending
    SHARE = "share"  # notify other pools of the budget
    REPORT = "report"  # report leases that were dropped without close()
    COLLECT = "collect"  # clear the frames of functions that have ended, and run the garbage collector


class Effect(NamedTuple):
    """One action, with the slot or request that it concerns."""

    do: Do
    slot: Slot | None = None
    request: Request | None = None
