"""The decisions of a cluster: which node serves a request, and which requests wait.

Sans-IO, like the pool's core: no clock, lock, thread or await. The shell calls it under its lock and passes the time
as ``now``. Work for the shell goes into ``effects``. The invariant is NO-STRANDING: no request waits while a usable
node that it accepts has free capacity.
"""

from __future__ import annotations

from ..errors import PoolClosed, remembered
from ..policies.hashing import rendezvous_order
from ..policies.retire import NEVER
from ._events import NodeState
from ._health import RECHECK_INTERVAL, Health
from ._parts import Do, Effect, NodeEntry, NodeRequest, failure_streaks, has_role

__all__ = ("ClusterCore", "Do", "Effect", "NodeEntry", "NodeRequest")

USABLE = NodeState.USABLE


class ClusterCore(Health):
    """Nodes and leases. Not thread-safe: the shell holds its lock around every call."""

    # -- requests -----------------------------------------------------------------------------------------------------

    def acquire(self, request: NodeRequest, now: float) -> None:
        """Serve the request, fail it or queue it; one that has a ticket keeps its position in the queue."""
        request.outcome = None
        if self.closed:
            request.outcome = PoolClosed(f"{self.name}: the cluster is closed")
            return
        if not request.ticket:
            self._tickets += 1
            request.ticket = self._tickets
        if self.asks_roles and request.role is not None:
            self._ask_roles(now, unknown_only=True)
            self._search_role(now, request.role)
        entry = self._choose(request, now)
        if entry is not None:
            request.outcome = entry  # before assign(): after an interrupt, abandon() frees what the outcome names
            entry.assign(request.ticket)
        elif self.requests.must_fail(request, now):
            request.outcome = self.requests.no_node(request)
        else:
            self.requests.add(request)
            self.tick_at(now + RECHECK_INTERVAL)

    def _choose(self, request: NodeRequest, now: float) -> NodeEntry | None:
        role, tried = request.role, request.tried
        free = [
            m for m in self.entries.values()
            if m.state is USABLE and (m.leases < m.min_capacity or m.leases < m.capacity())
        ]  # fmt: skip
        if role is not None or tried:
            free = [m for m in free if m not in tried and has_role(m, role)]
        if not free:
            return None
        if len(free) > 1 and (self.grouped or self.failing or role is not None):
            free = self._group(free, request, now)
        if len(free) > 1 and self.starting:
            free = self._ready(free, now)
        if len(free) == 1:
            return free[0]
        if request.key is not None:
            order = rendezvous_order(request.key, [entry.name for entry in free])
            return self.entries[order[0]]
        return self.balancer.choose(free, now, self.random)

    def _group(self, free: list[NodeEntry], request: NodeRequest, now: float) -> list[NodeEntry]:
        """The entries of the group that serves now. Groups are ordered by role, failures, tier and zone."""
        wanted = request.role.removeprefix("prefer-") if request.role else None
        limit, zone = self.config.eject_after or NEVER, self.config.zone
        if self.failing:
            self.failing = any(entry.failures >= limit for entry in self.entries.values())
        if wanted is None and not self.grouped and not self.failing:
            return free

        def rank(entry: NodeEntry) -> tuple[bool, bool, int, bool]:
            node = entry.node
            elsewhere = bool(zone) and node.zone != zone
            return (
                wanted is not None and entry.known_role != wanted,
                entry.failures >= limit,
                entry.tier,
                elsewhere,
            )

        groups: dict[tuple[bool, bool, int, bool], list[NodeEntry]] = {}
        for entry in free:
            groups.setdefault(rank(entry), []).append(entry)
        order = sorted(groups)
        for place, key in enumerate(order[:-1]):
            # a group that has lost too many of its nodes passes a share of its requests to the next group
            everybody = [m for m in self.entries.values() if request.accepts(m) and (m.tier, bool(zone) and
                         m.node.zone != zone) == key[2:]]  # fmt: skip
            well = sum(m.state is USABLE for m in everybody) / (len(everybody) * self.config.spill_below)
            if key[:2] != order[place + 1][:2] or well >= 1 or self.random() < well:
                return groups[key]
        return groups[order[-1]]

    def _ready(self, free: list[NodeEntry], now: float) -> list[NodeEntry]:
        """Leave out nodes in slow start at random, with a probability that falls as the start proceeds."""
        ready = []
        for entry in free:
            if entry.slow:
                ramp = (now - entry.since) / self.config.slow_start
                if ramp >= 1:
                    entry.slow = False
                elif self.random() >= max(ramp, 0.05):
                    continue
            ready.append(entry)
        self.starting = any(entry.slow for entry in self.entries.values())
        return ready or free

    def abandon(self, request: NodeRequest, now: float, *, timed_out: bool = False) -> None:
        """The caller has given up: free the capacity that its request was assigned."""
        self.timeouts += timed_out
        outcome = request.outcome
        self.requests.remove(request)
        if isinstance(outcome, NodeEntry):
            self.give_up(outcome, request.ticket, now)
        request.outcome = None

    # -- leases -------------------------------------------------------------------------------------------------------

    # An interrupted call may be repeated for the same lease. A ticket that is not assigned any more is ignored.

    def give_up(self, entry: NodeEntry, ticket: int, now: float) -> None:
        """Free the capacity of a request that did not use it, without judging the node."""
        if entry.unassign(ticket) and self.requests.queues:
            self.requests.serve_node(entry, now)

    def succeeded(self, entry: NodeEntry, ticket: int, duration: float, now: float) -> None:
        """A lease has ended without an error that is the node's fault."""
        if entry.failures:
            entry.failures, entry.failure_streak = 0, next(failure_streaks)
        if entry.ejections and entry.state is USABLE and now - entry.since > self.config.eject_max:
            entry.ejections = 0
        self._ended(entry, ticket, duration, False, now)

    def failed(self, entry: NodeEntry, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """A lease could not be opened, or its connection broke: count a failure of the node."""
        self._count_failure(entry, error, now)
        self._ended(entry, ticket, duration, True, now)

    def wrong_server(self, entry: NodeEntry, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """The node answered that it does not have the expected role: look up the roles of all nodes again."""
        entry.last_error = remembered(error)
        if self.asks_roles:
            self._role(entry, None, now)
            self._ask_roles(now)
        self._ended(entry, ticket, duration, False, now)
        self.requests.settle(now)

    def _ended(self, entry: NodeEntry, ticket: int, duration: float, failed: bool, now: float) -> None:
        tickets = entry.tickets
        if ticket not in tickets:
            return
        tickets.discard(ticket)
        entry.leases = len(tickets)
        entry.served += 1
        entry.busy += duration
        self.balancer.done(entry, duration, failed, now)
        if self.requests.queues:
            self.requests.serve_node(entry, now)

    def repair(self, now: float) -> None:
        """Complete a step that an exception interrupted between any two bytecodes, then check every node and request.

        Three facts are reliable at any point: ``tickets`` of each node, the outcome of each request, and which
        requests are in a queue. Everything else is derived from them.
        """
        self.requests.repair()
        for entry in (*self.entries.values(), *self.draining):
            entry.leases = len(entry.tickets)
        for entry in self.entries.values():
            self._eject_if_due(entry, entry.last_error, now)
        self.tick_at(now)
        self.requests.settle(now)

    def close(self, now: float) -> None:
        """Refuse new requests and fail those that wait."""
        self.closed = True
        for request in self.requests.in_order():
            self.requests.serve(request, PoolClosed(f"{self.name}: the cluster was closed while this caller waited"))

    def check(self) -> None:
        """Raise AssertionError unless NO-STRANDING holds, lease counts match tickets and queues are in order."""
        for entry in (*self.entries.values(), *self.draining):
            assert entry.leases == len(entry.tickets), f"{entry}: its count differs from {len(entry.tickets)} tickets"
            if entry.state is USABLE and entry.free:
                stranded = [request for request in self.requests.in_order() if request.accepts(entry)]
                assert not stranded, f"NO-STRANDING: {len(stranded)} requests wait while {entry} has free capacity"
        self.requests.check()
