"""What one user leaves behind in a session is not there for the next: it is reset, or the connection is discarded."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpx import PoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool as AsyncRedisPool
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

Run = Callable[[str], Any]
"""Execute one statement, give its first value (or None)."""


class Database:
    """A pool of one connection: ``visit(work)`` borrows it, and gives it back without commit or rollback."""

    def visit(self, work: Callable[[Run], Any], *, commit: bool = False) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def _discard_all(connection: Any) -> None:
    connection.autocommit = True
    connection.execute("discard all")
    connection.autocommit = False


def _first(cursor: Any) -> Any:
    return cursor.fetchone()[0] if cursor.description else None


class SQLAlchemy(Database):
    def __init__(self, server: PostgresServer, thorough: bool) -> None:
        self.engine = create_engine(
            server.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, pool_size=1, max_overflow=0, pool_timeout=5
        )
        if thorough:

            @event.listens_for(self.engine, "reset")
            def reset(connection: Any, record: Any, state: Any) -> None:
                connection.rollback()
                _discard_all(connection)

    def visit(self, work: Callable[[Run], Any], *, commit: bool = False) -> Any:
        with self.engine.connect() as connection:

            def run(statement: str) -> Any:
                result = connection.execute(text(statement))
                return result.scalar() if result.returns_rows else None

            answer = work(run)
            if commit:
                connection.commit()
            return answer

    def close(self) -> None:
        self.engine.dispose()


class Psycopg(Database):
    def __init__(self, server: PostgresServer, thorough: bool) -> None:
        self.pool: Any = PoolkitConnectionPool(
            server.url, min_size=0, max_size=1, open=True, reset=_discard_all if thorough else None, timeout=5
        )

    def visit(self, work: Callable[[Run], Any], *, commit: bool = False) -> Any:
        connection = self.pool.getconn()
        try:
            answer = work(lambda statement: _first(connection.execute(statement)))
            if commit:
                connection.commit()
            return answer
        finally:
            self.pool.putconn(connection)

    def close(self) -> None:
        self.pool.close()


class DBAPI(Database):
    def __init__(self, server: PostgresServer, thorough: bool) -> None:
        self.database = PooledDatabase(
            psycopg, server.url, max_size=1, reset=_discard_all if thorough else "rollback", acquire_timeout=5
        )

    def visit(self, work: Callable[[Run], Any], *, commit: bool = False) -> Any:
        with self.database.connect() as connection:
            cursor = connection.cursor()

            def run(statement: str) -> Any:
                cursor.execute(statement)
                return _first(cursor)

            try:
                return work(run)
            finally:
                if commit:
                    connection.commit()
                cursor.close()
                connection.close()

    def close(self) -> None:
        self.database.close()


class Async(Database):
    """On one event loop of its own; statements of a visit are collected and run one after the other."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def visit(self, work: Callable[[Run], Any], *, commit: bool = False) -> Any:
        statements: list[str] = []
        work(lambda statement: statements.append(statement))
        return self.loop.run_until_complete(self.run(statements, commit))

    async def run(self, statements: list[str], commit: bool) -> Any:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.loop.run_until_complete(self.end())
        self.loop.close()


class AsyncSQLAlchemy(Async):
    def __init__(self, server: PostgresServer, thorough: bool) -> None:
        super().__init__()
        self.engine = create_async_engine(
            server.sqlalchemy_url("asyncpg"), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=5
        )
        if thorough:

            @event.listens_for(self.engine.sync_engine, "reset")
            def reset(connection: Any, record: Any, state: Any) -> None:
                connection.rollback()
                connection.run_async(lambda raw: raw.execute("discard all"))

    async def run(self, statements: list[str], commit: bool) -> Any:
        answer = None
        async with self.engine.connect() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
                answer = result.scalar() if result.returns_rows else None
            if commit:
                await connection.commit()
        return answer

    async def end(self) -> None:
        await self.engine.dispose()


