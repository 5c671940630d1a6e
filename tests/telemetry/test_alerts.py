"""Alerts begin and end once, and reach callbacks, listeners and the log."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit import AcquireTimeout, BreakerConfig, CircuitOpen, ConfigError, Event, EventKind, Pool
from poolkit.policies.diagnose import Cause
from poolkit.policies.hysteresis import Hysteresis
from poolkit.telemetry.alerts import Alert, Alerts, Thresholds, live_alerts
from poolkit.testing import FakeConnector, ManualClock


@pytest.fixture(autouse=True)
def _alerts_end_with_their_test() -> Iterator[None]:
    """Those that are not collected yet would be the alerts of the process in later tests."""
    yield
    for one in live_alerts():
        one.close()


def test_a_value_that_trembles_around_the_line_raises_one_alert() -> None:
    line = Hysteresis(0.8, 0.64)
    values = [0.5, 0.81, 0.79, 0.82, 0.7, 0.9, 0.64, 0.7, 0.81]
    assert [line.update(value, 0.0) for value in values] == [
        False, True, False, False, False, False, True, False, True,
    ]  # fmt: skip


def test_what_must_last_is_not_raised_by_a_moment() -> None:
    line = Hysteresis(0.0, 0.0, after=10)
    assert not line.update(1, 0.0)
    assert not line.update(0, 5.0)
    assert not line.update(1, 6.0)
    assert not line.update(1, 15.0)
    assert line.update(1, 16.0)
    assert line.raised


class Watched:
    """A pool on a clock by hand, with everything that its alerts reach."""

    def __init__(self, thresholds: Thresholds | None = None, connector: FakeConnector | None = None, **settings: Any):
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.told: list[Alert] = []
        self.pool = Pool(connector or FakeConnector(), name="db", clock=self.clock, listeners=[self.events.append],
                         **settings)  # fmt: skip
        self.alerts = Alerts(thresholds, self.told.append, interval=None, pools=lambda: [self.pool], clock=self.clock)

    def check(self) -> list[tuple[str, bool]]:
        return [(alert.name, alert.raised) for alert in self.alerts.check()]


def test_utilisation_is_raised_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "poolkit")
    watched = Watched(Thresholds(half_used=None), max_size=2)
    held = [watched.pool.acquire(), watched.pool.acquire()]
    for _ in range(12):
        watched.clock.advance(1)
        watched.alerts.check()
    assert [(alert.name, alert.severity, alert.raised) for alert in watched.told] == [("utilisation", "warning", True)]
    assert watched.told[0].text == "100% of the connections are in use"
    assert [alert.name for alert in watched.alerts.active()] == ["utilisation"]
    for connection in held:
        watched.pool.release(connection)
    for _ in range(12):
        watched.clock.advance(1)
        watched.alerts.check()
    assert [alert.raised for alert in watched.told] == [True, False]
    assert watched.alerts.active() == []
    assert "db: alert utilisation raised: 100% of the connections are in use" in caplog.text
    assert [(e.kind, e.detail) for e in watched.events if e.kind.name.startswith("ALERT")] == [
        (EventKind.ALERT_RAISED, "utilisation: 100% of the connections are in use"),
        (EventKind.ALERT_CLEARED, "utilisation: utilisation: over"),
    ]
    watched.pool.close()


def test_half_of_the_limit_is_an_early_notice() -> None:
    watched = Watched(max_size=10)
    held = [watched.pool.acquire() for _ in range(6)]
    for _ in range(40):
        watched.clock.advance(10)
        watched.alerts.check()
    # it is told after half a minute, so its text must not claim five minutes
    assert [(alert.name, alert.severity, alert.text) for alert in watched.told] == [
        ("half_used", "info", "60% of the limit is in use over up to 5 minutes")
    ]
    for connection in held:
        watched.pool.release(connection)
    watched.pool.close()


def test_waits_a_queue_and_timeouts() -> None:
    watched = Watched(Thresholds(utilisation=None, half_used=None), max_size=1)
    held = watched.pool.acquire()
    thread = threading.Thread(target=lambda: watched.pool.release(watched.pool.acquire(timeout=3600)))
    thread.start()
    while not watched.pool.stats().waiting:
        time.sleep(0.001)
    assert watched.check() == []
    watched.clock.advance(9)
    assert watched.check() == []
    watched.clock.advance(1)
    assert watched.check() == [("queue", True)]
    with pytest.raises(AcquireTimeout):
        watched.pool.acquire(timeout=0)
    assert watched.check() == [("timeouts", True)]
    watched.pool.release(held)
    thread.join()
    assert set(watched.check()) == {("mean_wait", True), ("queue", False)}
    watched.pool.close()


def test_a_breaker_and_failing_connects() -> None:
    connector = FakeConnector(in_caller=True)
    watched = Watched(connector=connector, breaker=BreakerConfig(failure_threshold=1), max_size=2)
    connector.fail("connect", lambda: ConnectionRefusedError("no"))
    with pytest.raises(ConnectionRefusedError):
        watched.pool.acquire()
    with pytest.raises(CircuitOpen):
        watched.pool.acquire()
    assert set(watched.check()) == {("connect_failures", True), ("breaker", True)}
    assert {alert.severity for alert in watched.alerts.active()} == {"warning", "critical"}
    watched.pool.close()


def test_a_leak() -> None:
    watched = Watched(Thresholds(utilisation=None, half_used=None), max_size=2, leak_after=5)
    held = watched.pool.acquire()
    watched.clock.advance(6)
    watched.pool.run_due()
    assert watched.check() == [("leaks", True)]
    watched.pool.release(held)
    watched.pool.close()


def test_a_leak_that_stands_is_an_alert_as_long_as_it_stands() -> None:
    """And is diagnosed and named by the dashboard, although nobody waits: the others serve everybody."""
    watched = Watched(Thresholds(utilisation=None, half_used=None), max_size=8, leak_after=5)
    gone = [watched.pool.acquire() for _ in range(3)]
    watched.clock.advance(1)
    watched.pool.release(watched.pool.acquire())
    for _ in range(24 * 60):
        watched.clock.advance(1)
        watched.pool.run_due()
        watched.alerts.check()
        if watched.clock() % 60 < 1:
            with watched.pool.lease():
                pass
        assert [alert.name for alert in watched.alerts.active()] or watched.pool.stats().longest_held < 10
    assert [alert.name for alert in watched.alerts.active()] == ["longest_held"]
    (raised,) = [alert.text for alert in watched.told if alert.name == "longest_held" and alert.raised]
    assert re.fullmatch(r"a connection has been held for 30\d s", raised)
    assert watched.alerts.active()[0].text == "a connection has been held for 1441 s"
    found = watched.pool.diagnose()
    assert found is not None
    assert found.cause is Cause.LEAKING
    for connection in gone:
        watched.pool.release(connection)
    assert watched.check() == [("longest_held", False)]
    assert watched.pool.diagnose() is None
    watched.pool.close()


def test_an_active_alert_has_the_value_of_the_last_check() -> None:
    """The callback is not called again, and the alert keeps the time at which it began."""
    watched = Watched(Thresholds(utilisation=None, half_used=None), max_size=1)
    held = watched.pool.acquire()
    found = []
    for _ in range(3):
        with pytest.raises(AcquireTimeout):
            watched.pool.acquire(timeout=0)
        watched.alerts.check()
        found += watched.alerts.active()
    assert [(alert.value, alert.text.partition(" got no")[0]) for alert in found] == [
        (1.0, "1 caller"), (2.0, "2 callers"), (3.0, "3 callers"),
    ]  # fmt: skip
    assert {alert.at for alert in found} == {watched.told[0].at}
    assert len(watched.told) == 1
    watched.pool.release(held)
    watched.pool.close()


@pytest.mark.parametrize(
    ("threshold", "leak_after", "line"),
    [(600.0, None, 600.0), (600.0, 5.0, 305.0), (60.0, 5.0, 60.0), (60.0, 90.0, 90.0), (600.0, 3600.0, 3600.0)],
)
def test_a_lease_is_long_from_when_it_is_forgotten_as_a_leak_and_never_before_leak_after(
    threshold: float, leak_after: float | None, line: float
) -> None:
    watched = Watched(Thresholds(longest_held=threshold, utilisation=None, half_used=None, leaks=None),
                      max_size=2, leak_after=leak_after)  # fmt: skip
    held = watched.pool.acquire()
    watched.clock.advance(line)
    assert watched.check() == []
    watched.clock.advance(1)
    assert watched.check() == [("longest_held", True)]
    watched.pool.release(held)
    watched.pool.close()


def test_a_callback_that_raises_is_logged_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(max_size=1)

    def bad(alert: Alert) -> None:
        raise RuntimeError("no")

    alerts = Alerts(Thresholds(timeouts=0), bad, interval=None, pools=lambda: [watched.pool], clock=watched.clock)
    held = watched.pool.acquire()
    with pytest.raises(AcquireTimeout):
        watched.pool.acquire(timeout=0)
    assert [alert.name for alert in alerts.check()] == ["timeouts"]
    assert "alert callback" in caplog.text
    watched.pool.release(held)
    watched.pool.close()


def test_it_looks_by_itself() -> None:
    heard = threading.Event()
    with Pool(FakeConnector(), max_size=1) as pool:
        alerts = Alerts(callback=lambda alert: heard.set(), interval=0.01, pools=lambda: [pool])
        held = pool.acquire()
        with pytest.raises(AcquireTimeout):
            pool.acquire(timeout=0)
        assert heard.wait(10)
        alerts.close()
        pool.release(held)


@pytest.mark.parametrize(
    ("thresholds", "text"),
    [
        ({"utilisation": 80}, "utilisation=80: must be a share from 0 to 1"),
        ({"mean_wait": -1}, "mean_wait=-1: must be a number, 0 or more"),
        ({"queue": "long"}, "queue='long': must be a number"),
    ],
)
def test_impossible_thresholds(thresholds: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Thresholds(**thresholds)


@pytest.mark.parametrize("ending", ["close", "drain", "collect"])
def test_the_alerts_of_a_pool_end_with_it(ending: str) -> None:
    told: list[tuple[str, str, bool]] = []
    events: list[EventKind] = []
    pools = [Pool(FakeConnector(), name="db", max_size=1, listeners=[lambda event: events.append(event.kind)])]
    alerts = Alerts(Thresholds(mean_wait=None), lambda one: told.append((one.pool, one.name, one.raised)),
                    interval=None, pools=lambda: pools)  # fmt: skip
    held = pools[0].acquire()
    with pytest.raises(AcquireTimeout):
        pools[0].acquire(timeout=0)
    alerts.check()
    assert told == [("db", "timeouts", True)]
    pools[0].release(held)
    if ending == "collect":
        pools.clear()
        gc.collect()
    else:
        getattr(pools[0], ending)()
    assert alerts.active() == []
    assert [(one.name, one.raised, one.text) for one in alerts.check()] == [
        ("timeouts", False, "timeouts: over, the pool is closed")
    ]
    assert told[1:] == [("db", "timeouts", False)]
    assert alerts.check() == [], "once"
    assert (EventKind.ALERT_CLEARED in events) == (ending != "collect")
