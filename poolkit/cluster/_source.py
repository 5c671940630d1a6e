"""The interface of a discovery: a source of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._numbers import seconds
from ._node import Node

__all__ = ("Discovery", "Found")


@dataclass(frozen=True)
class Found:
    """The answer of a discovery.

    ``nodes``: all current nodes. ``again``: seconds until the next call of ``find`` (0: at once, None: never).
    ``mark``: any value for the discovery's own use. Raises :class:`~poolkit.ConfigError` if ``again`` is no time.
    """

    nodes: tuple[Node, ...]
    again: float | None = 1.0
    mark: Any = None

    def __post_init__(self) -> None:
        seconds("again", self.again, none="never")


class Discovery:
    """A source of nodes. Subclass it and implement :meth:`find`; the guide shows one for Consul and Kubernetes."""

    interval: float = 1.0
    """Seconds until the next call after one that failed."""

    def find(self, last: Found | None) -> Found:
        """Return all current nodes. ``last`` is the previous answer; None at first.

        Called in a worker thread, never concurrently. It may block until something changes (a long poll), except in
        the first call, for which the cluster's first callers wait. Return ``last`` if nothing has changed. Raise any
        Exception to keep the current nodes; the cluster does the same if the answer is not a :class:`Found`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End a :meth:`find` that blocks; the cluster was closed. Called from another thread.

        A later ``find(None)`` starts again.
        """
