"""Parts for the clusters of adapters: leases of a node's pool, and context managers around a cluster's lease."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..errors import UsageError
from ._shell import DEFAULT

__all__ = ("AsyncLeaseBlock", "AsyncNodeLease", "LeaseBlock", "NodeLease")

C = TypeVar("C")
T = TypeVar("T")
M = TypeVar("M")


def _nothing(connection: Any, error: BaseException | None = None) -> None:
    """Do nothing: the default of a callback."""


async def _nothing_async(connection: Any) -> None:
    """Do nothing: the default of a callback."""


class NodeLease(Generic[C]):
    """What :meth:`NodePool.lease` returns: a connection of one node's pool, and how to return it.

    ``release`` returns the connection to its pool. ``discard`` is called before it if the connection must not be used
    again. ``note`` is called first, with the connection and the error of the block that used it, if there was one.
    """

    __slots__ = ("_discard", "_note", "_release", "connection")

    def __init__(
        self,
        connection: C,
        release: Callable[[C], object] = _nothing,
        discard: Callable[[C], object] = _nothing,
        note: Callable[[C, BaseException], object] = _nothing,
    ) -> None:
        self.connection = connection
        self._release = release
        self._discard = discard
        self._note = note

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection. ``discard``: it must not be used again. ``error``: an error of its use."""
        if error is not None:
            self._note(self.connection, error)
        if discard:
            self._discard(self.connection)
        self._release(self.connection)


class AsyncNodeLease(Generic[C]):
    """Like :class:`NodeLease`, for an :class:`AsyncCluster`: ``release`` and ``discard`` are coroutine functions."""

    __slots__ = ("_discard", "_note", "_release", "connection")

    def __init__(
        self,
        connection: C,
        release: Callable[[C], Awaitable[object]] = _nothing_async,
        discard: Callable[[C], Awaitable[object]] = _nothing_async,
        note: Callable[[C, BaseException], object] = _nothing,
    ) -> None:
        self.connection = connection
        self._release = release
        self._discard = discard
        self._note = note

    async def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection; see :meth:`NodeLease.close`."""
        if error is not None:
            self._note(self.connection, error)
        if discard:
            await self._discard(self.connection)
        await self._release(self.connection)


class _Block(Generic[M]):
    """The state that both kinds of blocks have in common."""

    __slots__ = ("_asked", "_cluster", "_entered", "_inner", "_inside", "_lease")

    def __init__(
        self,
        cluster: Any,
        inside: Callable[[Any], M],
        *,
        timeout: float | None = None,
        role: str | None = None,
        key: Hashable = None,
    ) -> None:
        self._cluster = cluster
        self._inside = inside
        self._asked: dict[str, Any] = {"timeout": DEFAULT if timeout is None else timeout, "role": role, "key": key}
        self._entered = threading.Lock()
        self._lease: Any
        self._inner: M

    def _enter(self) -> None:
        if not self._entered.acquire(False):
            raise self._cluster._translated(
                UsageError(f"{self._cluster.name}: this block object is already in use by another block")
            )

    def _exit(self) -> tuple[Any, M]:
        lease, inner = self._lease, self._inner
        self._entered.release()
        return lease, inner


class LeaseBlock(_Block[AbstractContextManager[T]]):
    """A ``with`` block on a connection of a :class:`Cluster`, with a context manager of the driver inside.

    The lease starts when the block is entered, not when this object is created, and ends after the inner context
    manager. The node is judged by the error that leaves the inner context manager, for example a failed commit.

    ``inside`` is called with the connection and returns the inner context manager. The block gets what that one gives
    (with ``contextlib.nullcontext``, the connection itself). ``timeout`` in seconds; None: ``acquire_timeout``.
    ``role``, ``key`` and errors as :meth:`Cluster.lease`. Use one object for one block in one thread; UsageError for a
    block inside or beside another one.
    """

    __slots__ = ()

    def __enter__(self) -> T:
        self._enter()
        try:
            lease = self._lease = self._cluster.lease(**self._asked)
            try:
                inner = self._inner = self._inside(lease.connection)
                return inner.__enter__()
            except BaseException as error:
                lease.close(error=error)
                raise
        except BaseException:
            self._entered.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, inner = self._exit()
        try:
            inner.__exit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            lease.close(error=error)


class AsyncLeaseBlock(_Block[AbstractAsyncContextManager[T]]):
    """Like :class:`LeaseBlock`: an ``async with`` block on a connection of an :class:`AsyncCluster`, in one task."""

    __slots__ = ()

    async def __aenter__(self) -> T:
        self._enter()
        try:
            lease = self._lease = await self._cluster.lease(**self._asked)
            try:
                inner = self._inner = self._inside(lease.connection)
                return await inner.__aenter__()
            except BaseException as error:
                await lease.close(error=error)
                raise
        except BaseException:
            self._entered.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, inner = self._exit()
        try:
            await inner.__aexit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            await lease.close(error=error)
