"""OpenTelemetry: metrics after its semantic conventions, and spans for waits. Needs
``pip install 'poolkit[opentelemetry]'``; the application chooses the SDK and its exporters.

Gauges and totals are observable instruments, read when the SDK collects. Waits and connects are recorded when they
happen. The lock-free fast path is unchanged: an acquire that finds an idle connection is in no histogram
(``use_time=True`` measures leases, and makes every release take the lock).
"""

from __future__ import annotations

import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .._registry import live_pools, watch_pools
from ..errors import MissingExtra, UsageError, masked, said, shown
from ..events import Event, EventKind, Listener
from ..policies.members import snapshot
from ..policies.meters import BOUNDS
from ..stats import LaneStats, PoolStats
from ._aside import Aside

__all__ = ("Instrumentation", "instrument")

_Points = Iterable[tuple[Any, dict[str, Any]]]
"""Values with their attributes."""
_Read = Callable[["_Seen", list[Any]], _Points]

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
CATCH_UP = 1.0  # seconds that a collection waits for what has happened before it and was not recorded yet
LONGEST = 1.0  # seconds that a collection takes; a later request reads the pools again


def _api() -> tuple[Any, Any, Any]:
    try:
        from opentelemetry import context, metrics, trace
    except ImportError:
        raise MissingExtra("OpenTelemetry needs its API: pip install 'poolkit[opentelemetry]'") from None
    return context, metrics, trace


def instrument(
    *, meter_provider: Any = None, tracer_provider: Any = None, spans: bool = False, use_time: bool = False
) -> Instrumentation:
    """Report all pools of the process, including later ones, until ``close()`` of the returned object is called.

    Separate threads report the events, so a slow provider or exporter delays no caller. The first error of each is
    logged, and it gets later data as well. ``close()`` waits up to 5 s for each of the two threads.

    Providers default to the global ones. ``spans``: create a span "pool.acquire" for each acquire that found no idle
    connection at once, in the context of its caller. ``use_time``: measure each lease. Raises MissingExtra without the
    API, and UsageError if an earlier call still reports to one of the two providers: all numbers would be counted
    twice.
    """
    return Instrumentation(meter_provider, tracer_provider, spans=spans, use_time=use_time)


