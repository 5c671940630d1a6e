"""Responses whose connection goes back to the pool however they end."""

from __future__ import annotations

from typing import Any

__all__ = ("give_back_at_end",)


class _Released:
    """Comes before urllib3's class, whose ``close()`` of an unread response keeps the place in the pool for ever."""

    def close(self) -> None:
        """Close the response, and give the place of its connection back."""
        response: Any = super()
        try:
            response.close()
        finally:
            self.release_conn()  # type: ignore[attr-defined]

    def __del__(self) -> None:
        """Close a response that was dropped with its connection. io.IOBase closes none that was read to the end."""
        try:
            if self._connection is not None:  # type: ignore[attr-defined]
                self.close()
        except Exception:  # noqa: BLE001  modules may be gone already when the interpreter shuts down
            pass


_kinds: dict[type, type] = {}


def give_back_at_end(response: Any) -> None:
    """Let a response that holds a connection give it back when it is closed or dropped, too."""
    kind = type(response)
    found = _kinds.get(kind)
    if found is None:
        body = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        found = _kinds[kind] = type(kind.__name__, (_Released, kind), body)
    response.__class__ = found
