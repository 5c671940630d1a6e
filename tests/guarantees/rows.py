"""The rows of the table: what poolkit promises, each with a scenario that fails where the promise does not hold.

A scenario is run with the one changed line (the driver's own arguments alone) and with ``settings`` of poolkit. A cell
that cannot be, or that needs settings, has a reason. No scenario measures time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import poolkit
from poolkit import (
    AcquireTimeout,
    AutoscaleConfig,
    BreakerConfig,
    Budget,
    CircuitOpen,
    ClassConfig,
    ConnectFailed,
    EventKind,
    PoolBusy,
    PoolClosed,
    PoolError,
)
from tests.guarantees.subjects import Subject
from tests.support.waiting import PATIENCE

__all__ = ("CONFIG", "LINE", "ROWS", "Row")

LINE, CONFIG = "one line", "settings"
SHORT = 0.05  # seconds that a caller waits that is not to be served
LONG = 3600.0  # seconds: a limit that must not be what ends a test

_FAMILY = {"httpx2": "httpx", "valkey": "redis"}
"""The adapters that have the code of another one."""
Scenario = Callable[[Subject, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        title: as the page says it.
        scenario: what is tried.
        settings: poolkit's settings for the column "settings".
        absent: the cells in which the promise does not hold, with the reason. A key is the name of a subject, its first
            part ("httpx"), "threads", "asyncio" or "all"; with ``LINE`` behind it, of one column: ``("redis", LINE)``.
        void: the cells in which there is nothing to promise, with the reason; keys as in ``absent``.
        handshake: whether a connect must need answers of the server.
    """

    title: str
    scenario: Scenario
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str | tuple[str, str], str] = field(default_factory=dict)
    void: Mapping[str | tuple[str, str], str] = field(default_factory=dict)
    handshake: bool = False

    @property
    def name(self) -> str:
        return self.scenario.__name__

    def reason(self, subject: type[Subject], mode: str) -> str | None:
        """Why there is no such promise in this cell; None: there is."""
        for key, reason in (*self.absent.items(), *self.void.items()):
            which, when = (key, mode) if isinstance(key, str) else key
            named = which in ("all", subject.world, subject.name, _FAMILY.get(name := subject.name.split("-")[0], name))
            if when == mode and named:
                return reason
        return None

    def is_void(self, subject: type[Subject]) -> bool:
        """Whether there is nothing to promise for this adapter."""
        return self.reason(subject, CONFIG) in self.void.values()


async def refused(subject: Subject) -> BaseException:
    """The error of a caller that must not be served."""
    caller = subject.start(subject.request())
    await subject.ended(caller)
    assert caller.error is not None, "the caller was served"
    return caller.error


def both(error: BaseException, ours: type[BaseException], theirs: type[BaseException]) -> None:
    """The error is poolkit's and the driver's."""
    assert isinstance(error, theirs), f"{error!r} is no {theirs}"
    found: BaseException | None = error
    while found is not None and not isinstance(found, ours):  # SQLAlchemy wraps the driver's error: it is the cause
        found = found.__cause__ or getattr(found, "orig", None)
    assert found is not None, f"{error!r} is no {ours}"


# -- waiting -----------------------------------------------------------------------------------------------------------