class Instrumentation:
    """The instrumentation that :func:`instrument` has set up. Thread-safe."""

    def __init__(self, meter_provider: Any, tracer_provider: Any, *, spans: bool, use_time: bool) -> None:
        self._context, metrics, trace = _api()
        self._meters = _Place("meter provider", meter_provider, metrics.get_meter_provider)
        self._tracers = _Place("tracer provider", tracer_provider, trace.get_tracer_provider) if spans else None
        self._require_alone()
        meter = metrics.get_meter("poolkit", meter_provider=meter_provider)
        self._tracer = trace.get_tracer("poolkit", tracer_provider=tracer_provider) if spans else None
        self._error_status = trace.Status(trace.StatusCode.ERROR)
        self._use_time = use_time
        # two threads: a slow exporter of spans must not delay the metrics
        self.metrics = Aside("OpenTelemetry's metrics")
        self._spans = Aside("OpenTelemetry's spans") if spans else None
        self.attached: weakref.WeakKeyDictionary[Any, Listener] = weakref.WeakKeyDictionary()
        self._gauges = _gauges_of(self._meters.provider, meter, metrics.Observation)
        self._gauges.reporter = self

        def histogram(name: str, text: str) -> Any:
            return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=BOUNDS)

        self._create = histogram("db.client.connection.create_time", "The time it took to create a connection.")
        self._wait = histogram("db.client.connection.wait_time", "The time it took to obtain a connection.")
        self._use = histogram("db.client.connection.use_time", "The time between borrowing and returning.")
        self._life = histogram("http.client.connection.duration", "How long an HTTP connection was open.")
        self._http_wait = histogram("poolkit.http.wait_time", "The time it took to obtain an HTTP connection.")
        self._closed = meter.create_counter("poolkit.connection.closed", "{connection}", "Connections closed.")
        self._errors = meter.create_counter("poolkit.connection.errors", "{error}", "Connects that failed.")
        self._leaked = meter.create_counter("poolkit.lease.leaked", "{lease}", "Leases dropped or held too long.")
        _live.add(self)
        self._end = watch_pools(self._attach)

    def _require_alone(self) -> None:
        for other in snapshot(_live):
            for mine, taken in ((self._meters, other._meters), (self._tracers, other._tracers)):
                if mine is not None and taken is not None and mine.provider is taken.provider:
                    raise UsageError(
                        f"instrument(): an earlier call already reports to this {mine.kind}, and everything would be "
                        "counted twice; close() what that call returned, or name another provider"
                    )

    def close(self) -> None:
        """Stop reporting. Idempotent; afterwards :func:`instrument` may be called again."""
        _live.discard(self)
        self._end()
        if self._gauges.reporter is self:
            self._gauges.reporter = None
        for pool in snapshot(self.attached):
            pool.remove_listener(self.attached[pool])
            pool.remove_wait_observer(self._waited)
        self.attached.clear()
        self.metrics.close()
        if self._spans is not None:
            self._spans.close()

    # -- told when it happens -------------------------------------------------------------------------------------

    def _attach(self, pool: Any) -> None:
        kinds = {EventKind.CONNECTION_READY, EventKind.CONNECTION_CLOSED, EventKind.CONNECT_FAILED,
                 EventKind.LEASE_LEAKED}  # fmt: skip
        http = _is_http(pool)
        if self._use_time and not http:
            kinds.add(EventKind.RELEASED)
        listener = _Listener(self._listener(http, _own_metrics(pool)), frozenset(kinds))
        self.attached[pool] = listener
        pool.add_listener(listener)
        pool.add_wait_observer(self._waited)

    def _listener(self, http: bool, reports_itself: Callable[[], bool]) -> Listener:
        """Return the observer for one pool. It must not refer to the pool, because the pool refers to it."""

        def listener(event: Event) -> None:
            name = {_POOL: event.pool}
            kind, duration = event.kind, event.duration or 0.0
            if kind is EventKind.CONNECTION_READY:
                if not http and not reports_itself():
                    self._report(self._create.record, duration, name)
            elif kind is EventKind.RELEASED:
                self._report(self._use.record, duration, name)
            elif kind is EventKind.CONNECT_FAILED:
                self._report(self._errors.add, 1, {**name, "error.type": type(event.error).__qualname__})
            elif kind is EventKind.LEASE_LEAKED:
                self._report(self._leaked.add, 1, name)
            elif event.reason is not None:
                self._report(self._closed.add, 1, {**name, "poolkit.close.reason": event.reason.value})
                if http and event.key is not None:
                    self._report(self._life.record, duration, _address(event.key))

        return listener

    def _report(self, call: Callable[[Any, Any], object], value: float, attributes: dict[str, Any]) -> None:
        """Record with the context of the caller, so that an exemplar names its trace."""
        context = self._context.get_current()
        self.metrics.do(lambda: self._in(context, lambda: call(value, attributes)))

    def _in(self, context: Any, call: Callable[[], object]) -> None:
        token = self._context.attach(context)
        try:
            call()
        finally:
            self._context.detach(token)

    def _waited(self, pool: Any, seconds: float, error: BaseException | None) -> None:
        if error is None:
            if _is_http(pool):
                self._report(self._http_wait.record, seconds, {"poolkit.pool.name": pool.name})
            elif not _reports_itself(pool):
                self._report(self._wait.record, seconds, {_POOL: pool.name})
        if self._spans is not None:
            context, end, name = self._context.get_current(), time.time_ns(), pool.name
            self._spans.do(lambda: self._in(context, lambda: self._span(name, end, seconds, error)))

    def _span(self, pool: str, end: int, seconds: float, error: BaseException | None) -> None:
        assert self._tracer is not None  # without it there are no spans to report
        span = self._tracer.start_span("pool.acquire", start_time=end - int(seconds * 1e9), attributes={_POOL: pool})
        if error is not None:
            # its cause, the driver's error, contains unmasked text of the server
            told = {"exception.message": said(error, 2000)}
            told["exception.stacktrace"] = masked("".join(traceback.format_exception(error)))
            span.record_exception(error, attributes=told)
            span.set_status(self._error_status)
        span.end(end)