class AsyncPsycopg(Async):
    def __init__(self, server: PostgresServer, thorough: bool) -> None:
        super().__init__()

        async def reset(connection: Any) -> None:
            await connection.set_autocommit(True)
            await connection.execute("discard all")
            await connection.set_autocommit(False)

        self.pool: Any = AsyncPoolkitConnectionPool(
            server.url, min_size=0, max_size=1, open=False, reset=reset if thorough else None, timeout=5
        )
        self.loop.run_until_complete(self.pool.open())

    async def run(self, statements: list[str], commit: bool) -> Any:
        answer = None
        connection = await self.pool.getconn()
        try:
            for statement in statements:
                cursor = await connection.execute(statement)
                answer = (await cursor.fetchone())[0] if cursor.description else None
            if commit:
                await connection.commit()
        finally:
            await self.pool.putconn(connection)
        return answer

    async def end(self) -> None:
        await self.pool.close()


DATABASES: dict[str, Callable[[PostgresServer, bool], Database]] = {
    "sqlalchemy": SQLAlchemy,
    "sqlalchemy-async": AsyncSQLAlchemy,
    "psycopg": Psycopg,
    "psycopg-async": AsyncPsycopg,
    "dbapi": DBAPI,
}

LEFT_BEHIND = {
    "an uncommitted row": ("insert into left_behind values (1)", "select count(*) from left_behind", 0),
    "search_path": ("set search_path to nowhere", "show search_path", '"$user", public'),
    "a role": ("set role pg_monitor", "select current_user::text", "postgres"),
    "a setting of the transaction": ("set local work_mem to '77MB'", "show work_mem", "4MB"),
    "a temporary table": ("create temp table mine (n int)", "select to_regclass('pg_temp.mine') is null", True),
    "LISTEN": ("listen secrets", "select count(*) from pg_listening_channels()", 0),
    "a cursor": ("declare c cursor for select 1", "select count(*) from pg_cursors where name = 'c'", 0),
}
LOCK = (
    "select pg_advisory_lock(4711)",
    "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and granted",
    0,
)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Callable[..., Database]]:
    with postgres.connect() as admin:
        admin.execute("drop table if exists left_behind")
        admin.execute("create table left_behind (n int)")
    made: list[Database] = []

    def make(*, thorough: bool = False) -> Database:
        made.append(DATABASES[request.param](postgres, thorough))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_an_open_transaction_and_all_that_belongs_to_it_ends_with_the_lease(
    what: str, database: Callable[..., Database]
) -> None:
    leave, look, clean = LEFT_BEHIND[what]
    pool = database()
    pool.visit(lambda run: run(leave))
    assert pool.visit(lambda run: run(look)) == clean


def test_a_failed_transaction_is_not_the_next_ones_problem(database: Callable[..., Database]) -> None:
    pool = database()
    with pytest.raises(Exception, match="division by zero"):
        pool.visit(lambda run: run("select 1/0"))
    assert pool.visit(lambda run: run("select 7")) == 7


def test_the_server_holds_no_transaction_open_for_an_idle_connection(
    database: Callable[..., Database], postgres: PostgresServer
) -> None:
    pool = database()
    pid = pool.visit(lambda run: run("select pg_backend_pid()"))
    with postgres.connect() as admin:
        for _ in range(1000):  # a close in the background may take a moment
            row = admin.execute("select state from pg_stat_activity where pid = %s", (pid,)).fetchone()
            if row is None or row[0] == "idle":
                return
    raise AssertionError(row)


@pytest.mark.parametrize(
    ("leave", "look", "clean"),
    [LEFT_BEHIND[what] for what in ("search_path", "a role", "a temporary table", "LISTEN")] + [LOCK],
    ids=["search_path", "role", "temporary table", "LISTEN", "advisory lock"],
)
def test_with_a_reset_that_discards_all_what_was_committed_ends_too(
    leave: str, look: str, clean: object, database: Callable[..., Database]
) -> None:
    """As under the drivers' own pools, a session setting that was committed stays, unless the user has it reset."""
    pool = database(thorough=True)
    pool.visit(lambda run: run(leave), commit=True)
    assert pool.visit(lambda run: run(look)) == clean


