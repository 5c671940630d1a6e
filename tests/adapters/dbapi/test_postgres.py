"""PooledDatabase with psycopg as a PEP 249 module, on a real PostgreSQL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledConnection, PooledDatabase
from tests.faults.proxy import FaultProxy


@pytest.fixture
def db(postgres: PostgresServer) -> Iterator[PooledDatabase]:
    with PooledDatabase(psycopg, postgres.url, max_size=3, check_after_idle=0) as database:
        yield database


def pid(connection: PooledConnection) -> int:
    return int(connection.execute("select pg_backend_pid()").fetchone()[0])


def kill(postgres: PostgresServer, *pids: int) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        for number in pids:
            admin.execute("select pg_terminate_backend(%s, 5000)", [number])


def test_the_same_backend_serves_the_next_user(db: PooledDatabase) -> None:
    with db.connect() as connection:
        first = pid(connection)
    connection = db.connect()
    assert pid(connection) == first
    connection.close()
    with db.connect() as connection:
        assert pid(connection) == first
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_an_open_or_failed_transaction_is_rolled_back(db: PooledDatabase, postgres: PostgresServer) -> None:
    connection = db.connect()
    first = pid(connection)
    with pytest.raises(psycopg.ProgrammingError):
        connection.execute("nonsense")
    connection.close()
    connection = db.connect()
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert pid(connection) == first
    connection.close()


def test_session_settings_of_a_user_do_not_reach_the_next(db: PooledDatabase) -> None:
    with db.connect() as connection:
        first = pid(connection)
        connection.rollback()
        connection.autocommit = True
    with db.connect() as connection:
        assert connection.autocommit is False
        assert pid(connection) == first


def test_16_killed_backends_are_no_callers_problem(db: PooledDatabase, postgres: PostgresServer) -> None:
    connections = [db.connect() for _ in range(3)]
    pids = [pid(connection) for connection in connections]
    for connection in connections:
        connection.close()
    kill(postgres, *pids)
    for _ in range(3):
        with db.connect(timeout=5) as connection:
            assert pid(connection) not in pids


def test_a_connection_that_dies_on_lease_casts_doubt_on_the_idle_ones(postgres: PostgresServer) -> None:
    with PooledDatabase(psycopg, postgres.url, max_size=2, check_after_idle=None) as db:
        one, other = db.connect(), db.connect()
        pids = pid(one), pid(other)
        other.close()
        kill(postgres, *pids)
        with pytest.raises(psycopg.OperationalError):
            one.execute("select 1")
        one.close()
        with db.connect(timeout=5) as connection:
            assert pid(connection) not in pids


def test_a_wrong_password_raises_at_once(postgres: PostgresServer) -> None:
    with PooledDatabase(psycopg, **{**postgres.dsn, "password": "wrong"}) as db:
        with pytest.raises(psycopg.OperationalError, match="authentication failed") as caught:
            db.connect()
    assert isinstance(caught.value, poolkit.ConnectFailed)
    assert caught.value.fatal


def test_connect_timeout_reaches_the_driver(
    postgres: PostgresServer, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    proxy.mode = "silent"
    with PooledDatabase(psycopg, **{**postgres.dsn, "port": proxy.port}, connect_timeout=2, acquire_timeout=3.5) as db:
        with pytest.raises(poolkit.ServerUnavailable, match="timeout expired") as caught:
            db.connect()
    assert isinstance(caught.value, psycopg.OperationalError)


def through_string(dsn: str) -> PooledDatabase:
    return PooledDatabase(psycopg, f"{dsn} connect_timeout=2", acquire_timeout=8)


def through_uri(dsn: str) -> PooledDatabase:
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    uri = f"postgresql://{given['user']}:{given['password']}@{given['host']}:{given['port']}/{given['dbname']}"
    return PooledDatabase(psycopg, f"{uri}?connect_timeout=2", acquire_timeout=8)


def through_keyword(dsn: str) -> PooledDatabase:
    return PooledDatabase(psycopg, conninfo=f"{dsn} connect_timeout=2", acquire_timeout=8)


def through_psycopg2(dsn: str) -> PooledDatabase:
    return PooledDatabase(pytest.importorskip("psycopg2"), f"{dsn} connect_timeout=2", acquire_timeout=8)


def through_keyword_of_psycopg2(dsn: str) -> PooledDatabase:
    return PooledDatabase(pytest.importorskip("psycopg2"), dsn=f"{dsn} connect_timeout=2", acquire_timeout=8)


def through_environment(dsn: str) -> PooledDatabase:
    return PooledDatabase(psycopg, dsn, acquire_timeout=8)


@pytest.mark.parametrize(
    "given",
    [
        through_string, through_uri, through_keyword, through_psycopg2, through_keyword_of_psycopg2,
        through_environment,
    ],
    ids=lambda given: given.__name__,
)  # fmt: skip
def test_a_connect_timeout_of_libpq_limits_a_connect(
    given: Callable[[str], PooledDatabase],
    postgres: PostgresServer,
    fault_proxy: Callable[[str, int], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """poolkit's default of 10 s would be longer than the caller waits."""
    if given is through_environment:
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    proxy = fault_proxy(postgres.host, postgres.port)
    with given(psycopg.conninfo.make_conninfo(**{**postgres.dsn, "port": proxy.port})) as db:
        db.connect().close()
        db.poolkit.clear()
        proxy.mode = "silent"
        with pytest.raises(poolkit.ConnectFailed, match="timeout expired"):
            db.connect()


