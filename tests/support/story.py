"""A listener that checks the events of each connection."""

from __future__ import annotations

from poolkit.events import Event, EventKind

__all__ = ("Story",)

_K = EventKind
_FOLLOWS: dict[EventKind | None, frozenset[EventKind]] = {
    None: frozenset({_K.CONNECTION_CREATED}),
    _K.CONNECTION_CREATED: frozenset({_K.CONNECTION_READY, _K.CONNECT_FAILED}),
    _K.CONNECTION_READY: frozenset({_K.ACQUIRED, _K.CONNECTION_CLOSED}),
    # closed at once: its holder was interrupted, or the pool reclaimed it
    _K.ACQUIRED: frozenset({_K.RELEASED, _K.LEASE_LEAKED, _K.CONNECTION_CLOSED}),
    _K.RELEASED: frozenset({_K.ACQUIRED, _K.CONNECTION_CLOSED}),
    _K.LEASE_LEAKED: frozenset({_K.CONNECTION_CLOSED}),
    _K.CONNECT_FAILED: frozenset({_K.CONNECTION_CLOSED}),
    _K.CONNECTION_CLOSED: frozenset(),
}


class Story:
    """Of each connection of one pool: whether what is told of it makes sense, in the order in which it is told.

    For pools whose connections have one lease at a time. An error is kept: the pool would drop a listener that raises.
    """

    def __init__(self) -> None:
        self.last: dict[int, EventKind] = {}
        self.told: list[EventKind] = []
        self.wrong: list[str] = []

    def __call__(self, event: Event) -> None:
        number, kind = event.connection_id, event.kind
        self.told.append(kind)
        if number is not None:
            before = self.last.get(number)
            if kind not in _FOLLOWS[before]:
                self.wrong.append(f"connection {number}: {kind.value} after {before.value if before else 'nothing'}")
            self.last[number] = kind

    def restart(self) -> None:
        """In a forked child: connections are numbered from 1 again."""
        self.__init__()  # type: ignore[misc]

    def check(self, *, leased: int | None = None) -> None:
        """Raise AssertionError if an event was out of order, or if not ``leased`` leases are open."""
        assert not self.wrong, "; ".join(self.wrong)
        on_lease = [number for number, kind in self.last.items() if kind is EventKind.ACQUIRED]
        assert leased is None or len(on_lease) == leased, f"on lease by what was told: {on_lease}, in truth {leased}"
