"""Leases of a cluster: the right to use one connection of one node until closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import NotLeased
from ._core import ClusterCore, Member
from ._node import Node

if TYPE_CHECKING:
    from ._async import AsyncCluster
    from ._threads import Cluster

__all__ = ("AsyncClusterLease", "ClusterLease", "ClusterLeaseRequest")

C = TypeVar("C")


class _LeaseBase(Generic[C]):
    """What both kinds of leases are; closing one is theirs."""

    __slots__ = ("__weakref__", "_cluster", "_core", "_inner", "_member", "_ticket", "connection", "since")

    connection: C
    """The driver's own object; not to be used after :meth:`close`."""
    since: float
    """When it was asked of the node, by the cluster's clock, in seconds."""

    def __init__(self, cluster: Cluster[C] | AsyncCluster[C], member: Member, since: float) -> None:
        self._ticket = 0  # under which it has its place; 0: none (yet)
        self._inner: Any = None
        self._cluster = cluster
        self._core: ClusterCore = cluster._core
        self._member = member
        self.since = since

    @property
    def node(self) -> Node:
        """The node that serves it."""
        return self._member.node

    def _given(self) -> C:
        """The connection. Raises :class:`~poolkit.NotLeased` if the lease is closed."""
        if self._inner is None:
            raise self._cluster._translated(NotLeased(f"{self._cluster.name}: the lease is closed"))
        return self.connection

    def __del__(self) -> None:
        if getattr(self, "_ticket", 0):  # nothing at all if interrupted while it was made
            self._cluster._dropped(self._core, self._member, self._ticket)

    def __repr__(self) -> str:
        state = "closed" if self._inner is None else repr(self.connection)
        return f"<{type(self).__name__} of {self._cluster.name!r}, {self._member.name}: {state}>"


class ClusterLease(_LeaseBase[C]):
    """The right to use one connection of one node until closed. As :class:`poolkit.Lease`."""

    __slots__ = ()

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Give the connection back. ``discard``: close it instead; ``error``: what happened while using it, which the
        connector's ``classify`` judges for the connection and for the node. Twice is a no-op.
        """
        ticket = self._ticket
        if ticket:
            inner, self._inner = self._inner, None
            try:
                if inner is not None:  # else a close was cut short after this
                    inner.close(discard=discard, error=error)
            finally:
                self._cluster._end(self._core, self._member, ticket, error, self.since)
                self._ticket = 0  # last: whoever was interrupted before it can close again

    def __enter__(self) -> C:
        return self._given()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(error=error)


class AsyncClusterLease(_LeaseBase[C]):
    """The right to use one connection of one node until closed. As :class:`poolkit.AsyncLease`."""

    __slots__ = ()

    async def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Give the connection back; see :meth:`poolkit.cluster.ClusterLease.close`. The lease has ended when this is
        called: a cancellation cannot undo that.
        """
        ticket = self._ticket
        if ticket:
            inner, self._inner = self._inner, None
            try:
                if inner is not None:  # else a close was cut short after this
                    await inner.close(discard=discard, error=error)
            finally:
                self._cluster._end(self._core, self._member, ticket, error, self.since)
                self._ticket = 0  # last: whoever was interrupted before it can close again

    async def __aenter__(self) -> C:
        return self._given()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(error=error)


class ClusterLeaseRequest(Generic[C]):
    """``await cluster.lease()`` gives the lease, ``async with cluster.lease() as connection`` the connection."""

    __slots__ = ("_ask", "_lease")

    def __init__(self, ask: Callable[[], Awaitable[AsyncClusterLease[C]]]) -> None:
        self._ask = ask
        self._lease: AsyncClusterLease[C] | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClusterLease[C]]:
        return self._ask().__await__()

    async def __aenter__(self) -> C:
        self._lease = lease = await self._ask()
        return lease.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lease is not None:
            await self._lease.close(error=error)
