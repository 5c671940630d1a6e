"""The decisions of a cluster: which node a caller gets, and who waits.

Sans-IO, as the pool's core: no clock, lock, thread or await. Called under the shell's lock; ``now`` is an argument.
What is to be done is left in ``effects``. The rule that everything here keeps: no caller waits for whom a usable node
has a free place.
"""

from __future__ import annotations

from collections import OrderedDict

from ..errors import PoolClosed, describe, remembered
from ..policies.hashing import rendezvous_order
from ..policies.retire import NEVER
from ._events import NodeState, NoNodeAvailable
from ._health import VIGIL, Health
from ._parts import Caller, Do, Effect, Member, has_role, spells

__all__ = ("Caller", "ClusterCore", "Do", "Effect", "Member")

USABLE, PROBING = NodeState.USABLE, NodeState.PROBING


class ClusterCore(Health):
    """Nodes, queue, leases. Not thread-safe: the shell holds its lock around every call."""

    # -- callers ------------------------------------------------------------------------------------------------------

    def acquire(self, caller: Caller, now: float) -> None:
        """Somebody asks (again, if he has a ticket). His outcome is set, or he stands in the queue."""
        caller.outcome = None
        if self.closed:
            caller.outcome = PoolClosed(f"{self.name}: the cluster is closed")
            return
        if not caller.ticket:
            self._tickets += 1
            caller.ticket = self._tickets
        if self.asks_roles and caller.role is not None:
            self._ask_roles(now, unknown_only=True)
            self._search(now, caller.role)
        member = self._choose(caller, now)
        if member is not None:
            caller.outcome = member  # first: who is interrupted from here on gives the place back
            member.seat(caller.ticket)
        elif self._hopeless(caller, now):
            caller.outcome = self._no_node(caller)
        else:
            self._enqueue(caller)
            self._want(now + VIGIL)

    def _enqueue(self, caller: Caller) -> None:
        queue = self.queues.setdefault(caller.role, OrderedDict())
        last = next(reversed(queue)) if queue else None
        queue[caller] = None
        caller.queued = True
        if last is not None and last.ticket > caller.ticket:  # he has waited before: in front of those after him
            for other in [one for one in queue if one.ticket > caller.ticket]:
                queue.move_to_end(other)

    def _choose(self, caller: Caller, now: float) -> Member | None:
        role, tried = caller.role, caller.tried
        free = [
            m for m in self.members.values()
            if m.state is USABLE and (m.leases < m.least or m.leases < m.places())
        ]  # fmt: skip
        if role is not None or tried:
            free = [m for m in free if m not in tried and has_role(m, role)]
        if not free:
            return None
        if len(free) > 1 and (self.grouped or self.failing or role is not None):
            free = self._group(free, caller, now)
        if len(free) > 1 and self.starting:
            free = self._ready(free, now)
        if len(free) == 1:
            return free[0]
        if caller.key is not None:
            order = rendezvous_order(caller.key, [member.name for member in free])
            return self.members[order[0]]
        return self.balancer.choose(free, now, self.random)

    def _group(self, free: list[Member], caller: Caller, now: float) -> list[Member]:
        """The members of the first group that is to serve: wanted role, not failing, priority, zone."""
        wanted = caller.role.removeprefix("prefer-") if caller.role else None
        limit, zone = self.config.eject_after or NEVER, self.config.zone
        if self.failing:
            self.failing = any(member.failures >= limit for member in self.members.values())
        if wanted is None and not self.grouped and not self.failing:
            return free

        def rank(member: Member) -> tuple[bool, bool, int, bool]:
            node = member.node
            elsewhere = bool(zone) and node.zone != zone
            return (
                wanted is not None and member.known_role != wanted,
                member.failures >= limit,
                member.tier,
                elsewhere,
            )

        groups: dict[tuple[bool, bool, int, bool], list[Member]] = {}
        for member in free:
            groups.setdefault(rank(member), []).append(member)
        order = sorted(groups)
        for place, key in enumerate(order[:-1]):
            # a group that has lost many of its nodes hands a part of its callers on
            everybody = [m for m in self.members.values() if caller.accepts(m) and (m.tier, bool(zone) and
                         m.node.zone != zone) == key[2:]]  # fmt: skip
            well = sum(m.state is USABLE for m in everybody) / (len(everybody) * self.config.spill_below)
            if key[:2] != order[place + 1][:2] or well >= 1 or self.random() < well:
                return groups[key]
        return groups[order[-1]]

    def _ready(self, free: list[Member], now: float) -> list[Member]:
        """Without those that begin slowly, each in proportion to the part of its start that is still to come."""
        ready = []
        for member in free:
            if member.slow:
                ramp = (now - member.since) / self.config.slow_start
                if ramp >= 1:
                    member.slow = False
                elif self.random() >= max(ramp, 0.05):
                    continue
            ready.append(member)
        self.starting = any(member.slow for member in self.members.values())
        return ready or free

    def _hopeless(self, caller: Caller, now: float) -> bool:
        """Whether there is no node that could serve him, and none is expected to in the time that he grants."""
        if now < caller.since + self.config.wait_for_node and not caller.tried:
            self._want(caller.since + self.config.wait_for_node)
            return False
        for member in self.members.values():
            if member in caller.tried:
                continue
            if member.state in (USABLE, PROBING) and (has_role(member, caller.role) or member.asking):
                return False
        return True

    def _no_node(self, caller: Caller) -> NoNodeAvailable:
        errors = {member.name: member.last_error for member in self.members.values()}
        told = []
        for member in self.members.values():
            text = f"{member.name} ({member.state.value}"
            if caller.role is not None:
                text += f", {member.known_role or 'role unknown'}"
            told.append(text + f"): {describe(member.last_error) if member.last_error else 'no error'}")
        wanted = f" of role {caller.role!r}" if caller.role is not None else ""
        return NoNodeAvailable(f"{self.name}: no usable node{wanted}: " + "; ".join(told), errors)

    def abandon(self, caller: Caller, now: float, *, timed_out: bool = False) -> None:
        """The caller is gone: a place he was given passes on."""
        self.timeouts += timed_out
        outcome = caller.outcome
        self._unqueue(caller)
        if isinstance(outcome, Member):
            self.give_up(outcome, caller.ticket, now)
        caller.outcome = None

    def _unqueue(self, caller: Caller) -> None:
        caller.queued = False
        queue = self.queues.get(caller.role)
        if queue is not None:
            queue.pop(caller, None)
            if not queue:
                del self.queues[caller.role]

    def _serve(self, caller: Caller, outcome: Member | BaseException) -> None:
        """He has it; in an order of which :meth:`mend` understands each part."""
        caller.outcome = outcome
        if isinstance(outcome, Member):
            outcome.seat(caller.ticket)
        self.effects.append(Effect(Do.WAKE, caller=caller))
        self._unqueue(caller)

    def waiting(self) -> list[Caller]:
        """All who wait, oldest first."""
        return sorted((caller for queue in self.queues.values() for caller in queue), key=lambda one: one.ticket)

    def offer(self, member: Member, now: float) -> None:
        """The member has a place: the oldest caller who accepts it gets it."""
        while self.queues and member.state is USABLE and member.free:
            oldest: Caller | None = None
            for role, queue in self.queues.items():
                if has_role(member, role):
                    first = next((caller for caller in queue if member not in caller.tried), None)
                    if first is not None and (oldest is None or first.ticket < oldest.ticket):
                        oldest = first
            if oldest is None:
                return
            self._serve(oldest, member)

    def settle(self, now: float) -> None:
        """Something has changed about the nodes: serve whom it helps, fail those who have nothing left to hope for."""
        if not self.queues:
            return
        for member in self.members.values():
            self.offer(member, now)
        for caller in self.waiting():
            if self._hopeless(caller, now):
                self._serve(caller, self._no_node(caller))

    # -- leases -------------------------------------------------------------------------------------------------------

    # Each may come twice for one lease, cut short the first time: whoever's ticket has no place any more is done with.

    def give_up(self, member: Member, ticket: int, now: float) -> None:
        """A place was not used after all."""
        if member.unseat(ticket) and self.queues:
            self.offer(member, now)

    def succeeded(self, member: Member, ticket: int, duration: float, now: float) -> None:
        """A lease has ended well."""
        if member.failures:
            member.failures, member.spell = 0, next(spells)
        if member.ejections and member.state is USABLE and now - member.since > self.config.eject_max:
            member.ejections = 0
        self._ended(member, ticket, duration, False, now)

    def failed(self, member: Member, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """A lease could not be had, or its connection broke."""
        self._blame(member, error, now)
        self._ended(member, ticket, duration, True, now)

    def misled(self, member: Member, ticket: int, error: BaseException, duration: float, now: float) -> None:
        """The node answered that it has not the role it was taken for: find out who has what role now."""
        member.last_error = remembered(error)
        if self.asks_roles:
            self._role(member, None, now)
            self._ask_roles(now)
        self._ended(member, ticket, duration, False, now)
        self.settle(now)

    def _ended(self, member: Member, ticket: int, duration: float, failed: bool, now: float) -> None:
        seats = member.seats
        if ticket not in seats:
            return
        seats.discard(ticket)
        member.leases = len(seats)
        member.served += 1
        member.busy += duration
        self.balancer.done(member, duration, failed, now)
        if self.queues:
            self.offer(member, now)

    def mend(self, now: float) -> None:
        """A step was left by an exception between any two bytecodes: finish what is half done, look over everything.

        What is true: who has a place (``seats``), what a caller's outcome is, who stands in a queue.
        """
        for role, queue in list(self.queues.items()):
            for caller in sorted(queue, key=lambda one: one.ticket):
                if caller.outcome is None:
                    caller.queued = True
                    queue.move_to_end(caller)
                else:
                    self._serve(caller, caller.outcome)
            if not queue:
                self.queues.pop(role, None)
        for member in (*self.members.values(), *self.leaving):
            member.leases = len(member.seats)
        for member in self.members.values():
            self._weigh(member, member.last_error, now)
        self._want(now)
        self.settle(now)

    def close(self, now: float) -> None:
        """Admit nobody; tell all who wait."""
        self.closed = True
        for caller in self.waiting():
            self._serve(caller, PoolClosed(f"{self.name}: the cluster was closed while this caller waited"))

    def check(self) -> None:
        """AssertionError unless nobody waits for whom there is a place, and leases are not negative."""
        for member in (*self.members.values(), *self.leaving):
            assert member.leases == len(member.seats), f"{member} has {len(member.seats)} seats taken"
            if member.state is USABLE and member.free:
                stranded = [caller for caller in self.waiting() if caller.accepts(member)]
                assert not stranded, f"{len(stranded)} wait while {member} has a place"
        for role, queue in self.queues.items():
            tickets = [caller.ticket for caller in queue]
            assert tickets == sorted(tickets), f"queue of {role} out of order"
            assert all(caller.queued and caller.outcome is None for caller in queue)
