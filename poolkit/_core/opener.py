"""When a connection is opened, and what follows from success and failure.

The :class:`Dialer` of an endpoint decides whether a connect may begin: circuit breaker, backoff, pace. It knows nothing
about requests, permits or other endpoints. The :class:`Opener` of the pool asks it before each connect and reports how
each connect ended. It turns the answers into connects, ticks and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple

from ..config import PoolConfig
from ..connector import Verdict
from ..errors import CircuitOpen, ConnectFailed, ConnectTimeout, cannot_connect, describe, remembered
from ..events import CloseReason, EventKind
from ..policies.connects import Breaker, full_jitter, growth, pace, patience
from ..policies.retire import NEVER, evictable_at, expiry, rotation_lead
from .effects import Do, Effect
from .slots import ESTABLISHED, IDLE, IN_USE, Slot, Slots
from .state import LOOK_EVERY

if TYPE_CHECKING:
    from .context import Context
    from .endpoints import Endpoint, IdleSlots
    from .service import Service

__all__ = (
    "OPEN",
    "At",
    "Dialer",
    "Open",
    "Opener",
    "Refuse",
)


class Open(NamedTuple):
    """A connection may be opened now."""


class At(NamedTuple):
    """Not now."""

    until: float
    """The time at which to ask again; NEVER: after a connect in progress has ended."""


class Refuse(NamedTuple):
    """Not now, and callers that have no connection to wait for fail at once with :meth:`Dialer.error`."""

    until: float
    """The time at which to ask again."""


OPEN = Open()
_OTHERS_FIRST = At(NEVER)


class Dialer:
    """The connects of one endpoint. Not thread-safe: the pool holds its lock around every call."""

    __slots__ = (
        "breaker", "by_caller", "connect_time", "fatal", "in_use", "last_error", "last_error_at", "last_opened_at",
        "name", "retry_at", "rounds",
    )  # fmt: skip

    def __init__(self, name: str, config: PoolConfig, *, by_caller: bool = False, in_use: bool = False) -> None:
        self.name = name  # of the pool, for messages
        self.by_caller = by_caller  # callers connect themselves, and do not wait for a backoff
        self.in_use = in_use  # a connection counts as live while its connect is in progress
        self.breaker = Breaker(config.breaker)
        self.connect_time: float | None = None  # moving average, seconds
        self.last_opened_at = float("-inf")  # when the last connect began
        self.retry_at = 0.0  # backoff: no connect begins before this time
        self.rounds = 0  # attempts in a row that failed; concurrent connects that failed count as one
        self.fatal = False  # the last connect failed in a way that trying again cannot repair
        self.last_error: BaseException | None = None
        self.last_error_at = 0.0

    # -- may one be opened? -------------------------------------------------------------------------------------------

    def may_open(
        self, now: float, opening: int, live: int, *, elsewhere: bool = False, queued_at: float = -NEVER
    ) -> Open | At | Refuse:
        """Whether one more connect may begin now.

        ``opening``: connects in progress; ``live``: connections that callers can wait for; ``elsewhere``: callers can
        go to another pool; ``queued_at``: since when callers wait, if the connect is for them.
        """
        paced = opening and queued_at > -NEVER and (self.in_use or not self.by_caller)
        if paced and live > (opening if self.in_use else 0):  # others may return a connection sooner
            next_one = queued_at + growth(pace(self.connect_time), opening)
            if now < next_one:
                return At(next_one)
        breaker = self.breaker
        if not breaker.may_open(now, opening):
            if not breaker.is_open(now):
                return _OTHERS_FIRST
            again = now + breaker.retry_after(now)
            return At(again) if live else Refuse(again)
        if self.by_caller and queued_at > -NEVER:
            return OPEN  # a caller's own connect
        if now < self.retry_at:
            hopeless = queued_at > -NEVER and self.hopeless(live, elsewhere=elsewhere)
            return Refuse(self.retry_at) if hopeless else At(self.retry_at)
        if self.rounds and opening:
            return _OTHERS_FIRST  # one connect at a time for all callers, until the server answers again
        return OPEN

    def hopeless(self, live: int, *, elsewhere: bool) -> bool:
        """Whether callers have nothing to wait for while the backoff lasts."""
        return elsewhere or (self.fatal and not live)

    def error(self, now: float) -> ConnectFailed:
        """Return a new error for a caller that has no connection to wait for."""
        if self.breaker.is_open(now):
            return self._circuit_open(now)
        age, pause = now - self.last_error_at, self.retry_at - now
        return self.connect_error(f"tried {age:.1f} s ago, next try in {pause:.1f} s" if age > 0 and pause > 0 else "")

    def spoken_for(self, opening: int) -> int:
        """How many of the connects in progress serve the caller that makes them, which is not in the queue."""
        return opening if self.by_caller else 0

    def late_at(self) -> float:
        """When the last connect counts as late: from then on, callers that were to share its connection get another."""
        return self.last_opened_at + patience(self.connect_time)

    @property
    def remembers(self) -> bool:
        """Whether the breaker has counted failures, which would be lost if the endpoint were forgotten."""
        return self.breaker.config is not None and self.breaker.failures > 0

    # -- how connects went --------------------------------------------------------------------------------------------

    def succeeded(self, spent: float, *, current: bool) -> bool:
        """A connect succeeded after ``spent`` seconds; True if that closed the breaker. ``current``: the endpoint has
        not been cleared since the connect began.
        """
        self.connect_time = spent if self.connect_time is None else 0.8 * self.connect_time + 0.2 * spent
        return self.forget_failures() if current else False

    def forget_failures(self) -> bool:
        """Reset backoff and breaker, because the server answers or was replaced; True if that closed the breaker."""
        self.retry_at, self.rounds, self.fatal = 0.0, 0, False
        return self.breaker.succeeded()

    def note(self, error: BaseException, now: float) -> None:
        """Keep the error of a connect, for messages."""
        # an error that propagates in the caller collects a traceback, which would keep the caller's frames alive
        apart = self.by_caller or not isinstance(error, Exception)
        self.last_error, self.last_error_at = remembered(error) if apart else error, now

    def failed(
        self, config: PoolConfig, random: Callable[[], float], now: float, *, fatal: bool, together: bool
    ) -> bool:
        """A connect failed; True if that opened the breaker. ``together``: it began before the last one failed."""
        self.fatal = fatal
        opened = self.breaker.failed(now)
        if not together:
            self.rounds += 1
            self.retry_at = now + full_jitter(config.backoff, self.rounds, random)
        return opened

    # -- errors for callers -------------------------------------------------------------------------------------------

    def connect_error(self, when: str = "") -> ConnectFailed:
        """Return the last connect error as a new error for one caller."""
        return cannot_connect(self.name, self.last_error, fatal=self.fatal, when=when)

    def _circuit_open(self, now: float) -> CircuitOpen:
        """Return an error that tells what failed, since when, and when the next attempt is."""
        breaker = self.breaker
        error = CircuitOpen(
            f"{self.name}: circuit open: {breaker.failures} connects in a row failed, the last "
            f"{now - self.last_error_at:.1f} s ago with {describe(self.last_error)}; open for "
            f"{now - breaker.opened_at:.1f} s, next try in {breaker.retry_after(now):.1f} s"
        )
        error.__cause__ = self.last_error
        error.retry_after = breaker.retry_after(now)
        return error


class Opener:
    """Opens the connections of a pool, for waiting requests and for ``min_size``."""

    __slots__ = ("_core", "_idle", "_service", "_slots")

    def __init__(self, core: Context, slots: Slots, service: Service, idle: IdleSlots) -> None:
        self._core = core
        self._slots = slots
        self._service = service
        self._idle = idle

    # -- whether ------------------------------------------------------------------------------------------------------

    def wanted(self, endpoint: Endpoint, now: float) -> int:
        """Return how many connects the requests need; 0 if pace, backoff or breaker allow none now. Ignores permits."""
        if not self._core.hands_out:
            return 0
        dialer = endpoint.dialer
        # the oldest request has been woken for the idle connections, and looks at them first
        told = len(endpoint.idle) if endpoint.oldest().rechecking else 0
        extra = dialer.spoken_for(endpoint.connecting) - told
        needed = endpoint.queue.needed(endpoint.connecting, endpoint.streams, extra=extra)
        if needed <= 0:
            if endpoint.streams == 1 or not endpoint.connecting or told:
                return 0
            overdue = dialer.late_at()
            if now < overdue:  # the connect in progress has a stream for each of them, if it succeeds
                self._core.want_tick(endpoint, overdue)
                return 0
            needed = endpoint.queue.needed(endpoint.connecting, endpoint.streams, extra=extra, beside=1)
            if needed <= 0:
                return 0
        return needed if self.may_open(endpoint, now, endpoint.queue.queued_at) else 0

    def may_open(self, endpoint: Endpoint, now: float, queued_at: float = -NEVER) -> bool:
        """Whether pace, breaker, backoff and ``max_connecting`` let a connect start now.

        If the breaker is open or the last error was fatal, callers that have no connection to wait for fail at once.
        """
        core = self._core
        answer = endpoint.dialer.may_open(
            now, endpoint.connecting, endpoint.live, elsewhere=core.features.elsewhere, queued_at=queued_at
        )
        if isinstance(answer, Open):
            return endpoint.connecting < core.max_connecting
        if answer.until < NEVER:
            core.want_tick(endpoint, answer.until)
        if isinstance(answer, Refuse):
            self._service.fail(endpoint, lambda: endpoint.dialer.error(now))
        return False

    def permit(self, endpoint: Endpoint, behind: int, need: int, now: float) -> bool:
        """Take a permit for a connection; whether there was one. If a shared budget has none, claim ``need`` permits.

        ``behind``: requests that connects in progress will serve. The permit is for the first request after them. It is
        pressing if the endpoint has no connection, or the request has waited long enough for any idle one.
        """
        core, room = self._core, self._core.size.limit - len(self._slots.all)
        if room <= 0:
            return False
        request = endpoint.queue.claimant(behind)
        pressing_at = evictable_at(waiting_since=request.since) if endpoint.size else now
        if core.capacity.take(request, min(need, room), pressing=now >= pressing_at):
            return True
        if now < pressing_at and core.capacity.claiming:
            core.want(pressing_at)
        return False

    def spare_permit(self) -> bool:
        """Take a permit for a connection that no caller waits for; whether there was one to spare."""
        return len(self._slots.all) < self._core.size.limit and self._core.capacity.take_spare()

    # -- open ---------------------------------------------------------------------------------------------------------

    def open_for(self, endpoint: Endpoint, now: float) -> None:
        """Open a connection for waiting requests. The permit has been taken."""
        queue, behind = endpoint.queue, endpoint.connecting * endpoint.streams
        slot = self._slots.open(endpoint, now, for_caller=True)
        if not endpoint.dialer.by_caller:
            self._core.effects.append(Effect(Do.CONNECT, slot, queue.claimant(behind) if queue else None))
        elif (request := queue.first()) is not None:
            self._core.use.charge(slot, request)
            self._service.serve(request, slot)
        else:
            self._core.effects.append(Effect(Do.CONNECT, slot))

    def keep_minimum(self, endpoint: Endpoint, now: float) -> None:
        """Keep ``min_size`` connections (in a pool with autoscale: its floor), once the pool is in use."""
        core, slots = self._core, self._slots
        if not core.started or not core.hands_out:
            return
        while endpoint.live + endpoint.connecting < core.size.minimum and len(slots.all) < core.size.limit:
            if not self.may_open(endpoint, now):
                return
            # only min_size is reserved in a budget, so the claim does not include the floor of autoscale
            if not core.capacity.take_minimum(max(0, core.config.min_size - endpoint.live - endpoint.connecting)):
                return
            core.effects.append(Effect(Do.CONNECT, slots.open(endpoint, now)))

    # -- success ------------------------------------------------------------------------------------------------------

    def connected(
        self, slot: Slot, connection: object, capacity: int, now: float, *, keep: bool = False, lazy: bool = False
    ) -> bool:
        """A connect succeeded. ``lazy``: the driver connects at the first use, and set_capacity() reports success.

        ``keep``: the caller that connected wants to lease the connection itself; the result says whether it may.
        """
        core, endpoint, config = self._core, slot.endpoint, self._core.config
        self._slots.connected(slot, connection, now)
        slot.capacity = max(1, capacity)
        slot.last_used = slot.checked_at = now
        slot.expires = expiry(now, config.max_lifetime, config.lifetime_jitter, core.random)
        self._slots.mark_alive(slot, now)
        endpoint.live += 1
        if not lazy:
            endpoint.streams = slot.capacity
            self.established(slot, now)
        core.want_sweep(min(
            slot.expires - rotation_lead(config.max_lifetime), now + (config.idle_timeout or NEVER),
            now + (config.keepalive or NEVER), now + (LOOK_EVERY if core.features.peeks else NEVER),
            now + (config.leak_after or NEVER),
        ))  # fmt: skip
        if slot.generation != endpoint.generation:
            slot.retire()
        old, slot.replaced = slot.replaced, None
        kept = keep and core.hands_out and slot.generation == endpoint.generation
        if kept:
            slot.leases = 1
            slot.move(IN_USE)
            if slot.owner is not None:
                slot.owner.acquires += 1
        core.returned[slot] = None
        if old is not None:
            self._replace(old, now)
        return kept

    def set_capacity(self, slot: Slot, capacity: int, now: float) -> None:
        """Set how many leases the connection serves at once; 0: its present ones, and no new ones.

        For a lazy connect, the call also reports that the connect succeeded.
        """
        self.established(slot, now)
        if capacity < 1:
            slot.retire()
            return
        slot.capacity = slot.endpoint.streams = capacity
        self._core.touched[slot.endpoint] = None
        if slot.state is IN_USE:
            self._core.returned[slot] = None

    def established(self, slot: Slot, now: float) -> None:
        """The connect succeeded, so the server answers: reset backoff and breaker, and count it."""
        if not slot.pending:
            return
        slot.pending = False
        core, endpoint = self._core, slot.endpoint
        core.touched[endpoint] = None
        spent = now - slot.requested_at
        current = slot.generation == endpoint.generation
        endpoint.connecting -= current
        if endpoint.dialer.succeeded(spent, current=current):
            core.tell(EventKind.BREAKER_CLOSED, now)
        self._slots.counts.connects += 1
        core.meters.connect.record(spent)
        core.tell(EventKind.CONNECTION_READY, now, slot, duration=spent)

    def _replace(self, old: Slot, now: float) -> None:
        """The successor is ready: close the old connection now if it is idle, otherwise when it is returned."""
        old.expires = old.fresh_until = now
        if old.state is IDLE and self._idle.take_out(old):
            self._slots.start_close(old, CloseReason.EXPIRED, now)

    # -- failure ------------------------------------------------------------------------------------------------------

    def connect_failed(
        self, slot: Slot, error: BaseException, verdict: Verdict, now: float, lingers: bool = False
    ) -> None:
        """A connect failed: free its permit, and fail callers that have nothing else to wait for.

        ``lingers``: the server may still hold a part of the connection, so it keeps its permit until it is closed.
        """
        endpoint = slot.endpoint
        current = slot.generation == endpoint.generation
        if lingers:
            self._slots.linger(slot)
        else:
            self._slots.remove(slot)
        self.failed(slot, error, verdict, current, now)
        features, dialer = self._core.features, endpoint.dialer
        if not current or dialer.by_caller:
            return
        if dialer.hopeless(endpoint.live, elsewhere=features.elsewhere):
            self._service.fail(endpoint, dialer.connect_error)
        elif features.reports_errors and not endpoint.connecting:
            self._report(endpoint)

    def _report(self, endpoint: Endpoint) -> None:
        """Fail all callers that no connection can serve.

        A connection in use can serve other callers when it is returned, but not the caller that holds it. Without this
        rule, a caller that holds the only connection and asks for a second one would wait for itself.
        """
        holders: set[Hashable] = set()
        for slot in self._slots.living():
            if slot.endpoint is endpoint and slot.state in ESTABLISHED:
                if slot.state is not IN_USE or slot.capacity > 1:
                    return
                holders.add(slot.holder)
        if len(holders) <= 1:
            unserved = [request for request in endpoint.requests if not holders or request.holder in holders]
            self._service.fail(endpoint, endpoint.dialer.connect_error, unserved)

    def failed(self, slot: Slot, error: BaseException, verdict: Verdict, current: bool, now: float) -> None:
        """Record a connect that failed: counts, backoff, breaker. ``current``: it is of the endpoint's generation."""
        core, endpoint = self._core, slot.endpoint
        dialer = endpoint.dialer
        self._slots.counts.connect_errors += 1
        if isinstance(error, TimeoutError) and not isinstance(error, ConnectTimeout):
            late = ConnectTimeout(
                f"{core.name}: no connection within connect_timeout={core.config.connect_timeout!r}: {describe(error)}"
            )
            late.__cause__ = error
            error = late
        if verdict is Verdict.OVERLOADED:
            self.refused(slot.requested_at, now)
        together = slot.requested_at < dialer.last_error_at  # it began before another one failed
        core.tell(EventKind.CONNECT_FAILED, now, slot, duration=now - slot.requested_at, error=error)
        # a connect in the caller also ends when the caller is cancelled or interrupted: that is no fault of the server
        about_server = isinstance(error, Exception) or not dialer.by_caller
        if about_server:
            dialer.note(error, now)
            core.last_failed = endpoint
        if current and about_server:
            fatal = verdict is Verdict.FATAL
            if dialer.failed(core.config, core.random, now, fatal=fatal, together=together):
                core.tell(EventKind.BREAKER_OPENED, now, error=error)
        if slot.replaced is not None:  # the old connection still exists: try again before it expires
            slot.replaced.rotating = False
            core.want_sweep(max(now, dialer.retry_at))

    def refused(self, begun: float, now: float) -> None:
        """The server refused a connect because it is full: a pool with autoscale reduces its limit."""
        living = self._slots.living
        self._core.size.refused(begun, now, lambda: sum(slot.state in ESTABLISHED for slot in living()))
