"""The protocol of a source of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._node import Node

__all__ = ("Discovery", "Found")


@dataclass(frozen=True)
class Found:
    """All nodes of now; when to ask again, in seconds (0: at once, None: never); and a note for the source itself."""

    nodes: tuple[Node, ...]
    again: float | None = 1.0
    mark: Any = None


class Discovery:
    """A source of nodes. Subclass it and implement :meth:`find`; see the guide for Consul and Kubernetes."""

    interval: float = 1.0
    """Seconds until the next attempt after one that failed."""

    def find(self, last: Found | None) -> Found:
        """All nodes of now; ``last`` is the answer before, None at first.

        Called in a worker thread, by one at a time. May block until something has changed (a long poll); the first
        call, for which the cluster's first callers wait, must not. Raise any Exception to keep the old state.
        """
        raise NotImplementedError

    def close(self) -> None:
        """The cluster was closed: end a :meth:`find` that blocks. Called from another thread. After it, ``find(None)``
        begins anew.
        """
