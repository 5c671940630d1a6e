"""The requests that wait for a node of a cluster. Sans-IO, like all of the core."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ..errors import describe
from ._events import NodeState, NoNodeAvailable
from ._parts import Do, Effect, NodeEntry, NodeRequest, has_role

if TYPE_CHECKING:
    from ._core import ClusterCore

__all__ = ("RequestQueue",)

USABLE, PROBING = NodeState.USABLE, NodeState.PROBING


class RequestQueue:
    """Waiting requests by role, each role's in order of arrival, and which of them a node can serve."""

    def __init__(self, core: ClusterCore) -> None:
        self.queues: dict[str | None, OrderedDict[NodeRequest, None]] = {}
        self._core = core

    def add(self, request: NodeRequest) -> None:
        """Add a request. One that has waited before keeps its position."""
        queue = self.queues.setdefault(request.role, OrderedDict())
        last = next(reversed(queue)) if queue else None
        queue[request] = None
        request.queued = True
        if last is not None and last.ticket > request.ticket:  # it has waited before: move it ahead of later tickets
            for other in [one for one in queue if one.ticket > request.ticket]:
                queue.move_to_end(other)

    def must_fail(self, request: NodeRequest, now: float) -> bool:
        """Return whether no node can serve the request, and none is expected to within ``wait_for_node``."""
        if now < request.since + self._core.config.wait_for_node and not request.tried:
            self._core.tick_at(request.since + self._core.config.wait_for_node)
            return False
        for entry in self._core.entries.values():
            if entry in request.tried or entry.refuses():
                continue
            if entry.state in (USABLE, PROBING) and (has_role(entry, request.role) or entry.asking):
                return False
        return True

    def no_node(self, request: NodeRequest) -> NoNodeAvailable:
        """Return the error for a request that no node can serve, with the state of each node."""
        errors = {entry.name: entry.last_error for entry in self._core.entries.values()}
        states = []
        for entry in self._core.entries.values():
            text = f"{entry.name} ({entry.state.value}{', suspended' if entry.suspended() else ''}"
            if request.role is not None:
                text += f", {entry.known_role or 'role unknown'}"
            states.append(text + f"): {describe(entry.last_error) if entry.last_error else 'no error'}")
        wanted = f" of role {request.role!r}" if request.role is not None else ""
        return NoNodeAvailable(f"{self._core.name}: no usable node{wanted}: " + "; ".join(states), errors)

    def remove(self, request: NodeRequest) -> None:
        """Remove a request. Does nothing if it is not queued."""
        request.queued = False
        queue = self.queues.get(request.role)
        if queue is not None:
            queue.pop(request, None)
            if not queue:
                del self.queues[request.role]

    def serve(self, request: NodeRequest, outcome: NodeEntry | BaseException) -> None:
        """Set the outcome and wake the caller. :meth:`repair` can finish this from any point, given this order."""
        request.outcome = outcome
        if isinstance(outcome, NodeEntry):
            outcome.assign(request.ticket)
        self._core.effects.append(Effect(Do.WAKE, request=request))
        self.remove(request)

    def in_order(self) -> list[NodeRequest]:
        """Return all waiting requests, oldest first."""
        return sorted((request for queue in self.queues.values() for request in queue), key=lambda one: one.ticket)

    def serve_node(self, entry: NodeEntry, now: float) -> None:
        """While the node has free capacity, assign it to the oldest request that accepts the node."""
        while self.queues and entry.state is USABLE and entry.free:
            oldest: NodeRequest | None = None
            for role, queue in self.queues.items():
                if has_role(entry, role):
                    first = next((request for request in queue if entry not in request.tried), None)
                    if first is not None and (oldest is None or first.ticket < oldest.ticket):
                        oldest = first
            if oldest is None:
                return
            self.serve(oldest, entry)

    def settle(self, now: float) -> None:
        """Call after any change to the nodes: serve requests that can be served, fail those that never can be."""
        if not self.queues:
            return
        for entry in self._core.entries.values():
            self.serve_node(entry, now)
        for request in self.in_order():
            if self.must_fail(request, now):
                self.serve(request, self.no_node(request))

    def repair(self) -> None:
        """Complete an interrupted step: wake the callers that have an outcome, and put the others in order."""
        for role, queue in list(self.queues.items()):
            for request in sorted(queue, key=lambda one: one.ticket):
                if request.outcome is None:
                    request.queued = True
                    queue.move_to_end(request)
                else:
                    self.serve(request, request.outcome)
            if not queue:
                self.queues.pop(role, None)

    def check(self) -> None:
        """Raise AssertionError unless the queues are in order."""
        for role, queue in self.queues.items():
            tickets = [request.ticket for request in queue]
            assert tickets == sorted(tickets), f"the queue of role {role} is out of order"
            assert all(request.queued and request.outcome is None for request in queue)
