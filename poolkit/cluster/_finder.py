"""Calls the discovery of a cluster and applies its answers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._log import logger
from .._numbers import seconds
from ..errors import UsageError, describe, shown
from ..policies.retire import NEVER
from ..runtimes.base import AsyncParker, AsyncRuntime
from ..runtimes.threads import ThreadRuntime
from ._events import ClusterEventKind
from ._node import Node, checked_nodes
from .discovery import Discovery, Found, StaticDiscovery

if TYPE_CHECKING:
    from ._shell import ClusterShell

__all__ = ("Answer", "Finder", "checked", "look")

_THREADS = ThreadRuntime()

Answer = tuple[Found | None, BaseException | None]
"""The result of a call of ``find``, or its error."""


class Finder:
    """Calls the discovery of one cluster. ``found``: its last answer; None before the first one."""

    def __init__(self, cluster: ClusterShell[Any], nodes: Iterable[Node | str] | Discovery) -> None:
        self._cluster = cluster
        self.source = nodes if isinstance(nodes, Discovery) else StaticDiscovery(checked_nodes(nodes))
        seconds(f"{type(self.source).__name__}.interval", self.source.interval, above=True)
        self.found: Found | None = None
        self._complaint = ""

    def restart(self) -> None:
        """After the core was replaced: continue to call the discovery, if that had begun."""
        self._complaint = ""
        if self.found is not None and self.found.again is not None:
            self._cluster._core.find_again(-NEVER)

    def find_now(self) -> None:
        """Call ``find`` for the first time, in this thread. Raises what ``find`` raises."""
        self.take(checked(self.source, self.source.find(None)))

    async def find_first(self, runtime: AsyncRuntime, deadline: float) -> None:
        """Get the first answer, for which the first callers wait. Raises TimeoutError after the deadline."""
        cluster = self._cluster
        answers: list[Answer] = []
        parker = runtime.parker()
        if inspect.iscoroutinefunction(self.source.find):
            answers.append((checked(self.source, await self.source.find(None)), None))
        else:
            _THREADS.spawn(look, self.source, None, answers, parker)
            while not answers:
                left = deadline - cluster._clock()
                if left <= 0:
                    raise TimeoutError(f"{cluster.name}: the discovery did not answer within the timeout")
                await parker.wait(None if deadline == NEVER else left)
        found, error = answers[0]
        if error is not None:
            raise error
        assert found is not None
        if self.found is None:  # otherwise another caller got the answer first
            self.take(found)
            cluster._gate.keep_time()

    def take(self, found: Found) -> None:
        """Apply an answer and schedule the next call."""
        cluster = self._cluster
        old, self.found = self.found, found
        if not cluster._core.entries or old is None or found.nodes != old.nodes:
            cluster._members.replace(checked_nodes(found.nodes, type(self.source).__name__))
        self._complaint = ""
        cluster._gate.step(cluster._core.find_again, NEVER if found.again is None else cluster._clock() + found.again)

    def answered(self, found: Found | None, error: BaseException | None) -> None:
        """Handle the result of a call of ``find`` in the background."""
        cluster = self._cluster
        if cluster.closed:
            return
        try:
            if found is not None:
                self.take(found)
        except Exception as refused:  # noqa: BLE001  reported below
            error = refused
        if error is not None:
            self._failed(error)
        cluster._gate.keep_time()

    def _failed(self, error: BaseException) -> None:
        """Keep the nodes, and report the error once."""
        cluster = self._cluster
        text = describe(error)
        if text != self._complaint:  # log the same failure once, not at each attempt
            self._complaint = text
            logger.warning("%s: discovery failed; the nodes are unchanged: %s", cluster.name, text)
            cluster._gate.step(cluster._core.emit, ClusterEventKind.DISCOVERY_FAILED, cluster._clock(), None, error)
        cluster._gate.step(cluster._core.find_again, cluster._clock() + self.source.interval)


def look(source: Discovery, last: Found | None, answers: list[Answer], parker: AsyncParker) -> None:
    """Call ``find`` once, in a worker thread."""
    try:
        answers.append((checked(source, source.find(last)), None))
    except BaseException as error:  # noqa: BLE001  the cluster reports it; nobody else sees it in this thread
        answers.append((None, error))
    parker.wake()


def checked(source: Discovery, found: Any) -> Found:
    """Return what ``find`` has returned. Raises UsageError if that is no :class:`Found`."""
    if not isinstance(found, Found):
        right = "must be a Found (the last one, if nothing has changed)"
        raise UsageError(f"{type(source).__name__}.find() returned {shown(repr(found), 200)}: {right}")
    return found
