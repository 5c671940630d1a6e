"""When a connection to one endpoint may be opened: the dialer alone, without a pool."""

from __future__ import annotations

import pytest

from poolkit import BackoffConfig, BreakerConfig, CircuitOpen, ConnectFailed, ConnectTimeout, PoolConfig
from poolkit._core.opener import OPEN, At, Dialer, Open, Refuse
from poolkit.policies.retire import NEVER

NOW = 1000.0
CONFIG = PoolConfig(
    backoff=BackoffConfig(base=1.0, cap=8.0), breaker=BreakerConfig(failure_threshold=2, reset_timeout=5)
)
PLAIN = PoolConfig(backoff=BackoffConfig(base=1.0, cap=8.0))


def make(config: PoolConfig = PLAIN, *, by_caller: bool = False, in_use: bool = False) -> Dialer:
    return Dialer("db", config, by_caller=by_caller, in_use=in_use)


def fail(
    dialer: Dialer, now: float = NOW, config: PoolConfig = PLAIN, *, fatal: bool = False, together: bool = False
) -> bool:
    dialer.note(OSError("refused"), now)
    return dialer.failed(config, lambda: 1.0, now, fatal=fatal, together=together)


def ask(
    dialer: Dialer,
    now: float = NOW,
    opening: int = 0,
    live: int = 1,
    *,
    elsewhere: bool = False,
    queued_at: float = -NEVER,
) -> Open | At | Refuse:
    return dialer.may_open(now, opening, live, elsewhere=elsewhere, queued_at=queued_at)


def test_the_first_connects_begin_at_once() -> None:
    assert ask(make(), opening=3) is OPEN


def test_after_a_failure_the_next_connect_waits_for_the_backoff() -> None:
    dialer = make()
    fail(dialer)
    assert ask(dialer) == At(NOW + 1.0)
    assert ask(dialer, NOW + 1.0) is OPEN
    fail(dialer, NOW + 1.0)
    assert ask(dialer, NOW + 1.0) == At(NOW + 3.0)


def test_connects_that_fail_together_lengthen_the_backoff_once() -> None:
    dialer = make()
    fail(dialer)
    fail(dialer, NOW + 0.1, together=True)
    assert dialer.retry_at == NOW + 1.0


def test_until_the_server_is_back_one_connect_at_a_time_tries_for_all() -> None:
    dialer = make()
    fail(dialer)
    assert ask(dialer, NOW + 1.0, opening=1) == At(NEVER)
    dialer.succeeded(0.1, current=True)
    assert ask(dialer, NOW + 1.0, opening=1) is OPEN


@pytest.mark.parametrize(("live", "elsewhere", "hopeless"), [(0, False, True), (1, False, False), (1, True, True)])
def test_after_a_fatal_error_callers_wait_only_for_connections_that_exist(
    live: int, elsewhere: bool, hopeless: bool
) -> None:
    dialer = make()
    fail(dialer, fatal=True)
    answer = ask(dialer, live=live, elsewhere=elsewhere, queued_at=NOW)
    assert answer == (Refuse if hopeless else At)(NOW + 1.0)
    assert isinstance(answer, Refuse) is hopeless
    error = dialer.error(NOW)
    assert isinstance(error, ConnectFailed)
    assert error.fatal


def test_callers_that_connect_themselves_do_not_wait_for_the_backoff() -> None:
    dialer = make(by_caller=True)
    fail(dialer)
    assert ask(dialer, opening=2, queued_at=NOW) is OPEN


def test_beside_them_the_pool_waits_for_the_backoff_with_its_own_connects() -> None:
    dialer = make(by_caller=True)
    fail(dialer, fatal=True)
    assert ask(dialer, live=0) == At(NOW + 1.0)
    assert ask(dialer, NOW + 1.0, opening=1) == At(NEVER)
    assert ask(dialer, NOW + 1.0) is OPEN


