"""Each exporter that raises, and each that hangs: in nobody's way, told of once, and tried again."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest

from poolkit import AcquireTimeout, ConfigError, Event, EventKind, Pool
from poolkit.telemetry import statsd
from poolkit.telemetry._aside import Once
from poolkit.telemetry.alerts import Alerts
from poolkit.telemetry.logs import EventLog, log_events
from poolkit.telemetry.opentelemetry import instrument
from poolkit.telemetry.prometheus import PoolCollector, register
from poolkit.telemetry.statsd import StatsdReporter
from poolkit.testing import FakeConnection, FakeConnector
from tests.simulation.interleave import Interleaving
from tests.support.waiting import PATIENCE, until

OFTEN = 0.01  # seconds between two reports


class Behaviour:
    """What somebody else's code does when it is called."""

    def __init__(self) -> None:
        self.raises = self.hangs = False
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.raised = self.passed = 0

    def __call__(self) -> None:
        if self.raises:
            self.raised += 1
            raise ValueError("a bad day")
        if self.hangs:
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
        self.passed += 1


def use(pool: Pool[FakeConnection]) -> None:
    """What callers do: connect, close, wait in vain."""
    with pool.lease(PATIENCE):
        with pytest.raises(AcquireTimeout):
            pool.acquire(0)
    pool.clear()


# -- the exporters: each calls the behaviour in place of somebody else's code ----------------------------------------


