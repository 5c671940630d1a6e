"""statsd: a thread sends gauges and counters over UDP at an interval. Standard library only."""

from __future__ import annotations

import re
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .._numbers import seconds
from .._registry import live_pools, watch_pools
from ..errors import ConfigError, UsageError, describe, said, shown
from ..events import Event, EventKind
from ..policies.members import snapshot
from ..runtimes.fork import Stage, restart_after_fork
from ._aside import Once
from .families import FAMILIES, Values, merged, of, require

__all__ = ("StatsdReporter",)

RESOLVE = 2.0  # seconds that creating a reporter waits for the DNS
_PACKET = 1432  # bytes: what fits an Ethernet frame with IPv6 and UDP headers
_NAME = 200  # characters of a name or label
_QUANTILES = (0.5, 0.95, 0.99)
_KINDS = {family.name: family.kind for family in FAMILIES}


_live: weakref.WeakSet[StatsdReporter] = weakref.WeakSet()


class StatsdReporter:
    """Sends the metrics of all live pools to a statsd server every ``interval`` seconds, from a daemon thread.

    ``tags=True`` writes DogStatsD tags (``poolkit.connections:3|g|#pool:orders-db,state:idle``). Otherwise labels are
    parts of the name (``poolkit.orders-db.connections.idle:3|g``). Counters are sent as the increase since the last
    report, including pools that were closed in between. Histograms are sent as gauges ``...p50``, ``.p95``, ``.p99`` in
    milliseconds over the last ten seconds. With UDP nothing waits, and lost packets are not sent again. A forked child
    continues with its own thread.

    A thread resolves the host. A lookup that takes longer than ``RESOLVE`` seconds is logged and repeated at each
    report. Raises ConfigError for a host that cannot be resolved or an invalid port or interval. Raises UsageError if
    another reporter of this process sends the same pools to the same address, because the server would add up both.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8125,
        *,
        interval: float = 10.0,
        tags: bool = False,
        pools: Callable[[], Iterable[Any]] = live_pools,
    ) -> None:
        seconds("interval", interval, least=0.001)
        require("port", port, (int,), 1, 65535, "a port, 1 to 65535")
        self._pools: Callable[[], Iterable[Any]] = pools
        self._server = server = _Server(host, port)
        self._once = Once("statsd")
        server.look_up(RESOLVE)
        if server.error is not None:
            raise ConfigError(f"host={host!r}: cannot be resolved: {said(server.error)}", "host") from server.error
        if server.address is None:
            self._once.tell(
                "dns", f"{shown(host)} is not resolved after {RESOLVE:g} s; nothing is sent until the lookup succeeds"
            )
        for other in snapshot(_live):
            if other._server.is_same(server) and other._pools == pools and not other._over.is_set():
                server.close()
                raise UsageError(
                    f"StatsdReporter(host={host!r}, port={port}): another reporter sends the same pools there, and "
                    "all numbers would be counted twice; close() that reporter first"
                )
        self._interval = interval
        self._tags = tags
        self._begin()
        here = weakref.ref(self)
        # with a function for the pools, they are known only from its first call on
        self._end = watch_pools(lambda pool: _on_news(here, pool)) if pools is live_pools else lambda: None
        self._start()
        _live.add(self)
        restart_after_fork(Stage.WATCHERS, self, _start_again)

    def _begin(self) -> None:
        """Start with nothing sent. Called again in a forked child: a thread of the parent may have held the lock."""
        self._last: weakref.WeakKeyDictionary[Any, Values] = weakref.WeakKeyDictionary()  # what was sent of each pool
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ended: deque[Any] = deque()  # pools that were closed, and not sent since
        self._sending = threading.Lock()

    def _start(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=_report, args=(weakref.ref(self), self._over, self._interval, self._end),
                         name="poolkit-statsd", daemon=True).start()  # fmt: skip

    def close(self) -> None:
        """Send a last report and end the thread. Idempotent."""
        if not self._over.is_set():
            self._over.set()
            self._end()
            try:
                self.send()
            finally:
                self._server.close()

    def send(self) -> None:
        """Send a report now. Thread-safe. While the host is not resolved, counts are kept for a later report."""
        if not self._server.look_up(0):
            return
        with self._sending:
            live = list(self._pools())
            for pool in live:
                _on_news(weakref.ref(self), pool)
            ended = list(self._ended)
            seen = {pool: pool.stats() for pool in {*live, *ended}}
            now = {pool: of(stats) for pool, stats in seen.items()}
            added = merged(_counters(values, self._last.get(pool, {})) for pool, values in now.items())
            gauges = merged(now[pool] for pool in live)
            recent = {pool.name: seen[pool].windows[10] for pool in live}
            for packet in _packets([*self._gauges(gauges), *self._counts(added), *self._times(recent)]):
                try:
                    self._server.send(packet)
                except OSError as error:  # the network is away, or the buffer is full
                    self._once.tell("sent", f"a packet was not sent; later packets are still sent: {describe(error)}")
            self._last.update(now)
            for _ in ended:
                self._ended.popleft()

    def _gauges(self, values: Values) -> Iterable[str]:
        for name, found in values.items():
            if _KINDS[name] == "gauge":
                for labels, value in found.items():
                    yield self._line(name, labels, f"{value:g}|g")

    def _counts(self, added: Values) -> Iterable[str]:
        for name, found in added.items():
            for labels, value in found.items():
                yield self._line(name, labels, f"{value:g}|c")

    def _times(self, recent: dict[str, Any]) -> Iterable[str]:
        for pool, window in recent.items():
            for kind in ("wait", "connect", "use"):
                histogram = getattr(window, kind)
                if histogram.count:
                    for share in _QUANTILES:
                        name = f"poolkit_{kind}_ms.p{share * 100:.0f}"
                        yield self._line(name, (("pool", pool),), f"{histogram.quantile(share) * 1000:g}|g")

    def _line(self, name: str, labels: tuple[tuple[str, str], ...], value: str) -> str:
        metric = name.removeprefix("poolkit_")
        if self._tags:
            return f"poolkit.{metric}:{value}|#" + ",".join(f"{key}:{_safe(text)}" for key, text in labels)
        pool, *others = (_safe(text) for _, text in labels)
        return ".".join(["poolkit", pool, metric, *others]) + f":{value}"


class _Server:
    """The address of the server. Never waits, unless a timeout is given."""

    def __init__(self, host: str, port: int) -> None:
        self._name = host, port
        self._looking: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self.address: Any = None
        self.error: Exception | None = None

    def look_up(self, timeout: float) -> bool:
        """Return whether the host is resolved. If it is not, start a lookup and wait for it up to the timeout."""
        if self.address is None:
            if self._looking is None or not self._looking.is_alive():
                self.error = None
                self._looking = threading.Thread(target=self._look_up, name="poolkit-statsd-dns", daemon=True)
                self._looking.start()
            self._looking.join(timeout)
        return self.address is not None

    def _look_up(self) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(*self._name, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self.address = address
        except Exception as error:  # noqa: BLE001 - reported by the caller; also UnicodeError, for an invalid name
            self.error = error

    def is_same(self, other: _Server) -> bool:
        return self._name == other._name or (self.address is not None and self.address == other.address)

    def send(self, packet: bytes) -> None:
        """Send a packet. Raises OSError."""
        if self._socket is not None:
            self._socket.sendto(packet, self.address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _counters(now: Values, last: Values) -> Values:
    """Return the increase of the counters of one pool."""
    found: Values = {}
    for name, values in now.items():
        if _KINDS[name] == "counter":
            before = last.get(name, {})
            found[name] = {
                labels: value - before.get(labels, 0)
                for labels, value in values.items()
                if value > before.get(labels, 0)
            }
    return found


class _Close:
    """Listens for the close of one pool, so that its last counts are sent. Keeps neither pool nor reporter alive."""

    kinds = frozenset({EventKind.POOL_CLOSED})

    def __init__(self, reporter: weakref.ref[StatsdReporter], pool: Any) -> None:
        self._reporter, self._pool = reporter, weakref.ref(pool)

    def __call__(self, event: Event) -> None:
        reporter, pool = self._reporter(), self._pool()
        if reporter is not None and pool is not None and not reporter._over.is_set():
            reporter._ended.append(pool)


def _on_news(reporter: weakref.ref[StatsdReporter], pool: Any) -> None:
    one = reporter()
    if one is not None and pool not in one._known:
        one._known.add(pool)
        pool.add_listener(_Close(reporter, pool))


def _safe(text: str) -> str:
    """Return the text without separators of the protocol or the name, and short enough for a packet."""
    return re.sub(r"[^\w-]", "_", text[:_NAME])


def _packets(lines: Iterable[str]) -> Iterable[bytes]:
    packet = b""
    for line in lines:
        data = line.encode()
        if packet and len(packet) + 1 + len(data) > _PACKET:
            yield packet
            packet = b""
        packet = packet + b"\n" + data if packet else data
    if packet:
        yield packet


def _report(
    reporter: weakref.ref[StatsdReporter], over: threading.Event, interval: float, end: Callable[[], None]
) -> None:
    while not over.wait(interval):
        one = reporter()
        if one is None:
            end()
            return
        try:
            one.send()
        except Exception as error:  # noqa: BLE001 - a choice of pools that raises: told, and tried again
            one._once.tell("raised", f"a report failed; the next one follows: {describe(error)}", exc_info=True)
        del one


def _start_again(reporter: StatsdReporter) -> None:
    if not reporter._over.is_set():
        known = reporter._known
        reporter._begin()
        reporter._known = known  # the pools are the same objects, and have our listeners
        reporter._start()