# -- Redis ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "SELECT": [("SELECT", "3")],
    "WATCH": [("WATCH", "key")],
    "MULTI": [("MULTI",)],
    "MULTI with commands": [("MULTI",), ("SET", "mine", "1")],
    "SUBSCRIBE": [("SUBSCRIBE", "channel")],
    "PSUBSCRIBE": [("PSUBSCRIBE", "ch*")],
    "MONITOR": [("MONITOR",)],
}


def _state(line: Any) -> dict[str, str]:
    info = line.decode() if isinstance(line, bytes) else str(line)
    pairs = dict(pair.partition("=")[::2] for pair in info.split())
    return {name: pairs[name] for name in ("db", "multi", "sub", "psub")} | {"flags": pairs["flags"]}


CLEAN = {"db": "0", "multi": "-1", "sub": "0", "psub": "0", "flags": "N"}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("what", COMMANDS)
def test_redis_session_state_ends_with_the_lease(what: str, protocol: int, redis_server: RedisServer) -> None:
    pool = RedisPool(host=redis_server.host, port=redis_server.port, max_connections=1, timeout=5, protocol=protocol)
    connection = pool.get_connection()
    for command in COMMANDS[what]:
        connection.send_command(*command)
        if protocol == 2 or not command[0].endswith("SUBSCRIBE"):  # RESP3 pushes that answer
            connection.read_response()
    pool.release(connection)
    connection = pool.get_connection()
    connection.send_command("CLIENT", "INFO")
    assert _state(connection.read_response()) == CLEAN
    pool.release(connection)
    client = redis.Redis(connection_pool=pool)
    assert client.set("theirs", "1")
    assert client.get("mine") is None
    client.delete("theirs")
    pool.close()


@pytest.mark.parametrize("what", COMMANDS)
def test_redis_session_state_ends_with_the_lease_async(what: str, redis_server: RedisServer) -> None:
    async def main() -> None:
        pool = AsyncRedisPool(host=redis_server.host, port=redis_server.port, max_connections=1, timeout=5, protocol=2)
        connection = await pool.get_connection()
        for command in COMMANDS[what]:
            await connection.send_command(*command)
            await connection.read_response()
        await pool.release(connection)
        connection = await pool.get_connection()
        await connection.send_command("CLIENT", "INFO")
        assert _state(await connection.read_response()) == CLEAN
        await pool.release(connection)
        await pool.aclose()

    asyncio.run(main())


def test_a_label_of_a_redis_connection_stays_on_it_as_in_redis_py(redis_server: RedisServer) -> None:
    """CLIENT SETNAME is no secret and no right; redis-py's programs set it and read it again through their pool."""
    pool = RedisPool(host=redis_server.host, port=redis_server.port, max_connections=1)
    client = redis.Redis(connection_pool=pool)
    client.client_setname("label")
    assert client.client_getname() in ("label", b"label")
    pool.close()


# -- HTTP ----------------------------------------------------------------------------------------------------------


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = "\n".join(f"{name.lower()}: {value}" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "session=of-the-server")
        self.send_header("X-Port", str(self.client_address[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join(10)


def test_cookies_and_credentials_are_the_clients_and_not_the_connections(echo: str) -> None:
    transport = PoolkitTransport()
    first = httpx.Client(transport=transport, auth=("me", "s3cret"), cookies={"mine": "1"}, trust_env=False)
    other = httpx.Client(transport=transport, trust_env=False)
    one = first.get(echo)
    assert "authorization: Basic" in one.text
    two = other.get(echo)
    assert two.headers["x-port"] == one.headers["x-port"]  # the same connection
    assert "authorization" not in two.text
    assert "cookie" not in two.text
    assert first.cookies["session"] == "of-the-server"
    transport.close()