@contextmanager
def statsd_socket(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setattr(statsd._Server, "send", lambda server, packet: behave())
    reporter = StatsdReporter(port=18125, interval=OFTEN, pools=lambda: [pool])
    yield
    reporter.close()


@contextmanager
def statsd_pools(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    reporter = StatsdReporter(port=18125, interval=OFTEN, pools=lambda: [behave(), pool][1:])
    yield
    reporter.close()


@contextmanager
def prometheus_processes(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    armed: list[bool] = []  # the first numbers are written by who makes the collector, and told at once
    collector = PoolCollector(lambda: [behave() if armed else None, pool][1:], directory=tmp, interval=OFTEN)
    armed.append(True)
    yield
    armed.clear()
    collector.close()


@contextmanager
def opentelemetry_metrics(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    class Counter:
        def add(self, *args: Any) -> None:
            behave()

    instrumentation = instrument(meter_provider=MeterProvider())
    instrumentation._closed = Counter()
    yield
    instrumentation.close()


@contextmanager
def opentelemetry_spans(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    class Exporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    provider._active_span_processor.on_end = lambda span: behave()  # type: ignore[method-assign]
    instrumentation = instrument(meter_provider=MeterProvider(), tracer_provider=provider, spans=True)
    yield
    instrumentation.close()


@contextmanager
def log_handler(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "poolkit", {}).get("pool") == "watched":
                behave()

    logger, handler = logging.getLogger("tests.failing"), Handler()
    patch.setattr(logger, "propagate", False)
    logger.addHandler(handler)
    stop = log_events(logger, burst=10_000)
    yield
    stop()
    logger.removeHandler(handler)


@contextmanager
def alert_callback(pool: Any, behave: Behaviour, tmp: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An alert begins in one look and ends in the next."""
    turns = iter(range(10**9))
    patch.setattr(Alerts, "_look_at", lambda self, pool, stats: [alert] if next(turns) else [])
    alert = type("Alert", (), {"raised": True, "severity": "info", "pool": "watched", "name": "a", "text": "t"})()
    alerts = Alerts(callback=lambda alert: behave(), interval=OFTEN, pools=lambda: [pool])
    yield
    alerts.close()


EXPORTERS: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "statsd: socket": statsd_socket,
    "statsd: choice of pools": statsd_pools,
    "prometheus: several processes": prometheus_processes,
    "opentelemetry: metrics": opentelemetry_metrics,
    "opentelemetry: spans": opentelemetry_spans,
    "logs: handler": log_handler,
    "alerts: callback": alert_callback,
}
EACH_TIME = {"alerts: callback"}
"""Those that log every failure: what was lost is an alert, and there are few."""


@pytest.fixture
def pool() -> Iterator[Pool[FakeConnection]]:
    with Pool(FakeConnector(), name="watched", max_size=1) as pool:
        yield pool


@pytest.mark.parametrize("name", EXPORTERS)
def test_one_that_raises_is_told_of_once_and_tried_again(
    name: str, pool: Pool[FakeConnection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    behave = Behaviour()
    behave.raises = True
    with caplog.at_level(logging.WARNING, "poolkit"), EXPORTERS[name](pool, behave, tmp_path, monkeypatch):

        def worked_with(count: str, least: int) -> bool:
            use(pool)  # callers notice nothing
            return int(getattr(behave, count)) >= least

        until(lambda: worked_with("raised", 3))
        behave.raises = False
        until(lambda: worked_with("passed", 3))
    told = [record for record in caplog.records if "a bad day" in record.getMessage() + str(record.exc_info)]
    assert len(told) == 1 or name in EACH_TIME


@pytest.mark.parametrize("name", EXPORTERS)
def test_one_that_hangs_is_in_nobodys_way(
    name: str, pool: Pool[FakeConnection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers go on as long as it hangs: each of these calls would stand in it for ``PATIENCE``, and fail."""
    behave = Behaviour()
    behave.hangs = True
    with EXPORTERS[name](pool, behave, tmp_path, monkeypatch):
        until(lambda: use(pool) or behave.entered.is_set())  # type: ignore[func-returns-value]
        for _ in range(5):
            use(pool)
        assert behave.passed == 0
        behave.go_on.set()
        until(lambda: use(pool) or behave.passed > 0)  # type: ignore[func-returns-value]


# -- statsd's DNS -----------------------------------------------------------------------------------------------------


def test_a_dns_that_hangs_is_waited_for_elsewhere_and_what_was_counted_is_sent_later(
    pool: Pool[FakeConnection], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    really, answered = socket.getaddrinfo, threading.Event()

    def slow(host: Any, *args: Any, **options: Any) -> Any:
        if host == "statsd.example":
            assert answered.wait(PATIENCE)
            host = "127.0.0.1"
        return really(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(statsd, "RESOLVE", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        reporter = StatsdReporter("statsd.example", server.getsockname()[1], interval=3600, pools=lambda: [pool])
        for _ in range(3):
            pool.lease().close()
        reporter.send()  # returns, and sends nothing
        answered.set()
        until(lambda: reporter._server.look_up(0))
        reporter.send()
        text = ""
        while "acquires:3|c" not in text:
            text += server.recv(4096).decode()
        reporter.close()
    assert "statsd.example is not resolved after" in caplog.text


def test_a_host_that_there_is_not_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be resolved"):
        StatsdReporter("x" * 70 + ".example")  # no name at all

    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"cannot be resolved: .*Name or service not known"):
        StatsdReporter("no-such-host.example")


# -- a pool that closes meanwhile -------------------------------------------------------------------------------------


def test_a_pool_that_closes_in_the_midst_of_a_scrape_does_not_end_it() -> None:
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(Pool(FakeConnector(), name=f"p{number}")) for number in range(3)]

        def closing() -> Iterator[Any]:
            for pool in pools:
                pool.close()
                yield pool

        registry = CollectorRegistry()
        register(registry, pools=closing)
        text = generate_latest(registry).decode()
    assert 'poolkit_acquires_total{pool="p2"} 0.0' in text


# -- code of users ----------------------------------------------------------------------------------------------------


def test_a_listener_or_observer_that_raises_is_not_seen_by_callers_told_of_once_and_dropped(
    pool: Pool[FakeConnection], caplog: pytest.LogCaptureFixture
) -> None:
    """So it is promised: these run in the callers' threads, and one that is broken is not to cost each of them."""

    def listener(event: Event) -> None:
        raise ValueError("a bad listener")

    def observer(pool: Any, seconds: float, error: BaseException | None) -> None:
        raise ValueError("a bad observer")

    pool.add_listener(listener)
    pool.add_wait_observer(observer)
    for _ in range(3):
        use(pool)
    told = [str(record.exc_info and record.exc_info[1]) for record in caplog.records]
    assert (told.count("a bad listener"), told.count("a bad observer")) == (1, 1)


def test_an_event_log_as_a_listener_survives_its_handler(
    pool: Pool[FakeConnection], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("tests.listening")
    behave = Behaviour()
    behave.raises = True
    monkeypatch.setattr(logger, "handle", lambda record: behave())
    pool.add_listener(EventLog(logger, levels={EventKind.POOL_CLEARED: logging.ERROR}))
    for _ in range(3):
        use(pool)
    behave.raises = False
    use(pool)
    assert (behave.raised, behave.passed) == (3, 1)
    assert caplog.text.count("the log of events: failed; later calls are still made: ValueError: a bad day") == 1


def test_a_handler_of_the_engines_own_log_that_raises_is_not_seen_by_callers(
    pool: Pool[FakeConnection], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(record: logging.LogRecord) -> None:
        raise ValueError("a broken handler")

    monkeypatch.setattr(logging.getLogger("poolkit"), "handle", broken)
    pool.add_listener(lambda event: 1 / 0)  # type: ignore[arg-type, return-value]
    use(pool)
    use(pool)
    assert capsys.readouterr().err.count("ValueError: a broken handler") == 1
    pool.check_books()


def test_threads_that_fail_at_the_same_moment_log_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(20):
        caplog.clear()
        once, world = Once("an exporter"), Interleaving(seed, switch=0.5)
        for _ in range(3):
            world.spawn(once.tell, "raised", "failed")
        world.run()
        assert len(caplog.records) == 1, f"seed {seed}"