@pytest.mark.parametrize("settings", [{"connect_timeout": 7}, {"config": poolkit.PoolConfig(connect_timeout=7)}])
def test_the_pools_own_connect_timeout_replaces_that_of_libpq(
    settings: dict[str, Any], postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    text = psycopg.conninfo.make_conninfo(**postgres.dsn, connect_timeout=3)
    with PooledDatabase(psycopg, text, **settings) as db, db.connect() as connection:
        assert connection.info.get_parameters()["connect_timeout"] == "7"


@pytest.mark.parametrize("place", ["string", "connect_kwargs"])
def test_a_limit_that_is_given_later_replaces_that_of_libpq(postgres: PostgresServer, place: str) -> None:
    own = {"connect_timeout": 3}
    text = psycopg.conninfo.make_conninfo(**postgres.dsn, **(own if place == "string" else {}))
    with PooledDatabase(psycopg, text, connect_kwargs=own if place == "connect_kwargs" else None) as db:
        with db.connect() as connection:
            assert connection.info.get_parameters()["connect_timeout"] == "3"
        db.poolkit.clear()
        db.poolkit.reconfigure(connect_timeout=7)
        with db.connect() as connection:
            assert connection.info.get_parameters()["connect_timeout"] == "7"


def test_the_environment_does_not_replace_a_service_file(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "60")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    lines = "".join(f"{name}={value}\n" for name, value in postgres.dsn.items())
    (tmp_path / "services").write_text(f"[orders]\n{lines}", encoding="utf-8")
    with PooledDatabase(psycopg, "service=orders") as db, db.connect() as connection:
        assert connection.info.get_parameters()["connect_timeout"] == "10"  # poolkit's default


def test_a_limit_for_every_pool_does_not_replace_that_of_libpq(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLKIT_CONNECT_TIMEOUT", "7")
    text = psycopg.conninfo.make_conninfo(**postgres.dsn, connect_timeout=3)
    with (
        PooledDatabase(psycopg, text, config=poolkit.load("orders-db")) as db,
        db.connect() as connection,
    ):
        assert connection.info.get_parameters()["connect_timeout"] == "3"


def test_a_string_that_cannot_be_encoded_is_refused_by_the_connect() -> None:
    with PooledDatabase(psycopg, "host=\udcff", acquire_timeout=8) as db, pytest.raises(Exception, match="encode"):
        db.connect()


def test_a_string_that_libpq_cannot_read_fails_with_its_message() -> None:
    with PooledDatabase(psycopg, "host=localhost nonsense", acquire_timeout=8) as db:
        with pytest.raises(poolkit.ConnectFailed, match="nonsense"):
            db.connect()


def test_a_check_that_gets_no_answer_is_bounded(
    postgres: PostgresServer, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    with PooledDatabase(
        psycopg, **{**postgres.dsn, "port": proxy.port}, check_after_idle=0, check_timeout=0.2, max_size=1
    ) as db:
        with db.connect() as connection:
            first = pid(connection)
        proxy.mode = "silent"
        timer = threading.Timer(0.5, setattr, (proxy, "mode", "pass"))
        timer.start()
        with db.connect(timeout=15) as connection:
            assert pid(connection) != first
        timer.join()


def test_11_a_forked_child_begins_empty_and_harms_nothing(db: PooledDatabase) -> None:
    leased = db.connect()
    parent = pid(leased)
    with db.connect() as other:
        idle = pid(other)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            leased.close()
            with db.connect() as connection:
                os.write(write, str(pid(connection)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 20)) not in (parent, idle)
    assert pid(leased) == parent
    leased.close()
    with db.connect() as one, db.connect() as two:
        assert {pid(one), pid(two)} == {parent, idle}
    os.close(read)
    os.close(write)
