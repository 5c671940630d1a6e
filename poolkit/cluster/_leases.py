"""Leases of a cluster: the right to use one connection of one node until closed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._leases import AskedLease
from ..errors import NotLeased
from ._core import ClusterCore, NodeEntry
from ._node import Node

if TYPE_CHECKING:
    from ._async import AsyncCluster
    from ._threads import Cluster

__all__ = ("AsyncClusterLease", "ClusterLease", "ClusterLeaseRequest")

C = TypeVar("C")


class _LeaseBase(Generic[C]):
    """The common part of both kinds of leases; the subclasses implement ``close``."""

    __slots__ = ("__weakref__", "_cluster", "_core", "_entry", "_inner", "_ticket", "connection", "since")

    connection: C
    """The driver's connection; it must not be used after :meth:`close`."""
    since: float
    """When the node was asked for it, by the cluster's clock, in seconds."""

    def __init__(self, cluster: Cluster[C] | AsyncCluster[C], entry: NodeEntry, since: float) -> None:
        self._ticket = 0  # identifies the capacity that it holds; 0: none
        self._inner: Any = None
        self._cluster = cluster
        self._core: ClusterCore = cluster._core
        self._entry = entry
        self.since = since

    @property
    def node(self) -> Node:
        """The node of the connection."""
        return self._entry.node

    def _given(self) -> C:
        """Return the connection. Raises :class:`~poolkit.NotLeased` if the lease is closed."""
        if self._inner is None:
            raise self._cluster._translated(NotLeased(f"{self._cluster.name}: the lease is closed"))
        return self.connection

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_ticket", 0) and not ending():  # no attribute at all if __init__ was interrupted
            self._cluster._endings.dropped(self._core, self._entry, self._ticket)

    def __repr__(self) -> str:
        state = "closed" if self._inner is None else repr(self.connection)
        return f"<{type(self).__name__} of {self._cluster.name!r}, {self._entry.name}: {state}>"


class ClusterLease(_LeaseBase[C]):
    """The right to use one connection of one node until it is closed. Used like :class:`poolkit.Lease`."""

    __slots__ = ()

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection to its pool. A second call does nothing.

        ``discard``: close the connection instead. ``error``: an error of its use, which ``classify`` judges for the
        connection and for the node.
        """
        ticket = self._ticket
        if ticket:
            inner, self._inner = self._inner, None
            try:
                if inner is not None:  # otherwise an earlier close() was interrupted after this line
                    inner.close(discard=discard, error=error)
            finally:
                self._cluster._endings.end(self._core, self._entry, ticket, error, self.since)
                self._ticket = 0  # last: if interrupted before it, close() can be called again

    def __enter__(self) -> C:
        return self._given()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(error=error)


class AsyncClusterLease(_LeaseBase[C]):
    """The right to use one connection of one node until it is closed. Used like :class:`poolkit.AsyncLease`."""

    __slots__ = ()

    async def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection; see :meth:`poolkit.cluster.ClusterLease.close`.

        The lease ends with the call: a cancellation does not undo that.
        """
        ticket = self._ticket
        if ticket:
            inner, self._inner = self._inner, None
            try:
                if inner is not None:  # otherwise an earlier close() was interrupted after this line
                    await inner.close(discard=discard, error=error)
            finally:
                self._cluster._endings.end(self._core, self._entry, ticket, error, self.since)
                self._ticket = 0  # last: if interrupted before it, close() can be called again

    async def __aenter__(self) -> C:
        return self._given()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(error=error)


class ClusterLeaseRequest(AskedLease[AsyncClusterLease[C], C]):
    """``await cluster.lease()`` returns a lease; ``async with cluster.lease() as connection`` gives the connection."""

    __slots__ = ()
