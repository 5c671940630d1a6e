"""The register of a pool's connections, and how each of them begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..events import CloseReason, EventKind
from .effects import Do, Effect
from .entry import CLOSED, CLOSING, Entry, Purpose
from .lane import Lane
from .state import Counts

if TYPE_CHECKING:
    from .context import Context
    from .idle import IdleSlots

__all__ = ("Slots",)


class Slots:
    """All connections, from the decision to open one until it is closed.

    ``len(entries)`` is the number of permits taken: there is no counter that could drift. ``unused`` is called when the
    last connection of an endpoint is gone and nobody waits there.
    """

    __slots__ = ("_core", "_idle", "_number", "_unused", "closing", "counts", "entries", "known", "pinging")

    def __init__(self, core: Context, idle: IdleSlots, unused: Callable[[Lane], object]) -> None:
        self._core = core
        self._idle = idle
        self._unused = unused
        self._number = 0
        self.entries: dict[int, Entry] = {}
        self.known: dict[int, int] = {}  # id of a connection to the number of the entry that came last with it
        self.counts = Counts()
        self.closing = 0
        self.pinging = 0  # connections that are checked in the background

    def coming(self) -> int:
        """Connections that are neither idle nor being closed nor checked in the background."""
        return len(self.entries) - len(self._idle) - self.closing - self.pinging

    def over_limit(self) -> bool:
        """Whether more connections exist than may, those being closed apart."""
        return len(self.entries) - self.closing > self._core.size.limit

    def twin_of(self, connection: object) -> Entry | None:
        """The entry that has this very connection already, if there is one."""
        twin = self.entries.get(self.known.get(id(connection), 0))
        return twin if twin is not None and twin.connection is connection else None

    def open(self, endpoint: Lane, purpose: Purpose, now: float) -> Entry:
        """The entry of a connection to be. The permit for it has been taken."""
        self._number += 1
        entry = Entry(endpoint, self._number, purpose, now)
        self.entries[entry.id] = entry
        endpoint.size += 1
        endpoint.connecting += 1
        endpoint.dialer.last_opened_at = now
        self._core.tell(EventKind.CONNECTION_CREATED, now, entry)
        return entry

    def connected(self, entry: Entry, connection: object) -> None:
        """The entry has its connection."""
        entry.connection = connection
        entry.key = id(connection)
        self.known[entry.key] = entry.id  # no reference: mend.audit() counts those

    def retire_reason(self, entry: Entry, now: float) -> CloseReason | None:
        """Why the connection must not be handed out again, if so."""
        core = self._core
        if entry.generation != entry.lane.generation:
            return CloseReason.STALE
        if now >= entry.expires:
            return CloseReason.EXPIRED
        timeout = core.config.idle_timeout
        if timeout is not None and now - entry.last_used >= timeout and entry.lane.live > core.size.minimum:
            return CloseReason.IDLE
        return None

    def mark_alive(self, entry: Entry, now: float) -> None:
        """There was a sign of life just now."""
        entry.good_until = now + self._core.window

    def start_close(
        self, entry: Entry, reason: CloseReason, now: float, *, abort: bool = False, announced: bool = False
    ) -> None:
        """The connection goes; it keeps its permit until the shell says that it is closed.

        ``announced``: the budget knows that it goes.
        """
        core = self._core
        self.linger(entry, announced=announced)
        self._idle.forget(entry)
        core.returned.pop(entry, None)
        entry.lane.live -= 1
        self.counts.closes[reason] += 1
        core.tell(EventKind.CONNECTION_CLOSED, now, entry, reason=reason, duration=now - entry.ready_at)
        core.effects.append(Effect(Do.ABORT if abort else Do.CLOSE, entry))

    def linger(self, entry: Entry, *, announced: bool = False) -> None:
        """Of no more use, but it keeps its permit until it is closed."""
        core = self._core
        self._no_longer_connecting(entry)
        entry.move(CLOSING)
        self.closing += 1
        if not announced:
            core.capacity.leave()
        core.use.uncharge(entry)
        entry.lane.spare.pop(entry, None)

    def _no_longer_connecting(self, entry: Entry) -> None:
        if entry.pending and entry.generation == entry.lane.generation:
            entry.lane.connecting -= 1
        entry.pending = False
        self._core.touched[entry.lane] = None

    def remove(self, entry: Entry) -> None:
        """The connection is closed, or has left the pool: its permit is free."""
        core, endpoint = self._core, entry.lane
        self._no_longer_connecting(entry)
        core.use.uncharge(entry)
        endpoint.spare.pop(entry, None)
        closing = entry.state is CLOSING
        entry.move(CLOSED)
        del self.entries[entry.id]
        if self.known.get(entry.key) == entry.id:
            del self.known[entry.key]
        endpoint.size -= 1
        core.capacity.give(announced=closing)
        self.counts.uses += entry.uses
        self.counts.busy += entry.busy
        if endpoint.unused:
            self._unused(endpoint)

    def closed(self, entry: Entry) -> None:
        """The shell has closed the connection."""
        self.closing -= 1
        if entry.evicted_for is not None:
            entry.evicted_for.evictions -= 1
            self._core.touched[entry.evicted_for] = None
        self.remove(entry)
