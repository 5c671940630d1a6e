"""The pool undoes what a lease leaves in its session, and sends nothing if nothing can be left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg._statements import leaves_nothing
from tests.adapters.psycopg.support import Admin
from tests.support.waiting import until_async

_numbers = itertools.count()

HARMLESS = [
    "select 1", "SELECT a, b FROM t WHERE a = $1;", "select count(*), max(x) from t group by y having sum(z) > 1",
    "with a (x) as (select 1) select * from a", "values (1), (2)", "table t", "show search_path", "begin", "COMMIT;",
    "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;", "savepoint x", "rollback to savepoint x", "",
    "select * from t for update skip locked", "select * from t for no key update", "-- set role x\nselect 1",
    "/* a /* nested */ set x = 1 */ select 1", "select 'set role; x' as \"into\"", "select $$set role x$$",
    "select * from t where a in (1, 2) and exists (select from u) order by coalesce(a, b) limit 1",
    "select a from t join (select 1) u on true join (values (1)) v on true", "select a from t as x cross join (u) ",
    "select a from t x join (select 1) u using (a) left join (select 2) w on x.a = w.b",
    "select a from t fetch first (1) rows only", "select sum(a) filter (where b) over (partition by (c)) from t",
    "select a from t group by grouping sets ((a), (b)) order by (a)", "select a from t group by rollup (a, b)",
    "with a as materialized (select 1), b as not materialized (select 2) select * from a",
    "select x::timestamptz(3), cast(x as character varying (5)), x::bit varying(3) from t", "select a like ('b')",
    "select 1 -- set role x\rfrom t", "select 1.5e3, 0x1F, 1_000, $1, a[1](2)", "select a\f, b\v from t",
    "select pg_catalog.lower(a) from t", "select x::numeric(10, 2), cast(y as varchar(5)) from t",
]  # fmt: skip
DOUBTFUL = [
    "set role x", "select set_config('a.b', 'c', false)", "select pg_advisory_lock(1)", "listen x", "select mine()",
    "select lower(a) into temp x from t", "create temp table x (a int)", "insert into t values (1)",
    "update t set a = 1", "select 1; set role x", "do $$ begin end $$", "select mine.lower(a) from t",
    'select "f"(1)', "prepare x as select 1", "with x as (insert into t values (1) returning *) select * from x",
    "call p()", "declare c cursor with hold for table t", "select 'a\\' || set_config('a', 'b', false) || 'c'",
    "select 'unfinished", "/* unfinished", "lock t", "discard all", "prepare transaction 'x'",
    "select nextval('s')", "select * from mine(1)", "select ( mine (1))", "explain analyze delete from t",
    "select 1, -- c\r mine(1)", "select next('x')", "select first(1)", "select over(1)", "select filter(1)",
    "select by(1)", "select like('a', 'b')", "select 1, join(2)", "select * from join(1)", "select 1 = join(1)",
    "select not like(1)",
    "select cube(1)", "select 1 order by cube(1)", "select rollup(1)", "select range(1)", "select rows(1)",
    "select of(1)", "select nulls(1)", "select within(1)", "select sets(1)", "select partition(1)", "select is(1)",
    "select materialized(1)", "select varying(1)", "select timestamptz('x')", "select cross(1)", "select inner(1)",
    "select natural(1)", "select outer(1)", "select full(1)", "select similar(1)", "select recursive(1)",
    "select 1, \xa0(1)", "select 1, \x85(1)", "select ran\u212a(1)", "select 1into temp x", "select $1into temp x",
    "reset all", "load 'x'", "copy t to stdout", "select U&'x' uescape '!', mine(1)", "vacuum", "begin; set role x",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_this_leaves_nothing(text: str) -> None:
    assert leaves_nothing(text)


@pytest.mark.parametrize("text", DOUBTFUL)
def test_this_may_leave_something(text: str) -> None:
    assert not leaves_nothing(text)


async def _function(connection: Any) -> None:
    await connection.execute(
        "create or replace function asyncpg_changes() returns int language plpgsql as "
        "$$ begin perform set_config('work_mem', '99kB', false); perform pg_advisory_lock(7); return 1; end $$"
    )
    await connection.fetch("select asyncpg_changes()")


async def _statement(connection: Any) -> None:
    statement = await connection.prepare("select set_config('work_mem', '99kB', false)")
    await statement.fetch()


async def _harmless_then_raw(connection: Any) -> None:
    await connection.fetchval("select 1")
    await connection._con.execute("set work_mem = '99kB'")


async def _transaction(connection: Any) -> None:
    await connection.transaction().start()
    await connection.fetchval("select 1")


async def _copy(connection: Any) -> None:
    async def nowhere(data: bytes) -> None: ...

    await connection.copy_from_query("select set_config('work_mem', '99kB', false)", output=nowhere)


async def _cursor(connection: Any) -> None:
    async with connection.transaction():
        async for _ in connection.cursor("select set_config('work_mem', '99kB', false)"):
            pass


async def _listen(connection: Any) -> None:
    await connection.add_listener("asyncpg_news", lambda *_: None)


def _sql(text: str) -> Any:
    async def leave(connection: Any) -> None:
        await connection.execute(text)

    leave.__name__ = text
    return leave


LEFT = [
    _sql("set work_mem = '99kB'"), _sql("set role pg_monitor"), _sql("set session authorization pg_monitor"),
    _sql("create temp table asyncpg_left (a int)"), _sql("select 1 as a into temp asyncpg_left"),
    _sql("select pg_advisory_lock(7)"), _sql("listen asyncpg_news"), _sql("prepare asyncpg_left as select 1"),
    _sql("do $$ begin perform pg_advisory_lock(7); end $$"), _sql("begin"), _sql("begin; set local work_mem = '99kB'"),
    _sql("select set_config('work_mem', '99kB', false)"),
    _function, _statement, _harmless_then_raw, _transaction, _copy, _cursor, _listen,
]  # fmt: skip

STATE = """select current_user::text, session_user::text, current_setting('work_mem'),
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
    (select array_agg(c) from pg_listening_channels() c), to_regclass('pg_temp.asyncpg_left')::text,
    (select count(*) from pg_prepared_statements where from_sql)"""


@pytest.mark.filterwarnings("ignore:.*active notification listener")
@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
async def test_the_next_user_finds_nothing_of_the_last_one(make: Any, leave: Any) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # asyncpg tells of an open transaction there
    async with make(max_size=1) as pool:
        before = await pool.fetchrow(STATE)
        async with pool.acquire() as connection:
            await leave(connection)
        async with pool.acquire(timeout=60) as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchrow(STATE) == before
        await pool.execute("drop function if exists asyncpg_changes")


async def _queries(pool: Any, *texts: str) -> int:
    """Return how many queries the connection executes for a lease with these queries and for its end."""
    async with pool.acquire() as connection:
        protocol = connection._con._protocol
        begun = protocol.queries_count
        for text in texts:
            await connection.fetch(text)
    return int(protocol.queries_count - begun)


async def test_a_lease_that_only_reads_costs_no_reset(make: Any) -> None:
    async with make(max_size=1) as pool:
        assert await _queries(pool) == 0
        assert await _queries(pool, "select 1", "select 2") == 2
        assert await _queries(pool, "select 1", "set work_mem = '99kB'") == 3
        async with pool.acquire() as connection:
            protocol = connection._con._protocol
            async with connection.transaction():
                await connection.fetch("select 1")
            before = protocol.queries_count
        assert protocol.queries_count == before


METHODS = ["execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany", "transaction", "_execute"]
TENANT = "select current_setting('poolkit.tenant', true)"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("query", ["select 1", "select nope"])
async def test_an_overridden_query_method_leaves_nothing_behind(make: Any, name: str, query: str) -> None:
    original = getattr(asyncpg.Connection, name)

    async def set_tenant(connection: Any, text: str) -> None:
        if text in ("select 1", "select nope"):
            await connection._protocol.query("select set_config('poolkit.tenant', 'left', false)", 60)

    async def waiting(self: Any, query: str, *args: Any, **keywords: Any) -> Any:
        await set_tenant(self, query)
        return await original(self, query, *args, **keywords)

    def plain(self: Any, *args: Any, **keywords: Any) -> Any:
        made = original(self, *args, **keywords)
        start = made.start

        class Own(type(made)):  # type: ignore[misc]
            __slots__ = ()

            async def start(self) -> None:
                await set_tenant(self._connection, "select 1")
                await start()

        made.__class__ = Own
        return made

    kind = type("Mine", (asyncpg.Connection,), {"__slots__": (), name: plain if name == "transaction" else waiting})
    async with make(max_size=1, connection_class=kind) as pool:
        async with pool.acquire() as connection:
            try:
                if name == "transaction":
                    async with connection.transaction():
                        pass
                elif name in ("executemany", "fetchmany"):
                    await getattr(connection, name)(query, [()])
                else:
                    await getattr(connection, "fetch" if name == "_execute" else name)(query)
            except asyncpg.PostgresError:
                pass
        assert not await pool.fetchval(TENANT)


async def _wrong_argument(connection: Any) -> None:
    with pytest.raises(asyncpg.DataError):
        await connection.fetchval("select $1::int", "not a number")


async def _no_time(connection: Any) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(connection.fetchval("select 1"), 0)


async def _never_awaited(connection: Any) -> None:
    connection.fetchval("select 1").close()


async def _failed(connection: Any) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await connection.fetchval("select nope")


async def _wrong_transaction(connection: Any) -> None:
    with pytest.raises(ValueError, match="isolation"):
        connection.transaction(isolation="bogus")


async def _unused_transaction(connection: Any) -> None:
    connection.transaction()


async def _transaction_ended_by_text(connection: Any) -> None:
    await connection.transaction().start()
    await connection.execute("commit")
    connection._con._top_xact = None


@pytest.mark.parametrize(
    "first",
    [
        _wrong_argument, _no_time, _never_awaited, _failed, _wrong_transaction, _unused_transaction,
        _transaction_ended_by_text,
    ],
)  # fmt: skip
async def test_a_call_that_reached_no_server_hides_no_other_query(make: Any, first: Any) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as connection:
            await first(connection)
            await connection._con.execute("select set_config('poolkit.tenant', 'left', false)")
        assert not await pool.fetchval(TENANT)


async def test_a_call_that_is_awaited_after_the_release_executes_nothing(make: Any) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as connection:
            late = connection.execute("select set_config('poolkit.tenant', 'late', false)")
        async with pool.acquire() as connection:
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await late
            assert not await connection.fetchval(TENANT)


async def test_a_text_may_be_given_by_name(make: Any) -> None:
    async with make(max_size=1) as pool, pool.acquire() as connection:
        assert await connection.fetchval(query="select 1") == 1
        await connection.executemany(command="select $1::int", args=[(1,)])


async def test_a_query_that_is_still_running_is_stopped_before_the_connection_is_used_again(make: Any) -> None:
    async with make(max_size=1) as pool:
        connection = await pool.acquire()
        slow = asyncio.ensure_future(connection.fetchval("select pg_sleep(600)"))
        await asyncio.sleep(0.05)
        with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
            await pool.release(connection)
        async with pool.acquire(timeout=60) as other:
            assert await other.fetchval("select 1") == 1
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await slow


async def test_a_class_with_a_reset_of_its_own_keeps_it(make: Any) -> None:
    class Mine(asyncpg.Connection):  # type: ignore[misc]
        def get_reset_query(self) -> str:
            return "set work_mem = '98kB'"

    async with make(max_size=1, connection_class=Mine) as pool:
        async with pool.acquire():
            pass
        assert await pool.fetchval("show work_mem") == "98kB"


async def test_what_init_has_set_lasts_for_one_lease_as_with_asyncpgs_pool(make: Any) -> None:
    async def init(connection: Any) -> None:
        await connection.execute("set work_mem = '98kB'")

    async with make(max_size=1, init=init) as pool:
        assert await pool.fetchval("show work_mem") == "98kB"
        assert await pool.fetchval("show work_mem") != "98kB"


@pytest.fixture
def role(admin: Admin) -> Iterator[str]:
    """The quoted name of a role that is not a superuser."""
    name = f'"poolkit ""role{next(_numbers)} of {os.getpid()}"'
    admin.connection.execute(f"create role {name}")
    yield name
    admin.connection.execute(f"drop role {name}")


STEPS = [
    "select 1", "set work_mem = '99kB'", "set role pg_monitor", "set role none", "reset role",
    "set session authorization pg_monitor", "reset session authorization",
    "reset session authorization; set session authorization pg_monitor", "set role no_such_role",
]  # fmt: skip


@pytest.mark.parametrize("by", ["init", "connect"])
@pytest.mark.parametrize("kind", ["role", "session authorization"])
async def test_the_role_that_the_application_sets_is_every_users_role(make: Any, role: str, by: str, kind: str) -> None:
    async def init(connection: Any) -> None:
        await connection.set_type_codec("text", encoder=str, decoder=lambda text: ["mine", text], schema="pg_catalog")
        await connection.execute(f"set {kind} {role}")

    async def connect(*args: Any, **keywords: Any) -> Any:
        connection = await asyncpg.connect(*args, **keywords)
        await init(connection)
        return connection

    async with make(max_size=1, **({"init": init} if by == "init" else {"connect": connect})) as pool:
        before = await pool.fetchrow("select quote_ident(current_user), session_user")
        assert before[0] == ["mine", role]
        for step in STEPS:
            try:
                await pool.execute(step)
            except asyncpg.PostgresError:
                pass
            assert await pool.fetchrow("select quote_ident(current_user), session_user") == before, step
        assert pool.poolkit.stats().connects == 1


async def test_temporary_tables_and_sequences_of_init_stay_and_those_of_users_do_not(make: Any) -> None:
    async def init(connection: Any) -> None:
        await connection.execute("create temp table asyncpg_init (a serial)")
        await connection.execute("insert into asyncpg_init default values")

    left = "select to_regclass('pg_temp.asyncpg_left') is null, currval('pg_temp.asyncpg_init_a_seq'), lastval()"
    async with make(max_size=1, init=init) as pool:
        function = "create function pg_temp.asyncpg_left() returns int as 'select 1' language sql"
        table, row = "create temp table asyncpg_left (a int)", "insert into asyncpg_init default values"
        for used in ("set work_mem = '99kB'", table, row, function, "select 1"):
            await pool.execute(used)
            assert tuple(await pool.fetchrow(left)) == (True, 1, 1)
            assert await pool.fetchval("select count(*) from pg_proc where proname = 'asyncpg_left'") == 0


async def test_users_of_a_pool_with_init_find_no_temporary_table_and_no_lastval(make: Any) -> None:
    async def init(connection: Any) -> None:
        await connection.execute("select 1")

    async with make(max_size=1, init=init) as pool:
        await pool.execute("create temp table asyncpg_left (a serial); insert into asyncpg_left default values")
        assert await pool.fetchval("select to_regclass('pg_temp.asyncpg_left')") is None
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await pool.fetchval("select lastval()")
        assert pool.poolkit.stats().connects == 1


@pytest.fixture
def hardened(admin: Admin, postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """Arguments for a login that is not a superuser, to a database without PL/pgSQL and pg_depend for its users."""
    number = f"{os.getpid()}_{next(_numbers)}"
    names = [f"asyncpg_{kind}_{number}" for kind in ("database", "login", "role", "other")]
    database, login, role, other = names
    admin.connection.execute(f"create database {database}")
    admin.connection.execute(f"create role {login} login password 'secret'")
    for one in (role, other):
        admin.connection.execute(f"create role {one}; grant {one} to {login}")
    url = postgres.url.rpartition("/")[0] + f"/{database}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("revoke usage on language plpgsql from public; revoke select on pg_depend from public")
    yield {"dsn": url, "user": login, "password": "secret", "role": role, "other": other}
    admin.connection.execute(f"drop database {database} with (force)")
    for one in (login, role, other):
        admin.connection.execute(f"drop role {one}")


@pytest.mark.parametrize("own", [True, False])
async def test_a_login_with_few_privileges_gets_its_role_and_nothing_of_the_last_user(
    make: Any, hardened: dict[str, str], own: bool
) -> None:
    role, other = hardened.pop("role"), hardened.pop("other")

    async def init(connection: Any) -> None:
        await connection.execute(f"set role {role}" if own else "select 1")

    async with make(max_size=1, init=init, **hardened) as pool:
        await pool.execute(f"set role {other}; create temp table asyncpg_left (a serial)")
        user = await pool.fetchval("select current_user")
        assert user == (role if own else hardened["user"])
        assert await pool.fetchval("select to_regclass('pg_temp.asyncpg_left')") is None
        assert pool.poolkit.stats().connects == 1


async def test_a_role_that_was_revoked_costs_the_connection_and_not_the_reset(
    make: Any, admin: Admin, hardened: dict[str, str]
) -> None:
    role, other = hardened.pop("role"), hardened.pop("other")
    login = hardened["user"]

    async def init(connection: Any) -> None:
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"set role {role}")

    async with make(max_size=1, init=init, **hardened) as pool:
        connection = await pool.acquire()
        await connection.execute(f"set role {other}")
        admin.connection.execute(f"revoke {role} from {login}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.release(connection)
        async with pool.acquire(timeout=60) as connection:
            assert await connection.fetchval("select current_user") == login
        for _ in range(2):  # later resets still know of roles
            await pool.execute(f"set role {other}")
            async with pool.acquire(timeout=60) as connection:
                assert await connection.fetchval("select current_user") == login
        assert pool.poolkit.stats().connects == 2


@pytest.mark.parametrize("failing", ["pg_my_temp_schema() returns oid", "current_setting(text) returns text"])
@pytest.mark.parametrize("code", ["XX000", "42883", "0A000", "22000"])
async def test_init_succeeds_at_a_server_that_cannot_tell_its_state(
    make: Any, admin: Admin, postgres: PostgresServer, failing: str, code: str
) -> None:
    database = f"asyncpg_other_{os.getpid()}_{next(_numbers)}"
    admin.connection.execute(f"create database {database}")
    url = postgres.url.rpartition("/")[0] + f"/{database}"
    with psycopg.connect(url, autocommit=True) as connection:
        body = f"begin raise exception using errcode = '{code}'; end"
        connection.execute(f"alter function pg_catalog.{failing.partition(' ')[0]} rename to asyncpg_unused")
        connection.execute(f"create function pg_catalog.{failing} language plpgsql as $${body}$$")

    async def init(connection: Any) -> None:
        await connection.execute("select 1")

    async with make(url, max_size=1, init=init) as pool:
        for _ in range(2):
            await pool.execute("set role pg_monitor; create temp table asyncpg_left (a int)")
            assert await pool.fetchval("select current_user = session_user")
            assert await pool.fetchval("select to_regclass('pg_temp.asyncpg_left')") is None
        assert pool.poolkit.stats().connects == 1
    admin.connection.execute(f"drop database {database} with (force)")


class _NoSession:
    """A protocol whose server does not know SET SESSION AUTHORIZATION and its reset."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    async def query(self, text: str, timeout: Any) -> Any:
        return await self._protocol.query("nonsense" if "SESSION AUTHORIZATION" in text else text, timeout)