class _Place:
    """A provider: the given one, or the global one at the time of use."""

    def __init__(self, kind: str, named: Any, current: Callable[[], Any]) -> None:
        self.kind = kind
        self._named = None if named is None else weakref.ref(named)
        self._current = current

    @property
    def provider(self) -> Any:
        """Return the provider; None if it is gone."""
        return self._current() if self._named is None else self._named()


class _Seen:
    """The statistics of all pools for one collection, each pool read once."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.asked: set[str] = set()  # the instruments that have answered
        self._stats: weakref.WeakKeyDictionary[Any, PoolStats] = weakref.WeakKeyDictionary()
        self._endpoints: weakref.WeakKeyDictionary[Any, list[LaneStats]] = weakref.WeakKeyDictionary()

    def stats(self, pool: Any) -> PoolStats:
        """Return the statistics of a pool, as of the first request."""
        found = self._stats.get(pool)
        if found is None:
            found = self._stats[pool] = pool.stats()
        return found

    def endpoints(self, pool: Any) -> list[LaneStats]:
        """Return the statistics of the endpoints that have a key, as of the first request."""
        found = self._endpoints.get(pool)
        if found is None:
            found = self._endpoints[pool] = [endpoint for endpoint in pool.lane_stats() if endpoint.key is not None]
        return found


class _Gauges:
    """The observable instruments of one meter provider. Instruments cannot be removed from a provider, and the SDK does
    not read those that are created a second time. So they are created once and read from the current ``reporter``.

    The SDK reads one instrument after the other. The first one reads the pools for all of them; a new collection begins
    when an instrument is read that has already answered.
    """

    def __init__(self, meter: Any, observation: Any) -> None:
        self.reporter: Instrumentation | None = None
        self._observation = observation
        self._seen: _Seen | None = None
        up_down = meter.create_observable_up_down_counter

        def numbers(value: Callable[[PoolStats], Any], *, own: bool = False) -> _Read:
            return partial(self._numbers, value, own)

        for name, unit, text, read in (
            ("db.client.connection.max", "connection", "The maximum number of open connections.",
             numbers(lambda s: s.max_size)),
            ("db.client.connection.idle.max", "connection", "The maximum number of idle connections.",
             numbers(lambda s: s.max_idle)),
            ("db.client.connection.idle.min", "connection", "The minimum number of idle connections.",
             numbers(lambda s: s.min_size)),
            ("db.client.connection.pending_requests", "request", "Requests that wait for a connection.",
             numbers(lambda s: s.waiting)),
            # the conventions have no name for the limit of autoscale
            ("poolkit.connection.limit", "connection", "Connections that may exist now.", numbers(lambda s: s.limit)),
            ("poolkit.queue.overloaded", "queue", "Queues whose newest callers come first, because many give up.",
             numbers(lambda s: s.overloaded)),
            ("db.client.connection.count", "connection", "Connections by state.", self._states),
            ("http.client.open_connections", "connection", "HTTP connections by state.", self._http_states),
            ("http.client.active_requests", "request", "Active HTTP requests.", self._http_requests),
        ):  # fmt: skip
            up_down(name, [self._callback(name, read)], f"{{{unit}}}", text)
        name = "db.client.connection.timeouts"
        meter.create_observable_counter(
            name, [self._callback(name, numbers(lambda s: s.timeouts, own=True))], "{timeout}",
            "Timeouts while obtaining a connection.",
        )  # fmt: skip
        name = "poolkit.queue.overloads"
        meter.create_observable_counter(
            name, [self._callback(name, numbers(lambda s: s.overloads))], "{overload}",
            "Times that a queue became overloaded.",
        )  # fmt: skip

    def _callback(self, name: str, read: _Read) -> Callable[[Any], Iterable[Any]]:
        def observe(options: Any) -> Iterable[Any]:
            reporter, seen = self.reporter, self._seen
            if reporter is None:
                return
            if seen is None or name in seen.asked or time.monotonic() - seen.at >= LONGEST:
                reporter.metrics.catch_up(CATCH_UP)
                seen = self._seen = _Seen()
            seen.asked.add(name)
            pools = [pool for pool in live_pools() if pool in reporter.attached]
            yield from (self._observation(value, attributes) for value, attributes in read(seen, pools))

        return observe

    @staticmethod
    def _numbers(value: Callable[[PoolStats], Any], own: bool, seen: _Seen, pools: list[Any]) -> _Points:
        """Return the numbers of a metric. ``own``: skip the pools whose driver reports this metric itself."""
        for pool in pools:
            if not _is_http(pool) and not (own and _reports_itself(pool)):
                found = value(seen.stats(pool))
                if found is not None:
                    yield found, {_POOL: pool.name}

    @staticmethod
    def _states(seen: _Seen, pools: list[Any]) -> _Points:
        for pool in pools:
            if not _is_http(pool) and not _reports_itself(pool):
                stats = seen.stats(pool)
                yield stats.idle, {_POOL: pool.name, _STATE: "idle"}
                yield stats.in_use, {_POOL: pool.name, _STATE: "used"}

    @staticmethod
    def _http_states(seen: _Seen, pools: list[Any]) -> _Points:
        for pool in pools:
            for endpoint in seen.endpoints(pool) if _is_http(pool) else ():
                where = _address(endpoint.key)
                yield endpoint.idle, {**where, "http.connection.state": "idle"}
                yield endpoint.in_use, {**where, "http.connection.state": "active"}

    @staticmethod
    def _http_requests(seen: _Seen, pools: list[Any]) -> _Points:
        for pool in pools:
            for endpoint in seen.endpoints(pool) if _is_http(pool) else ():
                yield endpoint.leases, _address(endpoint.key)


_live: weakref.WeakSet[Instrumentation] = weakref.WeakSet()
_made: weakref.WeakKeyDictionary[Any, _Gauges] = weakref.WeakKeyDictionary()


def _gauges_of(provider: Any, meter: Any, observation: Any) -> _Gauges:
    """Return the instruments of a provider. Those created before a global provider was set belong to that provider."""
    found = _made.get(provider)
    if found is None:
        proxied = [gauges for known, gauges in list(_made.items()) if _is_proxy(known)]
        found = proxied[0] if proxied and _is_global(provider) else _Gauges(meter, observation)
        _made[provider] = found
    return found


def _is_proxy(provider: Any) -> bool:
    return type(provider).__name__ == "_ProxyMeterProvider"


def _is_global(provider: Any) -> bool:
    from opentelemetry import metrics

    return metrics.get_meter_provider() is provider


class _Listener:
    """A listener of certain kinds: none of those that every lease emits, unless leases are measured."""

    def __init__(self, listener: Listener, kinds: frozenset[EventKind]) -> None:
        self.kinds = kinds
        self._listener = listener

    def __call__(self, event: Event) -> None:
        self._listener(event)


def _own_metrics(pool: Any) -> Callable[[], bool]:
    """Return whether the driver reports connections of this pool itself, at the moment."""
    return getattr(pool._connector, "own_metrics", None) or (lambda: False)


def _reports_itself(pool: Any) -> bool:
    return _own_metrics(pool)()


def _is_http(pool: Any) -> bool:
    return getattr(pool._connector, "protocol", None) == "http"


def _address(key: Any) -> dict[str, Any]:
    """Return the attributes of an HTTP origin: scheme, host and port."""
    scheme, host, port = key[:3]
    return {"server.address": _text(host), "server.port": port, "url.scheme": _text(scheme)}


def _text(value: Any) -> str:
    return shown(value)
