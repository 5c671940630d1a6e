"""Tracks what a lease leaves behind on its connection: a changed session, or a failed network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._errors import NETWORK_ERRORS

__all__ = ("NOTED", "Footprint")


def _spellings(*names: str) -> frozenset[object]:
    cases = {case for name in names for case in (name, name.lower(), name.capitalize())}
    return frozenset(cases | {case.encode() for case in cases})


_BEGIN = _spellings("WATCH", "MULTI")
_END = _spellings("EXEC", "DISCARD", "UNWATCH")
_SELECT = _spellings("SELECT")
_LOST = _spellings("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "RESET")
NOTED = _BEGIN | _END | _SELECT | _LOST
"""The names of the commands that change a session. Others need no :meth:`Footprint.note`."""


class Footprint:
    """Records the commands that change the session: another database, an open transaction, a subscription.

    Wraps the function with which redis-py packs commands, so that it sees pipelines and raw commands too.
    """

    __slots__ = ("_db", "_home", "_lost", "_open", "_pack", "changed", "failed")

    changed: bool
    """Whether the session differs from that of a new connection."""
    failed: bool
    """Whether the network failed while the connection was in use. redis-py may have reconnected it since."""

    def __init__(self, pack: Callable[..., Any], db: object) -> None:
        self._pack = pack
        self._home = str(db)
        self.forget()

    def forget(self) -> None:
        """Start with a new session."""
        self._db = self._home
        self._open = self._lost = self.changed = self.failed = False

    def disconnecting(self, error: BaseException | None) -> None:
        """Record that redis-py closes the connection while ``error`` is being handled."""
        if isinstance(error, NETWORK_ERRORS):
            self.failed = self.changed = True

    def pack(self, *args: Any) -> Any:
        """Pack one command."""
        if args and args[0] in NOTED:
            self.note(args)
        return self._pack(*args)

    def note(self, args: tuple[Any, ...]) -> None:
        """Record a command that changes the session."""
        name = args[0]
        if name in _BEGIN:
            self._open = True
        elif name in _END:
            self._open = False
        elif name in _SELECT:
            db = args[1] if len(args) > 1 else self._home
            self._db = db.decode() if isinstance(db, bytes) else str(db)
        else:
            self._lost = True
        self.changed = self.failed or self._open or self._lost or self._db != self._home