async def served_in_order(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    held = await subject.take()
    order: list[int] = []

    async def caller(number: int) -> None:
        lease = await subject.take()
        order.append(number)
        await subject.give(lease)

    callers = []
    for number in range(6):
        callers.append(subject.start(caller(number)))
        await subject.waiting(number + 1)
    await subject.give(held)
    await subject.ended(*callers)
    assert order == list(range(6))


async def exhausted_is_said(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    held = await subject.take()
    subject.set_wait(SHORT)
    error = await refused(subject)
    both(error, AcquireTimeout, subject.timeout_error)
    assert not isinstance(error, ConnectFailed)
    await subject.give(held)
    await subject.request()


async def one_deadline(subject: Subject, settings: dict[str, Any]) -> None:
    """The server takes the connection and never answers; only the time to wait for a connection can end this."""
    await subject.open(2, wait=0.5, **settings)
    subject.proxy.mode = "hold"
    error = await refused(subject)
    both(error, AcquireTimeout, Exception)
    subject.proxy.mode = "pass"
    await subject.until(lambda: not subject.engine.stats().connecting, "the connect has ended")
    subject.set_wait(PATIENCE)
    await subject.request()


async def returns_race_connects(subject: Subject, settings: dict[str, Any]) -> None:
    """New connections are accepted and never answered. All callers are served by those that exist."""
    await subject.open(20, **settings)
    await subject.cold_start(5)
    subject.proxy.swallow = True
    callers = [subject.start(subject.request()) for _ in range(30)]
    await subject.ended(*callers)
    subject.proxy.swallow = False
    assert [caller.error for caller in callers if caller.error] == []


async def max_waiting(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    held = await subject.take()
    waiting = subject.start(subject.request())
    await subject.waiting(1)
    both(await refused(subject), PoolBusy, Exception)
    await subject.give(held)
    await subject.ended(waiting)
    assert waiting.error is None


async def classes(subject: Subject, settings: dict[str, Any]) -> None:
    """Of two connections, callers of the class "bulk" may have one."""
    await subject.open(2, wait=PATIENCE, **settings)
    with poolkit.priority("bulk"):
        first = await subject.take()

    async def bulk() -> Any:
        with poolkit.priority("bulk"):
            return await subject.request()

    second = subject.start(bulk())
    await subject.waiting(1)
    await subject.request()
    assert not second.done
    await subject.give(first)
    await subject.ended(second)
    assert second.error is None


# -- connecting --------------------------------------------------------------------------------------------------------


async def failed_connect_is_told(subject: Subject, settings: dict[str, Any]) -> None:
    """Callers that nothing can serve hear of it at once, each with an error of its own: no deadline ends this."""
    await subject.open(4, wait=LONG, **settings)
    subject.proxy.mode = "refuse"
    callers = [subject.start(subject.request()) for _ in range(6)]
    await subject.ended(*callers)
    errors = [caller.error for caller in callers]
    for error in errors:
        assert error is not None
        both(error, ConnectFailed, subject.connect_error)
    assert len({id(error) for error in errors}) == 6
    subject.proxy.mode = "pass"
    await subject.request()


async def breaker(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(2, wait=LONG, **settings)
    subject.proxy.mode = "refuse"
    error: BaseException | None = None
    for _ in range(10):
        error = await refused(subject)
        if isinstance(error, CircuitOpen) or isinstance(error.__cause__, CircuitOpen):
            break
    assert error is not None
    both(error, CircuitOpen, subject.unavailable_error or subject.connect_error)


async def callers_context(subject: Subject, settings: dict[str, Any]) -> None:
    seen: list[str] = []
    await subject.open(2, new=lambda: seen.append(REQUEST.get("nobody's")), **settings)

    async def caller() -> None:
        REQUEST.set("request 7")
        await subject.request()

    await subject.ended(subject.start(caller()))
    assert seen == ["request 7"]


REQUEST: ContextVar[str] = ContextVar("request")


# -- limits ------------------------------------------------------------------------------------------------------------


async def at_most(subject: Subject, number: int) -> None:
    """The server has so many sessions. It may need a moment to end one that the client has closed."""
    seen = []
    for _ in range(100):
        seen.append(subject.sessions())
        if seen[-1] <= number:
            return
        await subject.pause()
    raise AssertionError(f"the server has had {seen} sessions of {number}")


async def never_more_sessions(subject: Subject, settings: dict[str, Any]) -> None:
    """Callers are cancelled (threads: time out) in every phase of their connects and requests, and the server is asked
    all the while.
    """
    await subject.open(3, wait=PATIENCE if subject.asynchronous else SHORT, **settings)
    subject.proxy.latency = 0.005
    for moment in range(12):
        callers = [subject.start(subject.request()) for _ in range(6)]
        for _ in range(moment):
            await subject.pause()
        for caller in callers:
            if caller.task is not None:
                caller.task.cancel()
        await at_most(subject, 3)
        await subject.ended(*callers)
        await at_most(subject, 3)
    subject.proxy.latency = 0.0
    subject.set_wait(PATIENCE)
    await subject.until(lambda: subject.engine.stats().size == subject.engine.stats().idle, "the pool is quiet")
    await subject.cold_start(1)


async def cancelled_callers_lose_nothing(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    for _ in range(3):
        worker = subject.start(subject.busy())
        await subject.until(lambda: subject.engine.stats().in_use == 1, "the work has begun")
        waiter = subject.start(subject.request())
        await subject.waiting(1)
        for caller in (waiter, worker):
            assert caller.task is not None
            caller.task.cancel()
        await subject.ended(waiter, worker)
        first, second = await subject.request(), await subject.request()
        assert first == second


async def budget(subject: Subject, settings: dict[str, Any]) -> None:
    """Another pool has all permits of the budget, so this one may open nothing."""
    shared = Budget(2, name="guarantee")
    other = type(subject)(subject.servers)
    try:
        await subject.open(2, budget=shared, **settings)
        subject.set_wait(SHORT)
        await other.open(2, budget=shared, **settings)
        held = [await other.take() for _ in range(2)]
        both(await refused(subject), AcquireTimeout, subject.timeout_error)
        for lease in held:
            await other.give(lease)
        subject.set_wait(PATIENCE)
        await subject.request()
        await other.close()
    finally:
        other.stop()


async def elastic(subject: Subject, settings: dict[str, Any]) -> None:
    """The pool grows under load, within its limit, and closes what nobody needs any more."""
    await subject.open(6, **settings)
    await subject.cold_start(6)
    await subject.until(lambda: subject.engine.stats().size < 6, "the pool has closed connections")
    await subject.request()


# -- connections -------------------------------------------------------------------------------------------------------


async def socket_stays_open(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(2, **settings)
    first = await subject.request()
    assert [await subject.request() for _ in range(5)] == [first] * 5
    assert subject.proxy.accepted == 1


async def closed_while_idle(subject: Subject, settings: dict[str, Any]) -> None:
    """The server has closed all idle connections: nobody gets one of them."""
    await subject.open(3, **settings)
    await subject.cold_start(3)
    subject.proxy.cut()
    await subject.until(lambda: not subject.proxy.open, "the connections are closed")
    for _ in range(10):
        await subject.pause()  # the event loop hears of it
    await subject.cold_start(3)


async def one_error_tells_of_others(subject: Subject, settings: dict[str, Any]) -> None:
    """The server has lost all connections and resets each at the next request: one caller hears of it, not five."""
    await subject.open(5, **settings)
    await subject.cold_start(5)
    subject.proxy.forget()
    errors = []
    for _ in range(5):
        caller = subject.start(subject.request())
        await subject.ended(caller)
        if caller.error is not None:
            errors.append(caller.error)
    assert len(errors) <= 1, f"{len(errors)} of 5 callers got an error: {errors}"


async def transaction_is_rolled_back(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    lease = await subject.take()  # "select 1" has begun a transaction
    before = await subject.session(lease)
    await subject.give(lease)
    with subject.servers.postgres.connect() as admin:
        states = admin.execute("select state from pg_stat_activity where pid = %s", (before,)).fetchall()
    assert states == [("idle",)]
    assert await subject.request() == before


async def lifetime(subject: Subject, settings: dict[str, Any]) -> None:
    """A connection that has reached its lifetime is replaced."""
    await subject.open(1, **settings)
    first = await subject.request()
    for _ in range(int(PATIENCE / 0.005)):
        await subject.pause()
        if await subject.request() != first:
            return
    raise AssertionError("the connection lives on")


async def idle_timeout(subject: Subject, settings: dict[str, Any]) -> None:
    """A connection that nobody uses is closed."""
    await subject.open(2, **settings)
    await subject.request()
    await subject.until(lambda: subject.engine.stats().size == 0, "the idle connection is closed")


async def minimum(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(4, **settings)
    await subject.request()
    await subject.until(lambda: subject.engine.stats().idle >= 2, "two connections are open")


async def fork(subject: Subject, settings: dict[str, Any]) -> None:
    """A forked child uses no connection of its parent."""
    await subject.open(2, **settings)
    before = await subject.request()
    child = os.fork()
    if not child:
        code = 1
        try:
            work = subject.request()
            try:
                work.send(None)
            except StopIteration as end:
                code = 0 if end.value != before else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await subject.request() == before


# -- seeing ------------------------------------------------------------------------------------------------------------


async def statistics(subject: Subject, settings: dict[str, Any]) -> None:
    await subject.open(1, **settings)
    events: list[EventKind] = []
    subject.engine.add_listener(lambda event: events.append(event.kind))
    held = await subject.take()
    stats = subject.engine.stats()
    assert (stats.in_use, stats.idle, stats.max_size) == (1, 0, 1)
    subject.set_wait(SHORT)
    await refused(subject)
    assert subject.engine.stats().timeouts == 1
    assert "in use" in subject.engine.explain()
    await subject.give(held)
    assert EventKind.ACQUIRE_FAILED in events


async def leak_is_located(subject: Subject, settings: dict[str, Any]) -> None:
    """A lease that lasts too long is reported with file and line."""
    await subject.open(1, **settings)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("poolkit").addHandler(handler)

    def reported() -> list[str]:
        return [line for line in lines if f"{subject.engine.name}: lease held for" in line]

    try:
        held = await subject.take()
        await subject.until(reported, "the lease is reported")
        await subject.give(held)
    finally:
        logging.getLogger("poolkit").removeHandler(handler)
    assert "subjects.py:" in reported()[0]


async def drains(subject: Subject, settings: dict[str, Any]) -> None:
    """Close refuses new callers, with an error that is the driver's too."""
    await subject.open(1, **settings)
    await subject.request()
    await subject.close_engine()
    error = await refused(subject)
    both(error, PoolClosed, Exception)
    assert isinstance(error, PoolError) or isinstance(error.__cause__, PoolError)


HTTP = ("httpx", "urllib3", "requests")
PHASES = "needs `acquire_timeout`; urllib3's `Timeout` has a limit for each phase"
FIRST = "a connection of urllib3 opens in its first request"
NO_CANCEL = "a thread cannot be cancelled"
NEEDS = "needs the setting"
ROWS: tuple[Row, ...] = (
    Row("Callers are served in the order in which they asked", served_in_order, {"barging_window": 0.0}),
    Row("An exhausted pool raises an error that is poolkit's and the driver's, and says so", exhausted_is_said),
    Row(
        "One deadline covers waiting, checking and connecting, also if the server never answers",
        one_deadline,
        {"check_after_idle": 0.0},
        {
            ("httpx", LINE): "needs `acquire_timeout`; httpx's `Timeout` has a limit for each phase",
            **dict.fromkeys((("urllib3", LINE), ("requests", LINE)), PHASES),
        },
        handshake=True,
    ),
    Row(
        "A returned connection serves a waiting caller, even while a connect for it is in progress",
        returns_race_connects,
        {"max_connecting": 4},
        dict.fromkeys(("urllib3", "requests"), FIRST),
        handshake=True,
    ),
    Row(
        "`max_waiting` refuses callers when the queue is full", max_waiting, {"max_waiting": 1}, {("all", LINE): NEEDS}
    ),
    Row(
        "Classes of callers: reserved connections, shares, limits",
        classes,
        {"classes": {"web": ClassConfig(), "bulk": ClassConfig(limit=1)}, "default_class": "web"},
        {("all", LINE): NEEDS},
    ),
    Row(
        "A failed connect is reported at once, to each caller with an error of its own",
        failed_connect_is_told,
        {"max_connecting": 4},
        {
            "psycopg": "as in psycopg_pool, the pool tries again until the caller's timeout",
            "dbapi": "the pool tries again until the caller's timeout",
        },
    ),
    Row(
        "A circuit breaker: after several failed connects callers fail at once",
        breaker,
        {
            "breaker": BreakerConfig(failure_threshold=2, reset_timeout=LONG),
        },
        {("all", LINE): NEEDS},
    ),
    Row(
        "A connect runs in the context of its caller (context variables, spans)",
        callers_context,
        {"max_connecting": 4},
        void=dict.fromkeys(("urllib3", "requests"), f"{FIRST}, by the caller itself"),
    ),
    Row(
        "The server never has more than `max_size` sessions, also if callers are cancelled or time out",
        never_more_sessions,
        {"check_after_idle": 0.0},
    ),
    Row(
        "A cancelled caller loses neither its place nor a connection to an unknown state",
        cancelled_callers_lose_nothing,
        {"check_after_idle": 0.0},
        void={"threads": NO_CANCEL},
    ),
    Row("One budget for several pools", budget, {"idle_timeout": LONG}, {("all", LINE): NEEDS}),
    Row(
        "The size follows the load",
        elastic,
        {"autoscale": AutoscaleConfig(down_delay=0.1, peak_memory=0.1)},
        {("all", LINE): NEEDS},
    ),
    Row("`close()` returns the connection, and the socket stays open", socket_stays_open, {"check_after_idle": 0.5}),
    Row(
        "A connection that the server has closed is not handed out",
        closed_while_idle,
        {"check_after_idle": 0.0},
        {
            ("sqlalchemy", LINE): "needs `check_after_idle`, or SQLAlchemy's `pool_pre_ping`",
            ("psycopg", LINE): "needs `check_after_idle`, or psycopg's `check`",
            ("dbapi", LINE): "needs `check_after_idle`",
        },
    ),
    Row(
        "One network error makes the other idle connections suspect",
        one_error_tells_of_others,
        {"check_after_idle": LONG},
    ),
    Row(
        "A transaction that was left open is rolled back",
        transaction_is_rolled_back,
        {"check_after_idle": 0.5},
        void={
            "redis": "a connection in `MULTI` or `WATCH` is closed",
            **dict.fromkeys(HTTP, "HTTP has no transactions"),
        },
    ),
    Row("`max_lifetime` replaces a connection", lifetime, {"max_lifetime": 0.1}, {("all", LINE): NEEDS}),
    Row("`idle_timeout` closes an unused connection", idle_timeout, {"idle_timeout": 0.1}, {("all", LINE): NEEDS}),
    Row(
        "`min_size` connections are kept open",
        minimum,
        {"min_size": 2},
        {("all", LINE): NEEDS, **dict.fromkeys(HTTP, "connections are opened for a host when a request needs one")},
    ),
    Row(
        "A forked child uses no connection of its parent",
        fork,
        {"check_after_idle": 0.5},
        void={"asyncio": "a forked child cannot use the running event loop of its parent; it starts its own"},
    ),
    Row("Statistics, events, and `explain()`", statistics, {"use_histogram": True}),
    Row(
        "A lease that lasts too long is reported with file and line",
        leak_is_located,
        {"leak_after": 0.05},
        {("all", LINE): NEEDS},
    ),
    Row("A closed pool refuses callers with an error of the driver", drains, {"check_after_idle": 0.5}),
)
