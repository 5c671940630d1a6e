"""Tracks what a lease leaves behind on its connection: a changed session, or a failed network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._errors import NETWORK_ERRORS

__all__ = ("NOTED", "Footprint")


_BEGIN = frozenset({b"WATCH", b"MULTI"})
_END = frozenset({b"EXEC", b"DISCARD", b"UNWATCH"})
_SELECT = b"SELECT"
_LOST = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR", b"RESET"})
_OF_A_SESSION = _BEGIN | _END | _LOST | {_SELECT}
_MOST, _LONGEST = 1000, 40
"""Names that are remembered, and the characters of the longest one."""


class _Names(dict[object, tuple[bytes, ...]]):
    """The words of a command's first argument if the command changes the session, and nothing for any other.

    redis-py splits that argument, and servers ignore the case: ``"select 3"`` is ``"SELECT", 3``. Remembers answers.
    """

    def __missing__(self, name: object) -> tuple[bytes, ...]:
        words: tuple[bytes, ...] = ()
        if isinstance(name, str):
            words = tuple(name.encode(errors="replace").split())
        elif isinstance(name, bytes):
            words = tuple(name.split())
        elif isinstance(name, memoryview):
            return self[bytes(name)]
        if words and words[0].upper() not in _OF_A_SESSION:
            words = ()
        if isinstance(name, (str, bytes)) and len(name) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[name] = words
        return words


NOTED = _Names()
"""``NOTED[args[0]]`` is true if a command changes the session. Others need no :meth:`Footprint.note`."""


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
        try:
            noted = args and NOTED[args[0]]
        except (TypeError, ValueError):
            noted = args  # not hashable, as a bytearray
        if noted:
            self.note(args)
        return self._pack(*args)

    def note(self, args: tuple[Any, ...]) -> None:
        """Record a command if it changes the session."""
        first = args[0]
        if isinstance(first, (bytearray, memoryview)):
            first = bytes(first)
        if not isinstance(first, (str, bytes)) or not NOTED[first]:
            return
        words: list[Any] = [*NOTED[first], *args[1:]]
        name, values = words[0].upper(), words[1:]
        if name in _BEGIN:
            self._open = True
        elif name in _END:
            self._open = False
        elif name == _SELECT:
            db = values[0] if values else self._home
            self._db = db.decode() if isinstance(db, bytes) else str(db)
        else:
            self._lost = True
        self.changed = self.failed or self._open or self._lost or self._db != self._home
