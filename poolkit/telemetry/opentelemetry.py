"""OpenTelemetry: metrics by its semantic conventions, and spans for waits. Needs
``pip install 'poolkit[opentelemetry]'``; the SDK and its exporters are the application's choice.

Gauges and totals are observable instruments, read when the SDK collects. Waits and connects are recorded when they
happen. What is on the lock-free way is not touched: an acquire that finds an idle connection is in no histogram
(``use_time=True`` measures leases, and makes every release take the lock).
"""

from __future__ import annotations

import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .._lifecycle import live_pools, snapshot, watch_pools
from ..errors import MissingExtra, masked, said, shown
from ..events import Event, EventKind, Listener
from ..policies.meters import BOUNDS
from ._aside import Aside

__all__ = ("Instrumentation", "instrument")

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
CATCH_UP = 1.0  # seconds that a collection waits for what has happened before it and was not recorded yet
_asides: weakref.WeakSet[Aside] = weakref.WeakSet()


def _api() -> tuple[Any, Any, Any]:
    try:
        from opentelemetry import context, metrics, trace
    except ImportError:
        raise MissingExtra("OpenTelemetry needs its API: pip install 'poolkit[opentelemetry]'") from None
    return context, metrics, trace


def instrument(
    *, meter_provider: Any = None, tracer_provider: Any = None, spans: bool = False, use_time: bool = False
) -> Instrumentation:
    """Report all pools of the process, those made later included, until ``close()`` of what is returned.

    What happens is reported from threads of its own: a provider or exporter that is slow holds nobody up, and one that
    raises is told of once and gets the next news all the same. ``close()`` waits up to 5 s for each of the two.

    Providers default to the global ones. ``spans``: a span "pool.acquire" for each acquire that found no idle
    connection at once, in the context of its caller. ``use_time``: measure each lease. Raises MissingExtra.
    """
    return Instrumentation(meter_provider, tracer_provider, spans=spans, use_time=use_time)


