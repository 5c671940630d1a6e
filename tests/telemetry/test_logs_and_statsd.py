"""Log entries that do not flood, and statsd's datagrams."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit import ConfigError, Event, EventKind, Pool, UsageError
from poolkit._fast import decline_put
from poolkit.policies.rate import Allowance
from poolkit.telemetry import logs
from poolkit.telemetry.logs import EventLog, JsonFormatter, log_events
from poolkit.telemetry.statsd import StatsdReporter
from poolkit.testing import FakeConnection, FakeConnector, ManualClock


def test_an_allowance_fills_up_again_and_counts_what_it_held_back() -> None:
    allowance = Allowance(2, 60.0, 0.0)
    assert [allowance.take(0.0) for _ in range(4)] == [0, 0, None, None]
    assert allowance.take(29.0) is None
    assert allowance.take(31.0) == 3
    assert allowance.take(31.0) is None
    assert [allowance.take(1000.0) for _ in range(3)] == [1, 0, None]


def test_events_are_entries_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "poolkit.events")
    connector = FakeConnector(resets=False)
    with Pool(connector, name="orders-db", acquire_timeout=0.05) as pool:
        stop = log_events()
        assert pool._put is not decline_put  # nobody is slowed down
        connector.fail("connect", lambda: ConnectionRefusedError("refused by db1"))
        with pytest.raises(TimeoutError):
            pool.acquire()
        stop()
        connector.fail("connect", None)
        pool.release(pool.acquire(timeout=5))
    failed = next(r for r in caplog.records if "connect failed" in r.getMessage())
    assert failed.levelno == logging.WARNING
    assert failed.getMessage().startswith("orders-db: connect failed connection=1 seconds=")
    assert 'error="ConnectionRefusedError: refused by db1"' in failed.getMessage()
    assert any("acquire failed" in r.getMessage() and "reason=timeout" in r.getMessage() for r in caplog.records)
    assert not any("connection ready" in r.getMessage() for r in caplog.records)  # after stop()
    entry = json.loads(JsonFormatter().format(failed))
    assert (entry["pool"], entry["event"], entry["connection"]) == ("orders-db", "connect failed", 1)
    assert entry["error"] == "ConnectionRefusedError: refused by db1"
    assert entry["level"] == "WARNING"


def test_a_flood_is_held_back_and_counted_for_each_pool_and_kind(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    log = EventLog(burst=3, clock=clock)
    for pool in ("a", "b"):
        for _ in range(100):
            log(Event(EventKind.CONNECT_FAILED, pool, 0.0))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["a"] * 3 + ["b"] * 3
    clock.advance(30)
    log(Event(EventKind.CONNECT_FAILED, "a", 0.0))
    assert "held_back=97" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("burst", [0, 1.5, True])
def test_an_impossible_rate_is_an_error(burst: object) -> None:
    with pytest.raises(ConfigError, match=r"burst=.*: must be a number of log entries, 1 or more"):
        EventLog(burst=burst)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(5)
        yield listening


def received(server: socket.socket) -> list[str]:
    """The lines of what has come, until a packet that is not full, or none."""
    lines: list[str] = []
    while True:
        try:
            packet = server.recv(4096)
        except TimeoutError:
            if lines:  # the last one was full by chance
                return lines
            raise
        assert len(packet) <= 1432
        lines += packet.decode().split("\n")
        if len(packet) < 1300:
            return lines


@pytest.mark.parametrize("tags", [False, True])
def test_statsd_gets_gauges_and_what_was_added(server: socket.socket, tags: bool) -> None:
    with Pool(FakeConnector(), name="orders.db", max_size=3) as pool:
        reporter = StatsdReporter(port=server.getsockname()[1], interval=3600, tags=tags, pools=lambda: [pool])
        for _ in range(4):
            with pool.lease():
                pass
        reporter.send()
        first = received(server)
        with pool.lease():
            reporter.send()
            second = received(server)
        reporter.close()
    if tags:
        assert "poolkit.connections_max:3|g|#pool:orders_db" in first
        assert "poolkit.acquires:4|c|#pool:orders_db" in first
        assert "poolkit.acquires:1|c|#pool:orders_db" in second
        assert "poolkit.connections:1|g|#pool:orders_db,state:in_use" in second
    else:
        assert "poolkit.orders_db.connections_max:3|g" in first
        assert "poolkit.orders_db.acquires:4|c" in first
        assert "poolkit.orders_db.acquires:1|c" in second
        assert "poolkit.orders_db.connections.in_use:1|g" in second
    assert any("connect_ms_p95" in line or "connect_ms.p95" in line for line in first)


@pytest.mark.parametrize("chosen", [False, True])
def test_statsd_loses_nothing_of_pools_that_are_closed_between_two_sends(server: socket.socket, chosen: bool) -> None:
    """A pool that was known, one of the same name that lived for a moment, and the one that is there now."""
    current: list[Pool[FakeConnection]] = []
    options = {"pools": lambda: current} if chosen else {}
    reporter = StatsdReporter(port=server.getsockname()[1], interval=3600, **options)  # type: ignore[arg-type]

    def use(pool: Pool[FakeConnection], times: int) -> None:
        for _ in range(times):
            with pool.lease():
                pass

    def sent() -> list[str]:
        reporter.send()
        return [line for line in received(server) if line.startswith("poolkit.made-again.acquires:")]

    first = Pool(FakeConnector(), name="made-again")
    current.append(first)
    use(first, 5)
    assert sent() == ["poolkit.made-again.acquires:5|c"]
    use(first, 3)
    first.close()
    current.clear()
    with Pool(FakeConnector(), name="made-again") as brief:  # made and closed between two sends
        use(brief, 10)
    now = Pool(FakeConnector(), name="made-again")
    current.append(now)
    use(now, 2)
    assert sent() == [f"poolkit.made-again.acquires:{5 if chosen else 15}|c"]
    use(now, 1)
    assert sent() == ["poolkit.made-again.acquires:1|c"]
    use(now, 4)
    now.close()
    current.clear()
    reporter.close()
    lines = received(server)
    assert "poolkit.made-again.acquires:4|c" in lines
    assert not [line for line in lines if line.startswith("poolkit.made-again.connections_max")]  # it is no more


def test_statsd_reports_by_itself_and_survives_a_server_that_is_not_there(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with Pool(FakeConnector(), name="db") as pool:
        reporter = StatsdReporter(port=port, interval=0.02, pools=lambda: [pool])
        assert received(server)
        assert received(server)
        server.close()
        reporter.send()
        reporter.send()
        reporter.close()
        reporter.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": 0}, r"port=0: must be a port, 1 to 65535"),
        ({"port": "8125"}, r"port='8125': must be a port"),
        ({"interval": 0}, r"interval=0: must be a time in seconds"),
        ({"host": "no such host"}, r"host='no such host': cannot be resolved"),
    ],
)
def test_statsd_says_what_is_wrong(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        StatsdReporter(**options)  # type: ignore[arg-type]


def test_new_pools_are_watched_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "poolkit.events")
    stop = log_events()
    Pool(FakeConnector(), name="made-later").close()
    stop()
    assert [r.getMessage() for r in caplog.records if r.name == "poolkit.events"] == [
        "made-later: pool created", "made-later: pool closed",
    ]  # fmt: skip


def test_a_second_reporter_of_the_same_pools_to_one_address_is_refused() -> None:
    """The server would add up the counters of both."""
    with Pool(FakeConnector(), name="a") as a, Pool(FakeConnector(), name="b") as b:
        first = StatsdReporter(port=18125, interval=3600)
        with pytest.raises(UsageError, match="another reporter sends the same pools there"):
            StatsdReporter(port=18125, interval=3600, tags=True)
        others = [
            StatsdReporter(port=18126, interval=3600),
            StatsdReporter(port=18127, interval=3600, pools=lambda: [a]),
            StatsdReporter(port=18127, interval=3600, pools=lambda: [b]),
        ]
        first.close()
        others.append(StatsdReporter(port=18125, interval=3600))
        for one in others:
            one.close()


@pytest.mark.parametrize("levels", [{"x": 1}, {EventKind.POOL_CLOSED: "INFO"}, {EventKind.POOL_CLOSED: True}, 5, []])
def test_levels_are_for_kinds_of_events(levels: Any) -> None:
    with pytest.raises(ConfigError, match=r"levels=.*EventKind"):
        log_events(levels=levels)


def test_a_log_forgets_the_rates_of_pools_that_are_long_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last stay: a flood of one pool is held back while others come and go."""
    monkeypatch.setattr(logs, "MOST", 10)
    log = EventLog(burst=2, clock=ManualClock())
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("poolkit.events")
    logger.addHandler(handler)
    try:
        for number in range(100):
            log(Event(EventKind.CONNECT_FAILED, "flood", 0.0))
            log(Event(EventKind.CONNECT_FAILED, f"pool-{number}", 0.0))
    finally:
        logger.removeHandler(handler)
    assert sum(text.startswith("flood:") for text in written) == 2
    assert len(log._allowances) == 10
