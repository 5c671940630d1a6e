"""Whether a queue is overloaded, and the order of service while it is.

A pool without the setting has a :class:`NoOverload`. Serving a caller costs nothing here. The evidence comes from the
callers that give up, and from the number of callers that have left the queue since the last one gave up. The arithmetic
is in :mod:`poolkit.policies.overload`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config import OverloadConfig
from ..events import EventKind
from ..policies.classes import CallerClass
from ..policies.overload import Evidence, Trial
from .endpoints import Endpoint
from .queue import ArrivalOrder, FifoQueue, NewestFirst, Request

if TYPE_CHECKING:
    from .context import Context

__all__ = ("NoOverload", "Overload", "OverloadRule", "rule_of")


class NoOverload:
    """Callers are always served in order of arrival."""

    config: OverloadConfig | None = None
    refuses = False
    """Whether callers that have waited too long are refused."""
    words: tuple[str, ...] = ()
    """One description for each queue that is overloaded now."""

    def knows(self, line: FifoQueue) -> bool:
        """Whether the queue is overloaded."""
        return False

    def gave_up(self, request: Request, now: float) -> None:
        """A caller gave up while it waited."""

    def gave_up_lease(self, endpoint: Endpoint, one: CallerClass | None, now: float) -> None:
        """A caller gave up during its lease: it was cancelled; the server did not fail."""

    def tick(self, now: float) -> None:
        """End the overload of queues for which it is over."""

    def late(self, now: float) -> Request | None:
        """Return a caller that has waited longer than ``max_wait``, or None."""
        return None

    def end_all(self) -> None:
        """Serve all queues in order of arrival again."""


class OverloadRule:
    """Puts a queue in the order :class:`~.queue.NewestFirst` while it is overloaded."""

    __slots__ = ("_core", "_lines", "config")

    def __init__(self, core: Context, config: OverloadConfig) -> None:
        self._core = core
        self.config = config
        self._lines: dict[FifoQueue, tuple[Endpoint, CallerClass | None]] = {}  # the overloaded queues

    @property
    def refuses(self) -> bool:
        """Whether callers that have waited too long are refused."""
        return self.config.max_wait is not None

    def knows(self, line: FifoQueue) -> bool:
        """Whether the queue is overloaded."""
        return line in self._lines

    def gave_up(self, request: Request, now: float) -> None:
        """A caller gave up while it waited."""
        self._note(request.endpoint, request.caller_class, now - request.since, now)

    def gave_up_lease(self, endpoint: Endpoint, one: CallerClass | None, now: float) -> None:
        """A caller gave up during its lease: it was cancelled; the server did not fail."""
        line = endpoint.queue.line_of(one)
        if line.requests:  # otherwise no other caller could have used the connection
            self._note(endpoint, one, None, now)

    def _note(self, endpoint: Endpoint, one: CallerClass | None, age: float | None, now: float) -> None:
        line, config = endpoint.queue.line_of(one), self.config
        left = line.waits - len(line)
        evidence = line.evidence
        if evidence is None:
            evidence = line.evidence = Evidence(left - 1, line.queued_at)
        servers = self._servers(endpoint, one)
        overloaded = line in self._lines
        at_head = False
        if age is not None and not overloaded:
            oldest = next(iter(line.requests), None)
            at_head = oldest is not None and now - age < oldest.since + evidence.hold(servers)
        evidence.gave_up(age, left, line.queued_at, now, config.interval, at_head=at_head)
        if not overloaded:
            places = self._places(endpoint, one)
            if not evidence.begins(now, places, interval=config.interval, share=config.give_up_share):
                return
            self._lines[line] = endpoint, one
            evidence.trial = Trial()
            core = self._core
            core.counts.overloads += 1
            core.touched[endpoint] = None
            core.want(now + config.interval)
            core.tell(EventKind.OVERLOAD_BEGAN, now, detail=self._words(one, evidence))
        self._set_ages(line, evidence, servers)

    def _set_ages(self, line: FifoQueue, evidence: Evidence, servers: int) -> None:
        order = line.order
        if not isinstance(order, NewestFirst):
            order = NewestFirst(line.requests)
            line.follow(order)
        order.young, order.patient = evidence.young(servers), evidence.patient

    def _servers(self, endpoint: Endpoint, one: CallerClass | None) -> int:
        """Return how many leases of these callers run at once."""
        return endpoint.live * endpoint.streams if one is None else one.held

    def _places(self, endpoint: Endpoint, one: CallerClass | None) -> int:
        """Return how many leases of these callers run at once when no caller gives up.

        Connections that are being closed, or opened to replace lost ones, count. Callers that give up together lose
        their connections. Without those, leases would seem shorter than they are, and a queue behind one long batch of
        leases would count as overloaded.
        """
        return endpoint.size * endpoint.streams if one is None else one.held

    def _words(self, one: CallerClass | None, evidence: Evidence) -> str:
        share = evidence.lost / evidence.ended if evidence.ended else 0.0
        who = "callers" if one is None else f"callers of class {one.name!r}"
        return f"{share:.0%} of the {who} that waited gave up"

    @property
    def words(self) -> tuple[str, ...]:
        """One description for each queue that is overloaded now."""
        if not self._lines:
            return ()
        lines = self._lines.copy().items()
        return tuple(self._words(one, line.evidence) for line, (_, one) in lines if line.evidence is not None)

    def tick(self, now: float) -> None:
        """End the overload of queues for which it is over. Schedule the next tick if any queue is still overloaded."""
        config = self.config
        for line, (endpoint, one) in list(self._lines.items()):
            evidence = line.evidence
            assert evidence is not None
            queued_at = line.queued_at if line.requests else math.inf
            evidence.note(line.waits - len(line), queued_at, now)
            servers = self._servers(endpoint, one)
            if evidence.ends(now, queued_at, servers, interval=config.interval, share=config.give_up_share):
                self._end(line, endpoint)
                self._core.tell(EventKind.OVERLOAD_ENDED, now)
            elif evidence.trial is not None:
                evidence.trial.choose(now, evidence.hold(servers))
                self._set_ages(line, evidence, servers)
        if self._lines:
            self._core.want(now + config.interval)

    def _end(self, line: FifoQueue, endpoint: Endpoint) -> None:
        line.follow(ArrivalOrder(line.requests))
        if line.evidence is not None:
            line.evidence.trial = None
        del self._lines[line]
        self._core.touched[endpoint] = None

    def end_all(self) -> None:
        """Serve all queues in order of arrival again."""
        for line, (endpoint, _) in list(self._lines.items()):
            self._end(line, endpoint)

    def late(self, now: float) -> Request | None:
        """Return a caller that has waited longer than ``max_wait``, or None."""
        most = self.config.max_wait
        for line in self._lines:
            oldest = next(iter(line.requests), None)
            if most is not None and oldest is not None and now - oldest.since > most:
                return oldest
        return None


Overload = NoOverload | OverloadRule
"""Both have the same methods."""


def rule_of(core: Context, config: OverloadConfig | None) -> Overload:
    """Return the part for these settings."""
    return NoOverload() if config is None else OverloadRule(core, config)
