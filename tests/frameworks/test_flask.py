"""Pools in Flask applications: one set for each application, leases that end with the request."""

from __future__ import annotations

import logging
import threading
from typing import Any

import flask
import httpx
import pytest
from sqlalchemy import create_engine, text
from werkzeug.serving import make_server

from poolkit import AsyncPool, ConfigError, Pool, PoolClosed, UsageError
from poolkit.frameworks.flask import FlaskPools
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import PoolkitPool


def application(pools: FlaskPools, connector: FakeConnector | None = None) -> flask.Flask:
    """An application factory."""
    app = flask.Flask("shop")
    app.config["CONNECTOR"] = connector or FakeConnector()
    pools.init_app(app)
    return app


def database(app: flask.Flask) -> Pool[Any]:
    return Pool(app.config["CONNECTOR"], max_size=2, acquire_timeout=5)


def test_each_application_has_its_own_pools() -> None:
    """Two applications of one factory share nothing; each creates its pool once, at the first use."""
    pools = FlaskPools({"db": database})
    apps = application(pools), application(pools)
    found = []
    for app in (*apps, *apps):
        with app.app_context():
            found.append(pools["db"])
    assert found[0] is found[2]
    assert found[1] is found[3]
    assert found[0] is not found[1]
    for app in apps:
        assert pools.close(app) == {"db": True}


def test_a_request_has_one_connection_and_returns_it() -> None:
    """connection() is the same during the request; after an error the connection is not used again."""
    pools, connector = FlaskPools({"db": database}), FakeConnector()
    app = application(pools, connector)

    @app.get("/")
    def show() -> list[str]:
        return [str(pools.connection("db")), str(pools.connection("db"))]

    @app.get("/fail")
    def fail() -> str:
        pools.connection("db")
        raise ConnectionResetError("the server has gone")

    client = app.test_client()
    assert [client.get("/").json for _ in range(2)] == [["<FakeConnection 1>"] * 2] * 2
    assert client.get("/fail").status_code == 500
    assert client.get("/").json == ["<FakeConnection 2>"] * 2
    pools.close(app)
    assert connector.live == 0


def test_a_lease_that_a_request_forgets_is_reported_and_its_place_is_free(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the request and the line; the connection is closed, because other code may still use it."""
    pools, connector = FlaskPools({"db": database}), FakeConnector()
    app = application(pools, connector)
    kept = []

    @app.get("/good")
    def good() -> str:
        with pools.lease("db") as connection:
            return str(connection)

    @app.get("/bad")
    def bad() -> str:
        kept.append(pools.lease("db"))
        return str(kept[-1].connection)

    client = app.test_client()
    with caplog.at_level(logging.WARNING, "poolkit"):
        assert client.get("/good").text == "<FakeConnection 1>"
        assert not caplog.records
        assert client.get("/bad").text == "<FakeConnection 1>"
    line = bad.__code__.co_firstlineno + 2
    assert f"the request /bad left a lease of 'db' open, taken at {__file__}:{line}" in caplog.text
    assert kept[0]._record is None
    assert client.get("/good").text == "<FakeConnection 2>"
    pools.close(app)


def test_threads_of_a_server_share_one_pool() -> None:
    """Many first requests at once create one pool, not one for each thread."""
    connector, together, made = FakeConnector(), threading.Barrier(4), []

    def slowly(app: flask.Flask) -> Pool[Any]:
        together.wait(10)
        made.append(Pool(app.config["CONNECTOR"], max_size=4, start="eager", min_size=1))
        return made[-1]

    pools = FlaskPools({"db": slowly})
    app = application(pools, connector)

    @app.get("/")
    def show() -> str:
        pools.connection("db")
        return str(id(pools["db"]))

    server = make_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    answers: list[str] = []

    def get() -> None:
        answers.append(httpx.get(f"http://127.0.0.1:{server.server_port}/", trust_env=False).text)

    try:
        clients = [threading.Thread(target=get) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert len(set(answers)) == 1
    assert sorted(pool.closed for pool in made) == [False, True, True, True]
    assert pools.close(app) == {"db": True}
    assert connector.live == 0


def test_pools_of_drivers_lease_their_own_connections_and_are_closed_with_the_rest(postgres: PostgresServer) -> None:
    """A SQLAlchemy engine and a psycopg pool by name; close() closes both."""
    pools = FlaskPools(
        {
            "engine": lambda app: create_engine(postgres.sqlalchemy_url(), poolclass=PoolkitPool),
            "psycopg": lambda app: PoolkitConnectionPool(postgres.url, min_size=1, open=True),
        }
    )
    app = application(pools)

    @app.get("/")
    def show() -> list[Any]:
        with pools["engine"].connect() as one, pools["psycopg"].connection() as other:
            return [one.execute(text("select 1")).scalar(), other.execute("select 2").fetchone()[0]]

    assert app.test_client().get("/").json == [1, 2]
    with app.app_context():
        with pytest.raises(UsageError, match=r"'engine' is a Engine, .* use pools\['engine'\]"):
            pools.lease("engine")
        engine, pool = pools["engine"], pools["psycopg"]
    assert pools.close(app) == {"engine": True, "psycopg": True}
    assert pool.closed
    with pytest.raises(PoolClosed):
        engine.connect()


def test_invalid_arguments_are_refused() -> None:
    """Each error names the problem and a correction."""
    with pytest.raises(ConfigError, match="db=str: does not use a poolkit pool"):
        FlaskPools({"db": "postgresql://"})
    pools = FlaskPools({"db": lambda app: AsyncPool(AsyncFakeConnector()), "none": lambda app: None})
    app = application(pools)
    with pytest.raises(UsageError, match="already has pools"):
        pools.init_app(app)
    with pytest.raises(UsageError, match="'db' needs an application"):
        pools["db"]
    with app.app_context():
        with pytest.raises(ConfigError, match="'db' is asynchronous"):
            pools["db"]
        with pytest.raises(ConfigError, match="none=NoneType: does not use a poolkit pool"):
            pools["none"]
    with flask.Flask("other").app_context(), pytest.raises(UsageError, match="'other' has no pools: call init_app"):
        pools["db"]


@pytest.mark.parametrize("timeout", [None, "5", -1, float("inf")])
def test_a_wrong_timeout_of_close_closes_nothing(timeout: Any) -> None:
    """The pools are not forgotten: a later close() finds them."""
    connector = FakeConnector()
    pools = FlaskPools({"db": database})
    app = application(pools, connector)
    with app.app_context():
        pools.connection("db")
    with pytest.raises(ConfigError, match=r"timeout=.*: must be a time in seconds, 0 or more, at most 30 days"):
        pools.close(app, timeout=timeout)
    assert pools.close(app) == {"db": True}
    assert connector.live == 0


def test_a_pool_of_psycopg_that_is_not_open_is_opened_at_its_first_use(postgres: PostgresServer) -> None:
    pools = FlaskPools({"db": lambda app: PoolkitConnectionPool(postgres.url, open=False)})
    app = application(pools)
    with app.app_context(), pools["db"].connection() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert pools.close(app) == {"db": True}
