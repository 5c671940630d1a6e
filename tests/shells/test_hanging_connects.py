"""A connect in a thread of the pool that does not return: it is given up, and what it opens later is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from poolkit import ConnectFailed, Connector, ConnectTimeout, Pool, PoolError
from poolkit.events import Event, EventKind
from poolkit.policies.connects import default_bound
from poolkit.runtimes import threads
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")  # a connect may outlast its caller's wait


class Hanging(Connector[Any]):
    """A connector whose connects hang until the test releases them. Each is given up at once."""

    reports_errors = True

    def __init__(self) -> None:
        self.healthy = False
        self.go = threading.Event()
        self.threads: list[int] = []  # those that hang, or have hung
        self.given_up: list[int] = []
        self.open = 0
        self.ends = True  # give_up() certainly ends the session
        self.late = False

    def connect(self, timeout: float | None) -> object:
        if not self.healthy:
            self.threads.append(threading.get_ident())
            self.go.wait(2 * PATIENCE)
            if self.late:
                raise ConnectionError("too late")
        self.open += 1
        return object()

    def close(self, connection: object) -> None:
        self.open -= 1

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        return timeout

    def give_up(self, thread: int) -> bool:
        self.given_up.append(thread)
        return self.ends


@pytest.fixture
def connector() -> Iterator[Hanging]:
    connector = Hanging()
    yield connector
    connector.go.set()


def hang(pool: Pool[Any], connector: Hanging, count: int) -> None:
    """Let so many connects hang, one after the other, until they are given up."""
    for number in range(1, count + 1):
        while len(connector.threads) < number:
            with pytest.raises(PoolError):
                pool.acquire(timeout=0.01)
        until(lambda: not pool.stats().connecting, "it is given up")
        pool.check_books()


def test_its_place_is_free_if_the_connector_has_ended_it(connector: Hanging) -> None:
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        hang(pool, connector, 1)
        assert connector.given_up == connector.threads
        assert pool.stats().size == 0
        connector.healthy = True
        pool.reconfigure(connect_timeout=PATIENCE)
        pool.release(pool.acquire(timeout=PATIENCE))
        connector.go.set()
        until(lambda: connector.open == 1, "what it has opened is closed")
        pool.check_books()


@pytest.mark.parametrize("late", [False, True], ids=["opens", "fails"])
def test_its_place_is_kept_until_it_returns_otherwise(connector: Hanging, late: bool) -> None:
    connector.ends, connector.late = False, late
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        hang(pool, connector, 1)
        stats = pool.stats()
        assert (stats.size, stats.closing, stats.connecting) == (1, 1, 0)
        connector.healthy = True
        with pytest.raises(PoolError):
            pool.acquire(timeout=0.1)
        assert connector.open == 0
        connector.go.set()
        until(lambda: not pool.stats().size, "its place is free")
        assert connector.open == 0
        pool.reconfigure(connect_timeout=PATIENCE)
        pool.release(pool.acquire(timeout=PATIENCE))
        pool.check_books()


def test_no_more_threads_go_on_than_there_are_places(connector: Hanging) -> None:
    with Pool(connector, max_size=2, connect_timeout=0.05) as pool:
        hang(pool, connector, 4)
        assert (pool.stats().size, pool.stats().closing) == (2, 2)
        with pytest.raises(PoolError):
            pool.acquire(timeout=0.1)
        assert len(connector.threads) == 4
        connector.healthy = True
        connector.go.set()
        until(lambda: not pool.stats().size, "the places are free")
        until(lambda: not connector.open, "what they have opened is closed")
        connector.healthy = False
        connector.go.clear()
        hang(pool, connector, 5)
        assert pool.stats().size == 0, "the threads are counted down when they return"


def test_its_waiting_caller_gets_the_error(connector: Hanging) -> None:
    events: list[Event] = []
    with Pool(connector, max_size=1, connect_timeout=0.05, name="db", listeners=[events.append]) as pool:
        with pytest.raises(ConnectFailed, match=r"db: .*the connect has not returned in 0\.\d+ s") as caught:
            pool.acquire(timeout=PATIENCE)
        assert isinstance(caught.value, ConnectTimeout)
        failures: list[Event] = []  # reported just after the caller was woken
        until(
            lambda: failures.extend(e for e in events if e.kind is EventKind.CONNECT_FAILED) or failures, "it is told"
        )
        (failed,) = failures
        assert isinstance(failed.error, ConnectTimeout)


def test_warm_up_gets_the_error_too(connector: Hanging) -> None:
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        with pytest.raises(ConnectFailed, match="did not finish in time"):
            pool.warm_up(1, timeout=0.01)
        until(lambda: not pool.stats().connecting, "it is given up")
        connector.go.set()
        until(lambda: connector.open == 0, "what it has opened is closed")


def test_warm_up_goes_on_beside_those_that_are_given_up(connector: Hanging) -> None:
    with Pool(connector, max_size=4, max_connecting=2, connect_timeout=0.05) as pool:
        with pytest.raises(ConnectFailed, match=r"warm_up: 4 of 4 connects failed; .*has not returned"):
            pool.warm_up(4, timeout=PATIENCE)
        assert (len(connector.threads), pool.stats().connecting) == (4, 0)
        connector.healthy = True
        pool.reconfigure(connect_timeout=PATIENCE)
        pool.release(pool.acquire(timeout=PATIENCE))
        pool.check_books()
        connector.go.set()
        until(lambda: connector.open == pool.stats().size, "what they have opened is closed")


def test_callers_are_served_after_a_warm_up_that_was_given_up(connector: Hanging) -> None:
    """Connects that it has not started do not count for ever."""
    with Pool(connector, max_size=4, max_connecting=2, connect_timeout=0.05) as pool:
        with pytest.raises(ConnectFailed, match="4 of 4 did not finish in time"):
            pool.warm_up(4, timeout=0)
        until(lambda: len(connector.threads) == 4 and not pool.stats().connecting, "all are given up")
        connector.healthy = True
        pool.reconfigure(connect_timeout=PATIENCE)
        pool.release(pool.acquire(timeout=PATIENCE))
        connector.go.set()
        until(lambda: connector.open == pool.stats().size, "what they have opened is closed")


def test_warm_up_opens_the_rest_beside_one_that_hangs_for_ever(connector: Hanging) -> None:
    """The thread that hangs opens nothing more when it returns, because another one has replaced it."""

    def give_up(thread: int) -> bool:
        connector.healthy = True
        return False

    connector.give_up = give_up  # type: ignore[method-assign]
    with Pool(connector, max_size=3, max_connecting=1, connect_timeout=0.05) as pool:
        with pytest.raises(ConnectFailed, match="1 of 3 connects failed") as caught:
            pool.warm_up(3, timeout=PATIENCE)
        assert len(caught.value.errors) == 1
        assert (pool.stats().idle, pool.stats().closing) == (2, 1)
        connector.go.set()
        until(lambda: not pool.stats().closing, "its place is free")
        assert connector.open == 2


def test_what_it_has_left_at_the_server_keeps_its_place(connector: Hanging) -> None:
    connector.ends, connector.late = False, True
    left: Future[None] = Future()
    connector.leftover = lambda error: left  # type: ignore[method-assign]
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        hang(pool, connector, 1)
        keeps_its_place(pool, connector, left)


@pytest.mark.parametrize("ends", [False, True], ids=["it keeps its place", "its place is free"])
def test_what_is_left_of_its_connection_counts_as_its_thread_does(connector: Hanging, ends: bool) -> None:
    """It opens a connection late, which is aborted."""
    connector.ends = ends
    left: Future[None] = Future()
    aborted: list[object] = []

    def abort(connection: object) -> Future[None]:
        aborted.append(connection)
        return left

    connector.abort = abort  # type: ignore[method-assign]
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        hang(pool, connector, 1)
        if ends:  # one thread may go on while its slot is free
            connector.go.set()
            until(lambda: aborted, "it is aborted")
            connector.go.clear()
            hang(pool, connector, 2)
            assert pool.stats().closing == 1, "as nothing is known of the end of the first one"
        keeps_its_place(pool, connector, left)


def keeps_its_place(pool: Pool[Any], connector: Hanging, left: Future[None]) -> None:
    """Check that the only slot is taken until ``left`` is done, whether the thread has returned or not."""
    threads = {thread for thread in threading.enumerate() if thread.ident in connector.threads}
    connector.healthy = True
    connector.go.set()
    for thread in threads:
        thread.join(PATIENCE)  # an idle worker ends after two seconds
    assert (pool.stats().size, pool.stats().closing) == (1, 1)
    pool.check_books()
    left.set_result(None)
    assert not pool.stats().size
    pool.reconfigure(connect_timeout=PATIENCE)
    pool.release(pool.acquire(timeout=PATIENCE))
    pool.check_books()


class Slow(logging.Handler):
    """A listener and a log handler that are slow."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.go = threading.Event()

    def __call__(self, event: Event) -> None:
        if event.kind is EventKind.CONNECT_FAILED:
            self.wait()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("slow log: the connect has not"):  # not one of an earlier test
            self.wait()

    def wait(self) -> None:
        self.inside.set()
        self.go.wait(2 * PATIENCE)


