"""A function of the application that hangs in a connect, where no limit of a driver reaches: the caller hears at its
deadline, the place in the pool is free in the end, and what the connect opens after all is closed.
"""

from __future__ import annotations

import importlib
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters import _hang_up, _time_limits
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpcore import PoolkitConnectionPool as HttpPool
from poolkit_adapters.psycopg import PoolkitConnectionPool as PsycopgPool
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")  # a connect may outlast its caller's wait
CONNECT = 0.5
"""Seconds for a connect. It is given up after a few times as long."""
PLACES = 2


class Hang:
    """The function that hangs, until the test ends it."""

    def __init__(self) -> None:
        self.healthy = False
        self.inside = 0  # threads
        self._go = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, *_args: Any, **_keywords: Any) -> None:
        if self.healthy:
            return
        with self._lock:
            self.inside += 1
        self._go.wait(2 * PATIENCE)
        with self._lock:
            self.inside -= 1

    def end(self) -> None:
        """Let the threads go on."""
        self._go.set()


class Subject:
    """A pool whose connects hang, and its use."""

    def __init__(self, engine: Any, take: Callable[[], Any], give: Callable[[Any], Any]) -> None:
        self.engine = engine
        self.take = take
        self.give = give

    def serve(self) -> None:
        """Ask until a connection is available."""

        def ask() -> bool:
            try:
                connection = self.take()
            except poolkit.PoolError:
                return False
            self.give(connection)
            return True

        until(ask, "a caller is served")


WAITS: dict[str, Any] = {"acquire_timeout": 0.2, "check_timeout": 0.2}
LIMITS: dict[str, Any] = {"connect_timeout": CONNECT, **WAITS}


def _redis(proxy: FaultProxy, hang: Hang, library: str, **own: Any) -> tuple[Subject, Callable[[], object]]:
    adapter = importlib.import_module(f"poolkit_adapters.{library}")
    backoff, retry = (importlib.import_module(f"{library}.{name}") for name in ("backoff", "retry"))
    pool = adapter.PoolkitConnectionPool(
        host=proxy.host, port=proxy.port, socket_timeout=None, max_connections=PLACES,
        retry=retry.Retry(backoff.NoBackoff(), 0), **LIMITS, **own,
    )  # fmt: skip
    return Subject(pool.poolkit, pool.get_connection, pool.release), pool.close


def redis_function(
    proxy: FaultProxy, hang: Hang, request: Any, library: str = "redis"
) -> tuple[Subject, Callable[[], object]]:
    def connected(connection: Any) -> None:
        hang()
        connection.on_connect()

    return _redis(proxy, hang, library, **{f"{library}_connect_func": connected})


def redis_provider(
    proxy: FaultProxy, hang: Hang, request: Any, library: str = "redis"
) -> tuple[Subject, Callable[[], object]]:
    credentials = importlib.import_module(f"{library}.credentials")

    class Provider(credentials.CredentialProvider):  # type: ignore[misc, name-defined]
        def get_credentials(self) -> tuple[str, str]:
            hang()
            return "default", ""

    return _redis(proxy, hang, library, credential_provider=Provider())