async def test_init_at_a_server_that_has_no_session_authorization(make: Any, hardened: dict[str, str]) -> None:
    async def init(connection: Any) -> None:
        connection._protocol = _NoSession(connection._protocol)

    del hardened["role"], hardened["other"]
    async with make(max_size=1, init=init, **hardened) as pool:
        for _ in range(2):
            await pool.execute("set work_mem = '99kB'")
            assert await pool.fetchval("show work_mem") != "99kB"
        assert pool.poolkit.stats().connects == 1


async def test_codecs_stay(make: Any) -> None:
    async def init(connection: Any) -> None:
        await connection.set_type_codec("json", encoder=str, decoder=lambda text: ("mine", text), schema="pg_catalog")

    async with make(max_size=1, init=init) as pool:
        for _ in range(3):
            assert await pool.fetchval("select '1'::json") == ("mine", "1")
            await pool.execute("set work_mem = '99kB'")


async def test_a_server_that_lacks_the_statements_gets_asyncpgs_own(make: Any) -> None:
    async with make(max_size=1) as pool:

        class Unknown(asyncpg.PostgresSyntaxError):  # type: ignore[misc]
            sqlstate = None

        sent: list[str] = []
        async with pool.acquire() as connection:
            driver = type(connection._con)
        execute = driver.execute

        async def refusing(self: Any, query: str, *args: Any, **keywords: Any) -> Any:
            sent.append(query)
            if "DISCARD" in query:
                query = "no such statement"
            return await execute(self, query, *args, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "execute", refusing)
            for _ in range(2):
                await pool.fetchval("select pg_advisory_lock(7)")
        assert sum("DISCARD" in text for text in sent) == 1
        assert pool.poolkit.stats().connects == 1
        await until_async(lambda: pool.get_idle_size() == 1, "it is idle")
