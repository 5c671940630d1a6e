"""Clusters of real PostgreSQL servers, through the adapters."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from collections import Counter
from typing import Any

import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from poolkit import ConfigError, PoolConfig
from poolkit.cluster import ClusterConfig, Node, NoNodeAvailable
from poolkit.testing.servers import PostgresServer
from poolkit_adapters import psycopg as with_psycopg
from poolkit_adapters import sqlalchemy as with_sqlalchemy
from tests.support.waiting import PATIENCE, until

QUICK = ClusterConfig(eject_for=0.2, eject_max=0.4, slow_start=0, role_interval=30.0, acquire_timeout=10.0,
                      balance="least_in_use")  # fmt: skip
POOL = PoolConfig(max_size=3, connect_timeout=5.0)


def nodes_of(servers: list[Any]) -> list[Node]:
    return [Node(f"s{number}", f"{server.host}:{server.port}") for number, server in enumerate(servers)]


def conninfo(servers: list[PostgresServer]) -> str:
    first = servers[0]
    return f"dbname={first.dbname} user={first.user} password={first.password}"


def only_reads(server: PostgresServer, *, yes: bool = True) -> None:
    """Make the server refuse writes, like a demoted primary."""
    with server.connect() as connection:
        connection.execute(f"alter system set default_transaction_read_only = {'on' if yes else 'off'}")
        connection.execute("select pg_reload_conf()")
    until(lambda: _reads_only(server) is yes)


def _reads_only(server: PostgresServer) -> bool:
    with server.connect() as connection:
        row = connection.execute("show default_transaction_read_only").fetchone()
        return row is not None and row[0] == "on"


def roles_of(cluster: Any) -> dict[str, str | None]:
    return {node.name: node.role for node in cluster.stats().nodes}


pytestmark = pytest.mark.timeout(120)  # the first test starts four servers

PORT = "select inet_server_port()"


# -- psycopg ----------------------------------------------------------------------------------------------------------


def test_killing_one_of_four_under_load_costs_at_most_the_requests_in_flight_on_it(
    postgres_four: list[PostgresServer],
) -> None:
    """Eight threads, twelve places; the node comes back by itself with its server."""
    errors: list[Exception] = []
    served: Counter[int] = Counter()
    stop = threading.Event()
    cluster = with_psycopg.PoolkitCluster(
        nodes_of(postgres_four), conninfo(postgres_four), pool=POOL, config=QUICK, roles=False, name="shop"
    )

    def work() -> None:
        while not stop.is_set():
            try:
                with cluster.connection() as connection:
                    row = connection.execute(PORT).fetchone()
                    served[row[0]] += 1
            except Exception as error:
                errors.append(error)

    with cluster:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        victim = postgres_four[0]
        until(lambda: len(served) == 4 and min(served.values()) > 20)
        victim.kill()
        until(lambda: cluster.stats().nodes[0].state != "usable")
        before = sum(served.values())
        until(lambda: sum(served.values()) > before + 200)
        victim.start()
        count = served[victim.port]
        until(lambda: served[victim.port] > count + 20)
        stop.set()
        for thread in threads:
            thread.join()
        cluster.check_books()
        assert len(errors) <= POOL.max_size, Counter(map(repr, errors))  # type: ignore[operator]
        assert all(isinstance(error, psycopg.OperationalError) for error in errors)


def test_psycopg_callers_follow_the_primary_through_a_failover(postgres_four: list[PostgresServer]) -> None:
    """One write fails (25006); the next goes to the new primary; reads continue on the replicas."""
    first, second = postgres_four[:2]
    only_reads(second)
    nodes = nodes_of([first, second])
    with with_psycopg.PoolkitCluster(nodes, conninfo(postgres_four), pool=POOL, config=QUICK, name="shop") as cluster:
        with cluster.connection(role="primary") as connection:
            assert connection.execute(PORT).fetchone() == (first.port,)
            connection.execute("create table if not exists hits (n int)")
        with cluster.connection(role="replica") as connection:
            assert connection.execute(PORT).fetchone() == (second.port,)
        only_reads(first)
        only_reads(second, yes=False)
        failures = 0
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with cluster.connection(role="primary") as connection:
                    assert connection.execute(PORT).fetchone() is not None
                    connection.execute("create table if not exists hits (n int)")
                    connection.execute("insert into hits values (1)")
                    break
            except psycopg.errors.ReadOnlySqlTransaction:
                failures += 1
                assert time.monotonic() < deadline
        assert 1 <= failures <= 2
        until(lambda: roles_of(cluster) == {"s0": "replica", "s1": "primary"})


def test_psycopg_blocks_commit_and_roll_back(postgres_four: list[PostgresServer]) -> None:
    """As with psycopg_pool; errors of the application do not count against a server."""
    nodes = nodes_of(postgres_four[:1])
    with with_psycopg.PoolkitCluster(nodes, conninfo(postgres_four), pool=POOL, config=QUICK) as cluster:
        with cluster.connection() as connection:
            connection.execute("create table if not exists kept (n int)")
            connection.execute("truncate kept")
        for number in range(5):
            with pytest.raises((ZeroDivisionError, FileNotFoundError)):
                with cluster.connection() as connection:
                    connection.execute("insert into kept values (1)")
                    raise ZeroDivisionError if number % 2 else FileNotFoundError("no such file")
        with cluster.connection() as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)
        assert cluster.stats().nodes[0].state == "usable"
        assert cluster.stats().nodes[0].failures == 0


async def _psycopg_async(servers: list[PostgresServer]) -> None:
    cluster = with_psycopg.AsyncPoolkitCluster(
        nodes_of(servers), conninfo(servers), pool=POOL, config=QUICK.replace(max_ejected_share=1.0), name="shop"
    )
    async with cluster:
        served: Counter[int] = Counter()

        async def work() -> None:
            for _ in range(10):
                async with cluster.connection(role="primary") as connection:
                    cursor = await connection.execute(PORT)
                    row = await cursor.fetchone()
                    served[row[0]] += 1  # type: ignore[index]

        await asyncio.gather(*(work() for _ in range(12)))
        assert len(served) == 4
        for server in servers:
            server.kill()
        seen: Any = None
        for _ in range(40):
            try:
                async with cluster.connection(timeout=5) as connection:
                    await connection.execute("select 1")
            except NoNodeAvailable as error:
                seen = error
                break
            except psycopg.OperationalError:
                continue
        assert isinstance(seen, psycopg_pool.PoolTimeout)
        assert set(seen.errors) == {"s0", "s1", "s2", "s3"}
        assert pickle.loads(pickle.dumps(with_psycopg.NoServerAvailable("no", {"a": None}))).errors == {"a": None}


def test_asynchronous_psycopg_serves_from_all_and_names_them_when_all_are_down(
    postgres_four: list[PostgresServer],
) -> None:
    """The error is an error of psycopg and of poolkit."""
    asyncio.run(_psycopg_async(postgres_four))


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("db:5433", "dbname=shop host=db port=5433"),
        ("db", "dbname=shop host=db"),
        ("[::1]:5433", "dbname=shop host=::1 port=5433"),
        ("/run/postgresql", "dbname=shop host=/run/postgresql"),
        ("host=a,b port=1", "dbname=shop host=a,b port=1"),
        ("postgresql://u@db:7/other", "dbname=other user=u host=db port=7"),
    ],
)
def test_addresses_of_postgresql_nodes(address: str, wanted: str) -> None:
    """Host and port, a directory, a connection string or a URL."""
    from psycopg.conninfo import conninfo_to_dict

    from poolkit_adapters.psycopg._cluster import conninfo_of

    assert conninfo_to_dict(conninfo_of(Node("n", address), "dbname=shop")) == conninfo_to_dict(wanted)
    with pytest.raises(ConfigError, match="node 'n': address="):
        conninfo_of(Node("n", "postgresql://["), "")


# -- SQLAlchemy -------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_sqlalchemy_reads_and_writes_where_it_should(postgres_four: list[PostgresServer]) -> None:
    """connect, begin and session work; a killed server fails no lease; a failover is followed."""
    first, second, third = postgres_four[:3]
    only_reads(second)
    only_reads(third)
    url = first.sqlalchemy_url()
    with with_sqlalchemy.PoolkitCluster(
        url, nodes_of([first, second, third]), pool=POOL, cluster=QUICK, name="shop"
    ) as cluster:
        with cluster.begin("primary") as connection:
            Base.metadata.create_all(connection)
            connection.execute(sa.delete(Item))
        with cluster.session("primary") as session:
            session.add(Item(id=1))
            session.commit()
        with cluster.connect("primary") as connection:
            assert connection.scalar(sa.text(PORT)) == first.port
            assert connection.scalar(sa.select(sa.func.count()).select_from(Item)) == 1
        ports = set()

        def read() -> bool:
            with cluster.connect("replica") as connection:
                ports.add(connection.scalar(sa.text(PORT)))
            return len(ports) == 2

        until(read, "the cluster knows both replicas")
        assert ports == {second.port, third.port}
        second.kill()
        errors = 0
        for _ in range(20):
            try:
                with cluster.connect("replica") as connection:
                    assert connection.scalar(sa.text(PORT)) == third.port
            except sa.exc.OperationalError:
                errors += 1
        assert errors <= 1  # the one idle connection to it
        only_reads(first)
        only_reads(third, yes=False)
        failures = 0
        while True:
            try:
                with cluster.begin("primary") as connection:
                    Base.metadata.create_all(connection)
                    connection.execute(sa.insert(Item).values(id=7))
                    break
            except (sa.exc.InternalError, sa.exc.ProgrammingError, sa.exc.IntegrityError):
                failures += 1
                assert failures < 4
        wanted = {"s0": "replica", "s2": "primary"}
        until(lambda: {**roles_of(cluster), **wanted} == roles_of(cluster))
        assert cluster.engine("s0").url.port == first.port


async def _sqlalchemy_async(servers: list[PostgresServer], driver: str) -> None:
    cluster = with_sqlalchemy.AsyncPoolkitCluster(
        servers[0].sqlalchemy_url(driver), nodes_of(servers), pool=POOL, cluster=QUICK, name="shop"
    )
    async with cluster:
        served: Counter[int] = Counter()

        async def work() -> None:
            for _ in range(5):
                async with cluster.connect("primary") as connection:
                    served[(await connection.execute(sa.text(PORT))).scalar_one()] += 1

        await work()
        deadline = time.monotonic() + PATIENCE
        while None in roles_of(cluster).values():  # a node of which that is not known yet gets nobody
            assert time.monotonic() < deadline, roles_of(cluster)
            await asyncio.sleep(0.01)
        await asyncio.gather(*(work() for _ in range(12)))
        assert set(served) == {server.port for server in servers}
        async with cluster.session() as session:
            assert (await session.execute(sa.text("select 1"))).scalar_one() == 1
        async with cluster.begin() as connection:
            assert (await connection.execute(sa.text("select 1"))).scalar_one() == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_asynchronous_sqlalchemy_serves_from_all(postgres_four: list[PostgresServer], driver: str) -> None:
    """connect, begin and session on asyncio."""
    asyncio.run(_sqlalchemy_async(postgres_four, driver))


# asyncio says so of the transports of a loop that has ended, whose sockets are closed
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_asynchronous_sqlalchemy_serves_one_loop_after_another(
    postgres_four: list[PostgresServer], driver: str
) -> None:
    """A connection belongs to the loop in which it was opened: the next loop gets another one."""
    cluster = with_sqlalchemy.AsyncPoolkitCluster(
        postgres_four[0].sqlalchemy_url(driver), nodes_of(postgres_four[:1]), pool=POOL, cluster=QUICK, name="shop"
    )

    async def ask() -> Any:
        async with cluster.connect("primary") as connection:
            return (await connection.execute(sa.text("select 1"))).scalar_one()

    async def last() -> Any:
        async with cluster:
            return await ask()

    assert [asyncio.run(ask()), asyncio.run(ask()), asyncio.run(last())] == [1, 1, 1]
    gc.collect()


def test_without_a_server_sqlalchemy_gets_an_operational_error() -> None:
    """It names all servers and can be pickled."""
    cluster = with_sqlalchemy.PoolkitCluster("postgresql+psycopg://u@x/shop", ["127.0.0.1:1"], cluster=QUICK)
    with cluster, pytest.raises(sa.exc.OperationalError) as caught, cluster.connect():
        pass
    assert isinstance(caught.value, NoNodeAvailable)
    assert "127.0.0.1:1 (usable)" in str(caught.value)
    again = pickle.loads(pickle.dumps(with_sqlalchemy.NoServerAvailable("no", {"a": None})))
    assert (str(again), again.errors) == ("no", {"a": None})
    with pytest.raises(ConfigError, match="address='x:port'"):
        with_sqlalchemy.PoolkitCluster("postgresql+psycopg://u@x/shop", ["x:port"])