class Instrumentation:
    """What :func:`instrument` has set up."""

    def __init__(self, meter_provider: Any, tracer_provider: Any, *, spans: bool, use_time: bool) -> None:
        self._context, metrics, trace = _api()
        self._observation = metrics.Observation
        meter = metrics.get_meter("poolkit", meter_provider=meter_provider)
        self._tracer = trace.get_tracer("poolkit", tracer_provider=tracer_provider) if spans else None
        self._error_status = trace.Status(trace.StatusCode.ERROR)
        self._use_time = use_time
        # two: a slow exporter of spans is not to hold up the metrics
        self._metrics = Aside("OpenTelemetry's metrics")
        _asides.add(self._metrics)
        self._spans = Aside("OpenTelemetry's spans") if spans else None
        self._attached: weakref.WeakKeyDictionary[Any, Listener] = weakref.WeakKeyDictionary()
        self._observe(meter)

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
        self._end = watch_pools(self._attach)

    def close(self) -> None:
        """Report nothing any more."""
        self._end()
        for pool in snapshot(self._attached):
            pool.remove_listener(self._attached[pool])
            pool.remove_wait_observer(self._waited)
        self._attached.clear()
        self._metrics.close()
        if self._spans is not None:
            self._spans.close()

    # -- read at collection ---------------------------------------------------------------------------------------

    def _observe(self, meter: Any) -> None:
        up_down = meter.create_observable_up_down_counter
        for name, unit, text, value in (
            ("max", "{connection}", "The maximum number of open connections.", lambda s: s.max_size),
            ("idle.max", "{connection}", "The maximum number of idle connections.", lambda s: s.max_idle),
            ("idle.min", "{connection}", "The minimum number of idle connections.", lambda s: s.min_size),
            ("pending_requests", "{request}", "Requests that wait for a connection.", lambda s: s.waiting),
        ):
            up_down(f"db.client.connection.{name}", [self._numbers(value, own=False)], unit, text)
        limit = self._numbers(lambda s: s.limit, own=False)  # autoscale is not known to the conventions
        up_down("poolkit.connection.limit", [limit], "{connection}", "Connections that may exist now.")
        up_down("db.client.connection.count", [self._states], "{connection}", "Connections by state.")
        meter.create_observable_counter(
            "db.client.connection.timeouts", [self._numbers(lambda s: s.timeouts, own=True)], "{timeout}",
            "Timeouts while obtaining a connection.",
        )  # fmt: skip
        up_down("http.client.open_connections", [self._http_states], "{connection}", "HTTP connections by state.")
        up_down("http.client.active_requests", [self._http_requests], "{request}", "Active HTTP requests.")

    def _pools(self, http: bool) -> Iterable[Any]:
        return (pool for pool in live_pools() if pool in self._attached and _is_http(pool) is http)

    def _numbers(self, value: Callable[[Any], Any], *, own: bool) -> Callable[[Any], Iterable[Any]]:
        """``own``: left to the driver where that reports it itself."""

        def observe(options: Any) -> Iterable[Any]:
            for aside in snapshot(_asides):  # not ours alone: the SDK calls the first who made the instrument
                aside.catch_up(CATCH_UP)
            for pool in self._pools(http=False):
                if own and _reports_itself(pool):
                    continue
                found = value(pool.stats())
                if found is not None:
                    yield self._observation(found, {_POOL: pool.name})

        return observe

    def _states(self, options: Any) -> Iterable[Any]:
        for pool in self._pools(http=False):
            if not _reports_itself(pool):
                stats = pool.stats()
                yield self._observation(stats.idle, {_POOL: pool.name, _STATE: "idle"})
                yield self._observation(stats.in_use, {_POOL: pool.name, _STATE: "used"})

    def _http_states(self, options: Any) -> Iterable[Any]:
        for pool in self._pools(http=True):
            for lane in pool.lane_stats():
                if lane.key is not None:
                    where = _address(lane.key)
                    yield self._observation(lane.idle, {**where, "http.connection.state": "idle"})
                    yield self._observation(lane.in_use, {**where, "http.connection.state": "active"})

    def _http_requests(self, options: Any) -> Iterable[Any]:
        for pool in self._pools(http=True):
            for lane in pool.lane_stats():
                if lane.key is not None:
                    yield self._observation(lane.leases, _address(lane.key))

    # -- told when it happens -------------------------------------------------------------------------------------

    def _attach(self, pool: Any) -> None:
        kinds = {EventKind.CONNECTION_READY, EventKind.CONNECTION_CLOSED, EventKind.CONNECT_FAILED,
                 EventKind.LEASE_LEAKED}  # fmt: skip
        http = _is_http(pool)
        if self._use_time and not http:
            kinds.add(EventKind.RELEASED)
        listener = _Listener(self._listener(http, _own_metrics(pool)), frozenset(kinds))
        self._attached[pool] = listener
        pool.add_listener(listener)
        pool.add_wait_observer(self._waited)

    def _listener(self, http: bool, reports_itself: Callable[[], bool]) -> Listener:
        """For one pool, to which it must not refer: the pool holds it."""

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
        """With the context of whom it happens to: an exemplar names its trace."""
        context = self._context.get_current()
        self._metrics.do(lambda: self._in(context, lambda: call(value, attributes)))

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
            # the driver's error, its cause, says whatever the server has sent
            told = {"exception.message": said(error, 2000)}
            told["exception.stacktrace"] = masked("".join(traceback.format_exception(error)))
            span.record_exception(error, attributes=told)
            span.set_status(self._error_status)
        span.end(end)


class _Listener:
    """With the kinds that it wants: none of those that every lease tells, unless leases are measured."""

    def __init__(self, listener: Listener, kinds: frozenset[EventKind]) -> None:
        self.kinds = kinds
        self._listener = listener

    def __call__(self, event: Event) -> None:
        self._listener(event)


def _own_metrics(pool: Any) -> Callable[[], bool]:
    """Whether the driver reports connections of this pool itself, at the moment."""
    return getattr(pool._connector, "own_metrics", None) or (lambda: False)


def _reports_itself(pool: Any) -> bool:
    return _own_metrics(pool)()


def _is_http(pool: Any) -> bool:
    return getattr(pool._connector, "protocol", None) == "http"


def _address(key: Any) -> dict[str, Any]:
    """The attributes of an HTTP origin: scheme, host and port."""
    scheme, host, port = key[:3]
    return {"server.address": _text(host), "server.port": port, "url.scheme": _text(scheme)}


def _text(value: Any) -> str:
    return shown(value)
