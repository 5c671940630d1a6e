"""When a connection to one endpoint may be opened: the dialer alone, without a pool around it."""

from __future__ import annotations

import pytest

from poolkit import BackoffConfig, BreakerConfig, CircuitOpen, ConnectFailed, ConnectTimeout, PoolConfig
from poolkit._core.dialer import Dialer, Hold

NOW = 1000.0
CONFIG = PoolConfig(
    backoff=BackoffConfig(base=1.0, cap=8.0), breaker=BreakerConfig(failure_threshold=2, reset_timeout=5)
)
PLAIN = PoolConfig(backoff=BackoffConfig(base=1.0, cap=8.0))


def make(config: PoolConfig = PLAIN, *, in_caller: bool = False) -> Dialer:
    return Dialer("db", config, in_caller=in_caller)


def fail(
    dialer: Dialer, now: float = NOW, config: PoolConfig = PLAIN, *, fatal: bool = False, together: bool = False
) -> bool:
    dialer.note(OSError("refused"), now)
    return dialer.failed(config, lambda: 1.0, now, fatal=fatal, together=together)


def hold(dialer: Dialer, now: float = NOW, opening: int = 0, live: int = 1, *, elsewhere: bool = False) -> Hold | None:
    return dialer.hold(now, opening, live, elsewhere=elsewhere)


def test_nothing_stands_against_the_first_connects() -> None:
    assert hold(make(), opening=3) is None


def test_after_a_failure_the_next_connect_waits_for_the_backoff() -> None:
    dialer = make()
    fail(dialer)
    assert hold(dialer) == Hold(NOW + 1.0, hopeless=False)
    assert hold(dialer, NOW + 1.0) is None
    fail(dialer, NOW + 1.0)
    assert hold(dialer, NOW + 1.0) == Hold(NOW + 3.0, hopeless=False)


def test_connects_that_fail_together_lengthen_the_backoff_once() -> None:
    dialer = make()
    fail(dialer)
    fail(dialer, NOW + 0.1, together=True)
    assert dialer.retry_at == NOW + 1.0


def test_until_the_server_is_back_one_connect_at_a_time_tries_for_all() -> None:
    dialer = make()
    fail(dialer)
    assert hold(dialer, NOW + 1.0, opening=1) == Hold(None, hopeless=False)
    dialer.succeeded(0.1, current=True)
    assert hold(dialer, NOW + 1.0, opening=1) is None


@pytest.mark.parametrize(("live", "elsewhere", "hopeless"), [(0, False, True), (1, False, False), (1, True, True)])
def test_after_a_fatal_error_callers_wait_only_for_connections_that_exist(
    live: int, elsewhere: bool, hopeless: bool
) -> None:
    dialer = make()
    fail(dialer, fatal=True)
    held = hold(dialer, live=live, elsewhere=elsewhere)
    assert held is not None
    assert held.hopeless is hopeless
    error = dialer.error(NOW)
    assert isinstance(error, ConnectFailed)
    assert error.fatal


def test_callers_that_connect_themselves_do_not_wait_for_the_backoff() -> None:
    dialer = make(in_caller=True)
    fail(dialer)
    assert hold(dialer, opening=2) is None


def test_an_open_breaker_lets_one_connect_through_when_its_time_has_come() -> None:
    dialer = make(CONFIG)
    assert fail(dialer, config=CONFIG) is False
    assert fail(dialer, NOW + 2, CONFIG) is True
    assert hold(dialer, NOW + 3, live=0) == Hold(NOW + 7, hopeless=True)
    error = dialer.error(NOW + 3)
    assert isinstance(error, CircuitOpen)
    assert error.retry_after == 4
    assert str(error) == (
        "db: circuit open: 2 connects in a row failed, the last 1.0 s ago with OSError: refused; open for 1.0 s, "
        "next try in 4.0 s"
    )
    assert dialer.remembers
    assert hold(dialer, NOW + 7) is None
    assert hold(dialer, NOW + 7, opening=1) == Hold(None, hopeless=False)
    assert dialer.succeeded(0.1, current=True) is True
    assert not dialer.remembers


def test_a_connect_of_before_clear_says_nothing_about_the_server_of_now() -> None:
    dialer = make(CONFIG)
    fail(dialer, config=CONFIG)
    assert dialer.succeeded(0.1, current=False) is False
    assert dialer.rounds == 1


def test_the_usual_connect_time_sets_the_pace() -> None:
    dialer = make()
    assert dialer.next_in_burst(NOW) > NOW
    dialer.succeeded(0.04, current=True)
    assert dialer.next_in_burst(NOW) == NOW + 0.01
    dialer.last_opened_at = NOW
    assert dialer.late_at() == NOW + 0.25
    dialer.succeeded(0.09, current=True)
    assert dialer.connect_time == pytest.approx(0.05)


def test_a_timeout_is_told_as_one() -> None:
    dialer = make()
    dialer.note(ConnectTimeout("db: no connection within 1 s"), NOW)
    assert isinstance(dialer.connect_error(), ConnectTimeout)