def test_an_open_breaker_lets_one_connect_through_when_its_time_has_come() -> None:
    dialer = make(CONFIG)
    assert fail(dialer, config=CONFIG) is False
    assert fail(dialer, NOW + 2, CONFIG) is True
    assert ask(dialer, NOW + 3, live=0) == Refuse(NOW + 7)
    error = dialer.error(NOW + 3)
    assert isinstance(error, CircuitOpen)
    assert error.retry_after == 4
    assert str(error) == (
        "db: circuit open: 2 connects in a row failed, the last 1.0 s ago with OSError: refused; open for 1.0 s, "
        "next try in 4.0 s"
    )
    assert dialer.remembers
    assert ask(dialer, NOW + 7) is OPEN
    assert ask(dialer, NOW + 7, opening=1) == At(NEVER)
    assert dialer.succeeded(0.1, current=True) is True
    assert not dialer.remembers


def test_a_connect_of_before_clear_says_nothing_about_the_server_of_now() -> None:
    dialer = make(CONFIG)
    fail(dialer, config=CONFIG)
    assert dialer.succeeded(0.1, current=False) is False
    assert dialer.rounds == 1


def test_the_usual_connect_time_sets_the_pace() -> None:
    dialer = make()
    dialer.succeeded(0.04, current=True)
    assert dialer.may_open(NOW, 1, 1, queued_at=NOW) == At(NOW + 0.01)
    assert dialer.may_open(NOW + 0.01, 1, 1, queued_at=NOW) is OPEN
    assert dialer.may_open(NOW, 1, 0, queued_at=NOW) is OPEN, "nobody has a connection to return"
    assert dialer.may_open(NOW, 0, 1, queued_at=NOW) is OPEN, "the first is not held up"
    assert dialer.may_open(NOW, 1, 1) is OPEN, "nobody waits: it is for min_size"
    dialer.last_opened_at = NOW
    assert dialer.late_at() == NOW + 0.25
    dialer.succeeded(0.09, current=True)
    assert dialer.connect_time == pytest.approx(0.05)


def test_a_burst_opens_one_after_the_other_sooner_and_sooner() -> None:
    """Not all at once after one pause: returned connections may serve the waiting callers meanwhile."""
    dialer = make()
    dialer.succeeded(0.04, current=True)
    now, opened = NOW, [NOW]
    for opening in range(1, 15):
        answer = dialer.may_open(now, opening, 5, queued_at=NOW)
        now = answer.until if isinstance(answer, At) else now
        assert dialer.may_open(now, opening, 5, queued_at=NOW) is OPEN
        opened.append(now)
    assert opened[1:4] == pytest.approx([NOW + 0.01, NOW + 0.015, NOW + 0.0175])
    assert opened[-1] == pytest.approx(NOW + 0.02), "fifteen connects begin within half the time of one"
    assert dialer.may_open(NOW + 0.02, 1, 5, queued_at=NOW) is OPEN, "nothing has come back for all this time"


def test_a_timeout_is_reported_as_a_timeout() -> None:
    dialer = make()
    dialer.note(ConnectTimeout("db: no connection within 1 s"), NOW)
    assert isinstance(dialer.connect_error(), ConnectTimeout)


def test_callers_that_connect_themselves_are_not_paced_unless_the_connection_counts_from_the_start() -> None:
    assert make(by_caller=True).may_open(NOW, 1, 1, queued_at=NOW) is OPEN
    lazy = make(by_caller=True, in_use=True)
    assert lazy.may_open(NOW, 1, 1, queued_at=NOW) is OPEN, "the one that is live is the one being opened"
    assert isinstance(lazy.may_open(NOW, 1, 2, queued_at=NOW), At)


def test_a_connect_that_a_caller_makes_serves_that_caller_first() -> None:
    assert make(by_caller=True).spoken_for(2) == 2
    assert make().spoken_for(2) == 0