def valkey_function(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    return redis_function(proxy, hang, request, "valkey")


def _dsn(proxy: FaultProxy, request: Any) -> dict[str, Any]:
    server: PostgresServer = request.getfixturevalue("postgres")
    return {**server.dsn, "host": proxy.host, "port": proxy.port}


def _psycopg(proxy: FaultProxy, request: Any, **own: Any) -> tuple[Subject, Callable[[], object]]:
    keywords = {"kwargs": _dsn(proxy, request), **own}
    pool: Any = PsycopgPool(
        "", min_size=0, max_size=PLACES, timeout=LIMITS["acquire_timeout"], open=True,
        connect_timeout=CONNECT, check_timeout=LIMITS["check_timeout"], **keywords,
    )  # fmt: skip
    return Subject(pool._engine, pool.getconn, pool.putconn), pool.close


def psycopg_configure(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    return _psycopg(proxy, request, configure=hang)


def psycopg_arguments(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    def arguments() -> dict[str, Any]:
        hang()
        return _dsn(proxy, request)

    return _psycopg(proxy, request, kwargs=arguments)


def psycopg_check(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    return _psycopg(proxy, request, check=hang)


def dbapi_setup(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    database = PooledDatabase(psycopg, connect_kwargs=_dsn(proxy, request), setup=hang, max_size=PLACES, **LIMITS)
    return Subject(database.poolkit, database.connect, lambda connection: connection.close()), database.close


def _sqlalchemy(proxy: FaultProxy, request: Any, **own: Any) -> Any:
    given = own or {"connect_args": _dsn(proxy, request), "connect_timeout": CONNECT}
    return create_engine("postgresql+psycopg://", poolclass=PoolkitPool, max_size=PLACES, **WAITS, **given)


def _of_engine(engine: Any) -> tuple[Subject, Callable[[], object]]:
    def close() -> None:
        engine.pool.poolkit.close()

    return Subject(engine.pool.poolkit, engine.raw_connection, lambda connection: connection.close()), close


def sqlalchemy_connect(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    """SQLAlchemy makes all others wait for the first connect of an engine, so the first one does not hang."""
    engine = _sqlalchemy(proxy, request)
    event.listen(engine, "connect", hang)
    hang.healthy = True
    subject, close = _of_engine(engine)
    subject.serve()
    subject.engine.clear()
    until(lambda: not subject.engine.stats().size, "the healthy one is closed")
    hang.healthy = False
    return subject, close


def sqlalchemy_first(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    """The first connection hangs in it, and the others wait for the first."""
    engine = _sqlalchemy(proxy, request)
    event.listen(engine.pool, "first_connect", hang)
    return _of_engine(engine)


def sqlalchemy_creator(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    def creator() -> Any:
        hang()
        return psycopg.connect(**_dsn(proxy, request))

    return _of_engine(_sqlalchemy(proxy, request, creator=creator))


def sqlalchemy_do_connect(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    engine = _sqlalchemy(proxy, request)
    event.listen(engine, "do_connect", hang)
    return _of_engine(engine)


def dbapi_module(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    """A module whose ``connect()`` hangs, and opens its connection after that."""

    def connect(**keywords: Any) -> Any:
        hang()
        return psycopg.connect(**keywords)

    module: Any = types.ModuleType("a_module")
    vars(module).update({name: value for name, value in vars(psycopg).items() if not name.startswith("__")})
    module.connect = connect
    database = PooledDatabase(module, connect_kwargs=_dsn(proxy, request), max_size=PLACES, **WAITS)
    return Subject(database.poolkit, database.connect, lambda connection: connection.close()), database.close


def _hidden(request: Any) -> None:
    """Hide the sockets of the drivers' connections, as some drivers written in C do."""
    request.getfixturevalue("monkeypatch").setattr(_hang_up, "_socket_holder", lambda driver: None)


def dbapi_hidden_socket(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    _hidden(request)
    return dbapi_setup(proxy, hang, request)


def sqlalchemy_hidden_socket(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    _hidden(request)
    return sqlalchemy_connect(proxy, hang, request)


def httpcore_backend(proxy: FaultProxy, hang: Hang, request: Any) -> tuple[Subject, Callable[[], object]]:
    class Backend(httpcore.NetworkBackend):
        def connect_tcp(self, *args: Any, **keywords: Any) -> httpcore.NetworkStream:
            hang()
            return httpcore._backends.sync.SyncBackend().connect_tcp(*args, **keywords)

    pool = HttpPool(network_backend=Backend(), max_connections=PLACES, **LIMITS)

    def ask() -> Any:
        limit = PATIENCE if hang.healthy else CONNECT
        times = {"connect": limit, "pool": PATIENCE if hang.healthy else WAITS["acquire_timeout"]}
        response = pool.request("GET", f"http://{proxy.host}:{proxy.port}/", extensions={"timeout": times})
        assert response.status == 200

    return Subject(pool.poolkit, ask, lambda _: None), pool.close


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.end()


@contextmanager
def made(make: Callable[..., tuple[Subject, Callable[[], object]]], *args: Any) -> Iterator[Subject]:
    subject, close = make(*args)
    try:
        yield subject
        subject.engine.check_books()
    finally:
        args[1].end()
        close()


def ask_until(subject: Subject, condition: Callable[[], object], what: str) -> None:
    """Send callers until something has happened. Each must get its error at its deadline."""

    def ask() -> object:
        with pytest.raises(poolkit.PoolError):
            subject.take()
        return condition()

    until(ask, what)


FREED = [
    redis_function, redis_provider, valkey_function, psycopg_configure, psycopg_arguments, psycopg_check, dbapi_setup,
    sqlalchemy_connect, sqlalchemy_first,
]  # fmt: skip
"""Functions that hang where it is known whether a session exists, and how to end it."""
KEPT = [
    sqlalchemy_creator, sqlalchemy_do_connect, sqlalchemy_hidden_socket, dbapi_module, dbapi_hidden_socket,
    httpcore_backend,
]  # fmt: skip
"""Functions that hang where a session may exist that nothing else knows or can end."""


def start(make: Any, request: pytest.FixtureRequest, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    name = make.__name__.partition("_")[0]
    if name == "valkey":
        pytest.importorskip("valkey")
    servers = {"redis": "redis_server", "valkey": "redis_server", "httpcore": "http_server"}
    server = request.getfixturevalue(servers.get(name, "postgres"))
    return fault_proxy(server.host, server.port)


def hang_one(subject: Subject, hang: Hang) -> None:
    """Let one connect hang and be given up, and go on later. All others succeed."""
    ask_until(subject, lambda: hang.inside, "a connect hangs")
    hang.healthy = True
    new = {} if subject.engine.config.connect_timeout is None else {"connect_timeout": PATIENCE}
    subject.engine.reconfigure(acquire_timeout=PATIENCE, **new)
    until(lambda: not subject.engine.stats().connecting, "it is given up")
    assert hang.inside, "its thread goes on"


@pytest.mark.parametrize("make", FREED, ids=lambda make: make.__name__)
def test_the_place_is_free_while_the_thread_goes_on(
    make: Any, request: pytest.FixtureRequest, fault_proxy: Callable[..., FaultProxy], hang: Hang
) -> None:
    proxy = start(make, request, fault_proxy)
    with made(make, proxy, hang, request) as subject:
        hang_one(subject, hang)
        stats = subject.engine.stats()
        assert (stats.size, stats.closing) == (0, 0)
        assert "has not returned" in str(stats.last_connect_error)
        until(lambda: not proxy.open, "the server has no session of it")
        if make is sqlalchemy_first:  # SQLAlchemy makes all others wait for the first
            hang.end()
        subject.serve()
        assert hang.inside or make is sqlalchemy_first
        hang.end()
        until(lambda: not hang.inside, "the thread goes on")
        until(lambda: proxy.open == subject.engine.stats().size == 1, "its connection is closed")


@pytest.mark.parametrize("make", KEPT, ids=lambda make: make.__name__)
def test_the_slot_is_kept_where_a_session_may_be_unknown(
    make: Any,
    request: pytest.FixtureRequest,
    fault_proxy: Callable[..., FaultProxy],
    hang: Hang,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_time_limits, "UNSAID", CONNECT)  # an application's creator or module takes no limit
    proxy = start(make, request, fault_proxy)
    with made(make, proxy, hang, request) as subject:
        hang_one(subject, hang)
        monkeypatch.undo()
        taken = subject.engine.stats().closing
        assert 1 <= taken == hang.inside
        assert "has not returned" in str(subject.engine.stats().last_connect_error)
        if taken < PLACES:
            subject.serve()
        assert subject.engine.stats().closing == taken
        hang.end()
        until(lambda: not subject.engine.stats().closing, "the place is free when it has returned")
        subject.serve()
        until(lambda: proxy.open == subject.engine.stats().size == 1, "its connection is closed")


@pytest.mark.parametrize("make", [redis_function, sqlalchemy_connect], ids=lambda make: make.__name__)
def test_its_error_has_the_drivers_class_and_poolkits(
    make: Any, request: pytest.FixtureRequest, fault_proxy: Callable[..., FaultProxy], hang: Hang
) -> None:
    proxy = start(make, request, fault_proxy)
    with made(make, proxy, hang, request) as subject:
        subject.engine.reconfigure(acquire_timeout=PATIENCE)  # longer than the connect may take
        with pytest.raises(poolkit.ConnectFailed, match="has not returned") as caught:
            subject.take()
        driver = redis.TimeoutError if make is redis_function else OperationalError
        assert isinstance(caught.value, driver)
