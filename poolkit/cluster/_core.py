"""The decisions of a cluster: which node serves a request, and which requests wait.

Sans-IO, like the pool's core: no clock, lock, thread or await. The shell calls it under its lock and passes the time
as ``now``. Work for the shell goes into ``effects``. The invariant is NO-STRANDING: no request waits while a usable
node that it accepts has free capacity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from ..errors import PoolClosed, remembered
from ..policies.retire import NEVER
from ._choice import Choice
from ._config import ClusterConfig
from ._events import ClusterEvent, ClusterEventKind, NodeState
from ._health import Health
from ._node import Node
from ._parts import RECHECK_INTERVAL, Do, Effect, Made, NodeEntry, NodeRequest
from ._queue import RequestQueue
from ._roles import Roles
from ._tiers import Tiers

__all__ = ("ClusterCore", "Do", "Effect", "NodeEntry", "NodeRequest")

USABLE, PROBING, EJECTED, DRAINING = NodeState.USABLE, NodeState.PROBING, NodeState.EJECTED, NodeState.DRAINING


class ClusterCore:
    """The state of a cluster and its events. Not thread-safe: the shell holds its lock around every call.

    Its parts decide: ``requests`` which request is served next, ``choice`` by which node, ``health`` which nodes get
    requests, ``roles`` which role a node has, ``tiering`` to which tier it belongs.
    """

    def __init__(self, name: str, config: ClusterConfig, random: Callable[[], float], *, asks_roles: bool) -> None:
        self.name = name
        self.config = config
        self.random = random
        self.asks_roles = asks_roles
        self.balancer = config.balancer()
        self.entries: dict[str, NodeEntry] = {}
        self.draining: list[NodeEntry] = []  # removed, but their leases have not ended
        self.effects: deque[Effect] = deque()
        self.closed = self.stale = False
        self.due = self.find_at = NEVER  # when tick() is to be called; when the discovery is due
        self.timeouts = 0
        self._tickets = 0
        self.requests = RequestQueue(self)
        self.choice = Choice(self)
        self.roles = Roles(self)
        self.health = Health(self)
        self.tiering: Tiers | None = None  # None: nodes do not move between tiers

    def inherit(self, old: ClusterCore) -> None:
        """Continue with the nodes of a former core. Its leases, requests and probes are gone, because its process or
        event loop has ended.
        """
        self.closed = old.closed
        for entry in (*old.entries.values(), *old.draining):
            entry.tickets.clear()
            entry.leases = 0
            entry.asking = False
            if entry.state is PROBING:  # its probe is gone
                entry.state, entry.until = EJECTED, -NEVER
                self.due = -NEVER
        self.entries, self.tiering = old.entries, old.tiering
        self.choice.inherit(old.choice)
        if self.tiering is not None:
            self.tick_at(self.tiering.due)

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
            self.roles.ask(now, unknown_only=True)
            self.roles.search(now, request.role)
        entry = self.choice.choose(request, now)
        if entry is not None:
            request.outcome = entry  # before assign(): after an interrupt, abandon() frees what the outcome names
            entry.assign(request.ticket)
        elif self.requests.must_fail(request, now):
            request.outcome = self.requests.no_node(request)
        else:
            self.requests.add(request)
            self.tick_at(now + RECHECK_INTERVAL)

    def abandon(self, request: NodeRequest, now: float, *, timed_out: bool = False) -> None:
        """Remove the request of a caller that has given up, and free the capacity that it was assigned."""
        self.timeouts += timed_out
        outcome = request.outcome
        self.requests.remove(request)
        if isinstance(outcome, NodeEntry):
            self.give_up(outcome, request.ticket, now)
        request.outcome = None

    # -- leases -------------------------------------------------------------------------------------------------------

    # An interrupted call may be repeated for the same lease. A ticket that is no longer assigned is ignored.

    def give_up(self, entry: NodeEntry, ticket: int, now: float) -> None:
        """Free the capacity of a request that did not use it, without judging the node."""
        if entry.unassign(ticket) and self.requests.queues:
            self.requests.serve_node(entry, now)

    def suspended(self, entry: NodeEntry, ticket: int, now: float) -> None:
        """Free the capacity of a request that found the node's pool suspended: it gets none until that is over."""
        self.choice.pausing = True
        self.give_up(entry, ticket, now)

    def succeeded(self, entry: NodeEntry, ticket: int, duration: float, now: float) -> None:
        """End a lease that had no error, or none that is the node's fault."""
        if entry.failures or entry.ejections:
            self.health.recovered(entry, now)
        self._ended(entry, ticket, duration, False, now)

    def failed(self, entry: NodeEntry, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """End a lease that could not be opened or whose connection broke, and count a failure of the node."""
        self.health.count_failure(entry, error, now)
        self._ended(entry, ticket, duration, True, now)

    def wrong_server(self, entry: NodeEntry, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """End a lease whose server does not have the expected role, and look up the roles of all nodes again."""
        entry.last_error = remembered(error)
        if self.asks_roles:
            self.roles.note(entry, None, now)
            self.roles.ask(now)
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

    # -- time, probes, roles ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do the work that is due at ``now``: probes, role lookups, tiers, the queue."""
        self.due = self.find_at
        self.health.probe_due(now)
        if self.asks_roles and self.entries:
            self.roles.search(now)
            self.roles.ask(now, older_than=self.config.role_interval)
        if self.tiering is not None:
            if now >= self.tiering.due:
                self._look_at_tiers(self.tiering, now)
            self.tick_at(self.tiering.due)
        if self.requests.queues:
            self.requests.settle(now)
        if self.requests.queues:
            self.tick_at(now + RECHECK_INTERVAL)

    def _look_at_tiers(self, tiering: Tiers, now: float) -> None:
        moved = tiering.look(self.entries.values(), now)
        for entry, before in moved:
            self.emit(ClusterEventKind.NODE_MOVED, now, entry, detail=f"{before} to {tiering.name_of(entry)}")
        if moved:
            self.requests.settle(now)  # a node that moved up may have more capacity

    def tick_at(self, at: float) -> None:
        """Ask for a tick not later than ``at``."""
        self.due = min(self.due, at)

    def find_again(self, at: float) -> None:
        """Call the discovery at the time ``at``."""
        self.find_at = at
        self.tick_at(at)

    def probed(self, entry: NodeEntry, error: BaseException | None, role: str | None, now: float) -> None:
        """Record the end of a probe, which succeeded if ``error`` is None."""
        self.health.probed(entry, error, role, now)

    def pool_changed(self, now: float) -> None:
        """Call after a node's pool was suspended or resumed."""
        self.health.probe_due(now)
        self.requests.settle(now)

    def role_found(self, entry: NodeEntry, error: BaseException | None, role: str | None, now: float) -> None:
        """Record the result of a lookup of the node's role."""
        self.roles.answered(entry, now)
        if error is not None:
            self.health.count_failure(entry, error, now)
        elif entry.state is USABLE:
            self.roles.note(entry, role, now)
        self.requests.settle(now)
        self.roles.search(now)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def update(self, nodes: Iterable[Node], made: Mapping[str, Made], now: float) -> None:
        """Replace the nodes. Nodes that stay keep their connections. ``made`` has the pool and the capacity of each
        node that is new or has another endpoint.
        """
        wanted = {node.name: node for node in nodes}
        first = not self.entries
        entries: dict[str, NodeEntry] = {}
        new: list[NodeEntry] = []
        for name, node in wanted.items():
            old = self.entries.get(name)
            if name not in made and old is not None:
                entries[name] = old
                if old.node != node:
                    if old.node.role != node.role:
                        old.known_role = node.role
                    old.node, old.weight = node, node.weight
                    if not self.config.tiers:
                        old.tier = node.priority
                    self.emit(ClusterEventKind.NODE_CHANGED, now, old, detail=f"weight {node.weight:g}")
                continue
            entry = entries[name] = NodeEntry(node, made[name], now, USABLE)
            new.append(entry)
            self.emit(ClusterEventKind.NODE_ADDED, now, entry)
            if not first:
                self.health.probe(entry)
        gone = [old for name, old in self.entries.items() if entries.get(name) is not old]
        self.entries = entries
        if self.config.tiers:
            self.tiering = self.tiering or Tiers(self.config, now)
            self.tiering.place(entries.values(), new, now)
            self.tick_at(self.tiering.due)
        in_tiers = bool(self.config.tiers) or len({node.priority for node in wanted.values()}) > 1
        self.choice.grouped = in_tiers or bool(self.config.zone)
        self.choice.pausing = True  # choose() looks whether it is so
        for old in gone:
            old.state = DRAINING
            self.draining.append(old)
            self.emit(ClusterEventKind.NODE_REMOVED, now, old)
            self.effects.append(Effect(Do.DRAIN, old))
        self.requests.settle(now)

    def drained(self, entry: NodeEntry) -> None:
        """Forget a removed node that is drained."""
        if entry in self.draining:
            self.draining.remove(entry)

    def emit(
        self,
        kind: ClusterEventKind,
        now: float,
        entry: NodeEntry | None = None,
        error: BaseException | None = None,
        detail: str = "",
    ) -> None:
        """Queue an event for the listeners."""
        event = ClusterEvent(kind, self.name, now, entry.name if entry else "", error, detail)
        self.effects.append(Effect(Do.EMIT, event=event))

    # -- the whole cluster --------------------------------------------------------------------------------------------

    def repair(self, now: float) -> None:
        """Complete a step that an exception interrupted between any two bytecodes, then check every node and request.

        Three facts are reliable at any point: ``tickets`` of each node, the outcome of each request, and which
        requests are in a queue. Everything else is derived from them.
        """
        self.requests.repair()
        for entry in (*self.entries.values(), *self.draining):
            entry.leases = len(entry.tickets)
        for entry in self.entries.values():
            self.health.eject_if_due(entry, entry.last_error, now)
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
