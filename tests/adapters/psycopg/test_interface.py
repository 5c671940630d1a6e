"""The interface of psycopg_pool: names, defaults, attributes, errors, and the messages for bad input."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import warnings
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import Row, class_row, dict_row

import poolkit
import poolkit_adapters.psycopg as adapter
from poolkit.testing.servers import PostgresServer

from .support import Twin, do, pid, within

PAIRS = [
    (adapter.PoolkitConnectionPool, psycopg_pool.ConnectionPool),
    (adapter.AsyncPoolkitConnectionPool, psycopg_pool.AsyncConnectionPool),
    (adapter.PoolkitNullConnectionPool, psycopg_pool.NullConnectionPool),
    (adapter.AsyncPoolkitNullConnectionPool, psycopg_pool.AsyncNullConnectionPool),
]
UNDOCUMENTED = {"run_task", "schedule_task", "worker"}  # how psycopg_pool passes work to its threads


@pytest.mark.parametrize(("ours", "stock"), PAIRS)
def test_every_argument_and_method_of_the_stock_pool_is_there(ours: Any, stock: Any) -> None:
    wanted = inspect.signature(stock.__init__).parameters
    offered = inspect.signature(ours.__init__).parameters
    for name, parameter in wanted.items():
        assert offered[name].kind is parameter.kind, name
        assert offered[name].default == parameter.default, name
    mine = [base for base in ours.__mro__ if base.__module__.startswith("poolkit_adapters")]
    for name, value in inspect.getmembers(stock):
        if name.startswith("_") or name in UNDOCUMENTED or not callable(value):
            continue
        assert any(name in vars(base) for base in mine), f"{name} is inherited from the stock pool"
        method = getattr(ours, name)
        assert list(inspect.signature(method).parameters) == list(inspect.signature(value).parameters), name
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(value), name


def test_the_twins_differ_in_nothing_but_await() -> None:
    def arguments(pool: Any) -> list[tuple[str, object]]:
        parameters = inspect.signature(pool).parameters.values()
        return [(p.name, p.default) for p in parameters if p.name != "connection_class"]

    for one, other in ((PAIRS[0][0], PAIRS[1][0]), (PAIRS[2][0], PAIRS[3][0])):
        assert arguments(one) == arguments(other)
        public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (one, other)]
        assert public[0] == public[1]


async def test_attributes_and_defaults(twin: Twin) -> None:
    pool = twin.pool(name="mine")
    shown = {
        "name": "mine", "min_size": 4, "max_size": 4, "timeout": 30, "max_waiting": 0, "max_lifetime": 3600,
        "max_idle": 600, "reconnect_timeout": 300, "num_workers": 3, "close_returns": False, "closed": True,
        "conninfo": twin.postgres.url, "kwargs": None, "connection_class": twin.connection_class,
    }  # fmt: skip
    assert {name: getattr(pool, name) for name in shown} == shown
    assert isinstance(pool, psycopg_pool.AsyncConnectionPool if twin.asynchronous else psycopg_pool.ConnectionPool)
    assert "mine" in repr(pool)
    pool.timeout, pool.max_idle, pool.max_lifetime, pool.max_waiting = 3.0, 5.0, 7.0, 9
    config = pool.poolkit.config
    assert (config.acquire_timeout, config.idle_timeout, config.max_lifetime, config.max_waiting) == (3, 5, 7, 9)


async def test_one_changed_line_reuses_the_backend(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_size=2)) as pool:
        async with within(pool.connection()) as connection:
            first = pid(connection)
            assert connection._pool is pool
            await do(connection.execute("select 1"))
        for _ in range(3):
            async with within(pool.connection()) as connection:
                assert pid(connection) == first


async def test_generic_at_run_time(twin: Twin) -> None:
    class MyRow(dict[str, Any]):
        pass

    class Mine(twin.connection_class[Row]):  # type: ignore[name-defined, misc]
        pass

    kind, kwargs = twin.pool_class[Mine], {"row_factory": class_row(MyRow)}
    async with within(kind(twin.postgres.url, connection_class=Mine[MyRow], kwargs=kwargs, open=False)) as pool:
        async with within(pool.connection()) as connection:
            assert isinstance(connection, Mine)
            assert await do((await do(connection.execute("select 1 as x"))).fetchone()) == {"x": 1}


async def test_not_open_open_and_closed(twin: Twin) -> None:
    pool = twin.pool(min_size=1)
    with pytest.raises(psycopg_pool.PoolClosed, match="is not open yet"):
        await do(pool.getconn())
    assert pool.poolkit.stats().size == 0
    await do(pool.open(wait=True, timeout=10))
    await do(pool.open())  # does nothing
    async with within(pool.connection()) as connection:
        await do(pool.close())
    assert connection.closed
    with pytest.raises(psycopg_pool.PoolClosed, match="is already closed") as caught:
        await do(pool.getconn())
    assert isinstance(caught.value, poolkit.PoolClosed)
    assert isinstance(caught.value, psycopg.OperationalError)
    with pytest.raises(psycopg_pool.PoolClosed, match="cannot be reused"):
        await do(pool.open())
    with pytest.raises(psycopg_pool.PoolClosed):
        await do(pool.wait())
    await do(pool.close())


async def test_opening_in_the_constructor_warns_as_the_stock_pool_does(twin: Twin) -> None:
    kind = RuntimeWarning if twin.asynchronous else DeprecationWarning
    pool = twin.pool(open=None, min_size=0, max_size=1)
    with pytest.warns(kind, match="open"):
        connection = await do(pool.getconn())
    await do(pool.putconn(connection))
    await do(pool.close())
    if twin.asynchronous:
        with pytest.warns(RuntimeWarning):
            pool = twin.pool(open=True, min_size=0, max_size=1)
    else:
        pool = twin.pool(open=True, min_size=0, max_size=1)
    async with within(pool):
        async with within(pool.connection()):
            pass


def test_an_async_pool_opened_outside_a_loop_raises() -> None:
    with (
        pytest.warns(RuntimeWarning, match="opened by its constructor"),
        pytest.raises(RuntimeError, match="outside an event loop") as caught,
    ):
        adapter.AsyncPoolkitConnectionPool(open=True)
    assert isinstance(caught.value, poolkit.UsageError)


def test_an_async_pool_on_trio_says_that_psycopg_needs_asyncio() -> None:
    trio = pytest.importorskip("trio")
    pool = adapter.AsyncPoolkitConnectionPool(open=False)
    with pytest.raises(poolkit.UsageError, match="needs asyncio"):
        trio.run(pool.open)


async def test_putconn_of_a_connection_that_is_not_leased(twin: Twin) -> None:
    stranger = await do(twin.connection_class.connect(twin.postgres.url))
    async with within(twin.pool(min_size=1, name="one")) as one, within(twin.pool(min_size=1, name="other")) as other:
        with pytest.raises(ValueError, match=r"'one'.*not leased from any pool"):
            await do(one.putconn(stranger))
        connection = await do(one.getconn())
        with pytest.raises(ValueError, match="belongs to pool 'one'") as caught:
            await do(other.putconn(connection))
        assert isinstance(caught.value, poolkit.NotLeased)
        await do(one.putconn(connection))
        with pytest.raises(ValueError, match="not leased from any pool"):
            await do(one.putconn(connection))
    await do(stranger.close())


async def test_close_returns(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, close_returns=True)) as pool:
        connection = await do(pool.getconn())
        first = pid(connection)
        await do(connection.close())
        assert not connection.closed
        async with within(pool.connection()) as again:
            assert pid(again) == first
            await do(again.close())  # inside the block: it is returned, and the end of the block does not touch it
            third = await do(pool.getconn())
            assert third is again
        assert third._pool is pool
        await do(pool.putconn(third))
    assert connection.closed


async def test_without_close_returns_close_closes(twin: Twin) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        async with within(pool.connection()) as connection:
            first = pid(connection)
            await do(connection.close())
        async with within(pool.connection()) as connection:
            assert pid(connection) != first
        assert pool.get_stats()["returns_bad"] == 1


async def test_conninfo_and_kwargs_may_be_callables(twin: Twin, application: str) -> None:
    calls: list[str] = []

    async def conninfo() -> str:
        calls.append("conninfo")
        return twin.postgres.url

    async def kwargs() -> dict[str, Any]:
        calls.append("kwargs")
        return {"application_name": f"{application}-{len(calls)}"}

    pool = twin.pool(twin.callback(conninfo), kwargs=twin.callback(kwargs), min_size=0, max_size=2)
    async with within(pool):
        async with within(pool.connection()) as one, within(pool.connection()) as other:
            assert one.info.parameter_status("application_name") == f"{application}-2"
            assert other.info.parameter_status("application_name") == f"{application}-4"
    assert calls == ["conninfo", "kwargs"] * 2


async def test_sizes_and_resize(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_size=2)) as pool:
        await do(pool.resize(3))
        assert (pool.min_size, pool.max_size) == (3, 3)
        await do(pool.wait())
        await do(pool.resize(0, 2))
        assert (pool.min_size, pool.max_size) == (0, 2)
        for sizes in ((0, 0), (-1, None), (4, 2)):
            with pytest.raises(ValueError, match="size"):
                await do(pool.resize(*sizes))
        assert (pool.min_size, pool.max_size) == (0, 2)


def bad(twin: Twin, **arguments: Any) -> Any:
    return lambda: twin.pool(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_size": 0, "max_size": 0}, "max_size=0"),
        ({"min_size": 0}, "max_size=0"),
        ({"min_size": -1}, "min_size=-1"),
        ({"min_size": 4, "max_size": 2}, "min_size=4"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"timeout": -1}, "acquire_timeout=-1"),
        ({"timeout": "5"}, "acquire_timeout='5'"),
        ({"reconnect_timeout": -1}, "reconnect_timeout=-1"),
        ({"max_sise": 3}, "did you mean 'max_size'"),
        ({"reconnect_timout": 3}, "did you mean 'reconnect_timeout'"),
        ({"timeout": 3, "acquire_timeout": 3}, "acquire_timeout=3: means the same as timeout=3"),
        ({"max_idle": 3.0, "idle_timeout": 3}, "idle_timeout=3: means the same as max_idle=3"),
        ({"num_workers": 2, "max_connecting": 3}, "max_connecting=3: means the same as num_workers=2"),
        ({"configure": 1}, "configure=1: must be callable"),
        ({"reset": "DISCARD ALL"}, "reset='DISCARD ALL'"),
        ({"config": {"max_size": 3}}, "config="),
        ({"kwargs": "autocommit"}, "kwargs must be a dict"),
        ({"conninfo": 5}, "conninfo must be a string"),
        ({"conninfo": "host=x nonsense"}, "conninfo cannot be parsed"),
        ({"conninfo": "host=x connect_timeout=soon"}, "connect_timeout='soon'"),
        ({"connection_class": dict}, "connection_class="),
    ],
)
def test_bad_input_is_one_clear_error_where_the_mistake_is_made(
    twin: Twin, arguments: dict[str, Any], words: str
) -> None:
    arguments = {"conninfo": "", **arguments}
    with pytest.raises(poolkit.ConfigError, match=words):
        twin.pool_class(open=False, **arguments)


def test_a_password_does_not_get_into_the_error(twin: Twin) -> None:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        twin.pool("host=x password=s3cret nonsense")
    assert "s3cret" not in str(caught.value)


def test_each_twin_refuses_the_others_connection_class() -> None:
    with pytest.raises(poolkit.ConfigError, match="use AsyncPoolkitConnectionPool"):
        adapter.PoolkitConnectionPool(connection_class=psycopg.AsyncConnection, open=False)  # type: ignore[type-var]
    with pytest.raises(poolkit.ConfigError, match="use PoolkitConnectionPool"):
        adapter.AsyncPoolkitConnectionPool(connection_class=psycopg.Connection, open=False)  # type: ignore[type-var]

    async def configure(connection: Any) -> None: ...

    with pytest.raises(poolkit.ConfigError, match="coroutine function"):
        adapter.PoolkitConnectionPool(configure=configure, open=False)  # type: ignore[arg-type]


async def test_a_callback_that_cannot_be_awaited_is_named(twin: Twin) -> None:
    if not twin.asynchronous:
        pytest.skip("a question of the async pool")
    pool = twin.pool(min_size=0, max_size=1, configure=lambda connection: None, timeout=1.0)
    async with within(pool):
        with pytest.raises(psycopg_pool.PoolTimeout, match="coroutine function"):
            await do(pool.getconn())


def test_config_replaces_the_stock_defaults_and_arguments_win(twin: Twin) -> None:
    config = poolkit.PoolConfig(min_size=1, max_size=7, acquire_timeout=3, connect_timeout=2, max_idle=5, order="lifo")
    pool = twin.pool(config=config, max_lifetime=60)
    assert (pool.min_size, pool.max_size, pool.timeout, pool.max_lifetime) == (1, 7, 3, 60)
    assert pool.poolkit.config.max_idle == 5  # a number of connections, for which psycopg_pool has no argument
    assert pool.poolkit.config.order == "lifo"
    assert twin.pool(config=config, min_size=4).min_size == 4  # equal to the default, but given
    assert twin.pool(order="lifo", check_after_idle=5).poolkit.config.check_after_idle == 5
    assert twin.pool().poolkit.config.order == "fifo"


def test_connect_timeout_of_the_conninfo_bounds_the_connect(twin: Twin) -> None:
    def limit(conninfo: str, **arguments: Any) -> Any:
        return twin.pool(conninfo, **arguments).poolkit.config.connect_timeout

    assert limit("host=x connect_timeout=5") == 5
    assert limit("host=x,y connect_timeout=5") == 10  # for each host
    assert limit("host=x connect_timeout=0") is None
    assert limit("host=x", kwargs={"connect_timeout": 3}) == 3
    assert limit("host=x connect_timeout=5", connect_timeout=7) == 7
    assert limit("host=x") == 10


def test_short_timeouts_cause_no_warning_about_defaults(twin: Twin) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.pool(timeout=0.1, max_lifetime=0.2, max_idle=600)


@pytest.mark.parametrize("kind", [k for k in adapter.__all__ if isinstance(getattr(adapter, k), type)
                                  and issubclass(getattr(adapter, k), Exception)])  # fmt: skip
def test_errors_are_both_and_survive_pickling(kind: str) -> None:
    error = getattr(adapter, kind)("words")
    assert isinstance(error, poolkit.PoolError)
    assert isinstance(error, (psycopg.Error, ValueError))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "words")


def test_a_missing_driver_is_named_with_its_pip_line() -> None:
    code = (
        "import sys; sys.modules['psycopg_pool'] = None\n"
        "try:\n    import poolkit_adapters.psycopg\nexcept ImportError as e:\n    print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "MissingExtra" in out
    assert "pip install 'poolkit[psycopg]'" in out


async def test_check_connection_is_a_callback_and_a_tool(twin: Twin, postgres: PostgresServer, admin: Any) -> None:
    connection = await do(twin.connection_class.connect(postgres.url, row_factory=dict_row))
    for autocommit in (False, True):
        await do(connection.set_autocommit(autocommit)) if twin.asynchronous else setattr(
            connection, "autocommit", autocommit
        )
        await do(twin.pool_class.check_connection(connection))
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    admin.kill(pid(connection))
    with pytest.raises(psycopg.OperationalError):
        await do(twin.pool_class.check_connection(connection))
    assert connection.closed


async def test_a_lease_of_the_engine_itself_has_what_the_connection_has(twin: Twin) -> None:
    """A ShardedCluster leases from ``pool.poolkit``, and not through psycopg_pool's interface."""
    async with within(twin.pool(min_size=0, max_size=1)) as pool:
        session: Any = await do(pool.poolkit.acquire())
        assert (await do((await do(session.execute("select 1"))).fetchone()))[0] == 1
        assert session.info.backend_pid == session.pgconn.backend_pid
        await do(session.rollback())
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = session.no_such_thing
        await do(pool.poolkit.release(session))
        async with within(pool.connection()) as connection:
            assert (await do((await do(connection.execute("select 2"))).fetchone()))[0] == 2


@pytest.mark.parametrize(
    ("base", "null"),
    [
        (adapter.PoolkitConnectionPool, adapter.PoolkitNullConnectionPool),
        (adapter.AsyncPoolkitConnectionPool, adapter.AsyncPoolkitNullConnectionPool),
    ],
)
def test_a_null_pool_calls_the_next_constructor_of_its_class(base: Any, null: Any) -> None:
    """A class of the application between the two sees the arguments."""
    seen: list[dict[str, Any]] = []

    class Between(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            seen.append(kwargs)
            super().__init__(*args, **kwargs)

    class Both(null, Between):  # type: ignore[misc]
        pass

    pool = Both("", open=False, max_size=3)
    assert [(one["min_size"], one["max_size"]) for one in seen] == [(0, 3)]
    assert (pool.min_size, pool.max_size) == (0, 3)
