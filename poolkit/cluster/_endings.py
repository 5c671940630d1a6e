"""The end of a lease of a cluster: its capacity is free, and the node is judged by the error of the use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._log import logger
from ..connector import Verdict, default_classify
from ..errors import NotLeased
from ._core import ClusterCore, NodeEntry
from ._nodepool import engine_of

if TYPE_CHECKING:
    from ._shell import ClusterShell

__all__ = ("LeaseEndings",)

_FILES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""OSErrors about files that a block may raise; they say nothing about a connection."""


class LeaseEndings:
    """Ends the leases of one cluster. ``classify``: decides what an error means; None: the node's pool does."""

    def __init__(self, cluster: ClusterShell[Any], classify: Callable[[BaseException], Verdict] | None) -> None:
        self._cluster = cluster
        self._classify = classify

    def lease_of(self, connection: Any) -> Any:
        """Return the lease of a connection from ``acquire``. Raises NotLeased if there is none."""
        cluster = self._cluster
        lease = cluster._leases.pop(id(connection), None)
        if lease is None:
            raise cluster._translated(
                NotLeased(f"{cluster.name}: release() of a connection that is not leased from this cluster")
            )
        return lease

    def end(self, core: ClusterCore, entry: NodeEntry, ticket: int, error: BaseException | None, since: float) -> None:
        """Free the capacity of a lease that has ended, and judge the node by its error. Never waits."""
        cluster = self._cluster
        if core is not cluster._core:
            return  # a lease of the parent process, or of an event loop that has ended
        now = cluster._clock()
        spent = now - since
        if error is None or isinstance(error, _FILES):
            cluster._gate.post(core.succeeded, entry, ticket, spent, now)
        elif not isinstance(error, Exception):
            cluster._gate.post(core.give_up, entry, ticket, now)  # a cancellation says nothing about the node
        else:
            verdict = self._verdict(entry, error)
            if verdict is Verdict.RETIRE:
                cluster._gate.post(core.wrong_server, entry, ticket, error, spent, now)
            elif verdict is Verdict.KEEP:
                cluster._gate.post(core.succeeded, entry, ticket, spent, now)
            elif verdict is Verdict.DISCARD and not isinstance(error, TimeoutError):
                cluster._gate.post(core.give_up, entry, ticket, now)
            else:
                cluster._gate.post(core.failed, entry, ticket, error, spent, now)

    def _verdict(self, entry: NodeEntry, error: BaseException) -> Verdict:
        classify = self._classify or getattr(entry.pool, "classify", None)
        if classify is None:
            engine = engine_of(entry.pool)
            return default_classify(error) if engine is None else engine._driver.operations.verdict(error)
        try:
            verdict = classify(error)
        except Exception:
            logger.exception("%s: classify failed", self._cluster.name)
            return Verdict.DISCARD
        return verdict if isinstance(verdict, Verdict) else Verdict.DISCARD

    def dropped(self, core: ClusterCore, entry: NodeEntry, ticket: int) -> None:
        """Report a lease that was dropped without close(). Called by a finalizer, so it takes no lock: the next thread
        that takes the lock frees the capacity. Waiting callers are woken, so that one of them takes the lock.
        """
        cluster = self._cluster
        if core is not cluster._core:
            return  # a lease of the parent process, or of an event loop that has ended
        cluster._gate.inbox.append((core.give_up, (entry, ticket, cluster._clock())))
        cluster._driver.wake()
        try:
            waiting = [next(iter(queue)) for queue in core.requests.queues.values()]
        except (StopIteration, RuntimeError):  # none waits, or the queue is changing: then another thread has the lock
            return
        for request in waiting:
            if request.parker is not None:
                request.parker.wake()
