"""Responses that always return their connection to the pool, whether they are read, closed or dropped."""

from __future__ import annotations

from typing import Any

__all__ = ("give_back_at_end",)


class _Released:
    """Ends the lease in ``close()``. That of urllib3's class never does so for an unread response."""

    def close(self) -> None:
        """Close the response, and end the lease of its connection."""
        response: Any = super()
        try:
            response.close()
        finally:
            self.release_conn()  # type: ignore[attr-defined]

    def __del__(self) -> None:
        """Close a response that was dropped with its connection. io.IOBase closes none that was read to its end."""
        try:
            if self._connection is not None:  # type: ignore[attr-defined]
                self.close()
        except Exception:  # noqa: BLE001  modules may be gone while the interpreter shuts down
            pass


_kinds: dict[type, type] = {}


def give_back_at_end(response: Any) -> None:
    """Make a response that holds a connection return it also when it is closed or dropped."""
    kind = type(response)
    found = _kinds.get(kind)
    if found is None:
        body = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        found = _kinds[kind] = type(kind.__name__, (_Released, kind), body)
    response.__class__ = found