@pytest.mark.parametrize("kind", ["listener", "log"])
def test_its_thread_does_not_wait_for_listeners_and_handlers(connector: Hanging, kind: str) -> None:
    connector.ends = False
    slow = Slow()
    logger = logging.getLogger("poolkit")
    try:
        if kind == "log":
            logger.addHandler(slow)
        listeners = [slow] if kind == "listener" else []
        with Pool(connector, max_size=1, connect_timeout=0.05, name=f"slow {kind}", listeners=listeners) as pool:
            hang(pool, connector, 1)
            until(slow.inside.is_set, "it hears of it")
            assert pool.stats().closing == 1
            connector.go.set()
            until(lambda: not pool.stats().size, "its place is free")
            assert not slow.go.is_set()
            slow.go.set()
    finally:
        slow.go.set()
        logger.removeHandler(slow)


@pytest.mark.parametrize("times", [1, 5, 10**9], ids=["once", "a few times", "always"])
def test_it_is_given_up_after_no_thread_could_be_started_for_that(
    connector: Hanging, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_process", threads._Process())
    start, refused = threading.Thread.start, []

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "poolkit-housekeeping" and len(refused) < times:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:

        def given_up() -> bool:
            with pytest.raises(PoolError):
                pool.acquire(timeout=0.02)
            return not pool.stats().connecting

        until(given_up, "it is given up while callers come")
        assert refused
        assert connector.given_up


def test_the_bound_is_asked_for_again_when_it_has_passed(connector: Hanging) -> None:
    """A connector may learn only from its driver how long a connect may take."""
    asked: list[float | None] = []

    def bound(thread: int, timeout: float | None) -> float | None:
        asked.append(timeout)
        return 0.01 if len(asked) == 1 else None

    connector.connect_bound = bound
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        with pytest.raises(PoolError):
            pool.acquire(timeout=0.01)
        until(lambda: len(asked) == 2, "it is asked again")
        connector.go.set()
        pool.release(pool.acquire(timeout=PATIENCE))
        assert not connector.given_up
        assert connector.open == 1
        assert not pool._driver._of_core()._running


@pytest.mark.parametrize("method", ["connect_bound", "give_up"])
def test_a_hook_that_raises_is_complained_of_and_counts_as_the_default(
    connector: Hanging, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> Any:
        raise RuntimeError("odd")

    monkeypatch.setattr("poolkit._operations.default_bound", lambda timeout: timeout)
    setattr(connector, method, fail)
    with Pool(connector, max_size=1, connect_timeout=0.05) as pool:
        hang(pool, connector, 1)
        assert pool.stats().closing == (method == "give_up")
        assert f"Hanging.{method}() raised RuntimeError: odd: it must not raise" in caplog.text
        connector.go.set()
        until(lambda: not pool.stats().size, "its place is free")


def test_a_connector_that_says_nothing_has_a_few_times_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_bound(5.0) == 11.0
    assert default_bound(None) is None
    go = threading.Event()
    closed: list[object] = []

    class Plain:
        def connect(self, timeout: float | None) -> object:
            go.wait(2 * PATIENCE)
            return object()

        def close(self, connection: object) -> None:
            closed.append(connection)

    monkeypatch.setattr("poolkit._operations.default_bound", lambda timeout: timeout)
    plain: Any = Plain()
    with Pool(plain, max_size=1, connect_timeout=0.05) as pool:
        with pytest.raises(PoolError):
            pool.acquire(timeout=0.01)
        until(lambda: not pool.stats().connecting, "it is given up")
        assert pool.stats().closing == 1, "it may have a session"
        go.set()
        until(lambda: closed and not pool.stats().size, "its place is free")
