"""Dialects without a driver's name, connects without a record, and the cause of a failed connect."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine.default import DefaultDialect

from poolkit import ConnectFailed
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import PoolkitPool


def test_the_error_of_a_failed_connect_has_a_cause_and_no_other_context() -> None:
    """Like an error of "raise ... from ...", also while the caller handles an error of its own."""

    def creator() -> None:
        raise Exception("connection failed")

    pool = PoolkitPool(creator, pool_size=1)  # type: ignore[arg-type]
    try:
        raise KeyError("the caller's")
    except KeyError:
        with pytest.raises(ConnectFailed) as caught:
            pool.connect()
    assert str(caught.value.__cause__) == "connection failed"
    assert caught.value.__suppress_context__
    pool.dispose()


@pytest.mark.parametrize("record", [None, object(), Mock()], ids=["none", "object", "mock"])
def test_a_connection_is_opened_for_a_record_that_is_not_the_pools(postgres: PostgresServer, record: object) -> None:
    """SQLAlchemy lets programs call ``pool._creator`` with any object."""
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg").replace("127.0.0.1", "localhost"), poolclass=PoolkitPool, pool_size=1
    )
    creator = engine.pool._creator  # type: ignore[attr-defined]
    creator(record).close()
    engine.dispose()


def test_a_dialect_need_not_name_its_driver() -> None:
    """Dialects of third parties and test doubles do not."""

    class Nameless(DefaultDialect):
        name = "nameless"
        supports_statement_cache = True

        @classmethod
        def import_dbapi(cls) -> Mock:
            return Mock(paramstyle="named")

    dialect = Nameless(dbapi=Mock(paramstyle="named"))
    assert not hasattr(dialect, "driver")
    pool = PoolkitPool(Mock(), pool_size=1, dialect=dialect)
    keywords = {"host": "localhost"}
    for listener in dialect.dispatch.do_connect:
        listener(dialect, None, (), keywords)
    assert keywords == {"host": "localhost"}
    pool.dispose()


def test_a_stand_in_of_an_application_for_a_driver_gets_the_calls_of_the_pool_only() -> None:
    """SQLAlchemy's own tests, and those of applications, compare all calls of a mock."""
    driver = Mock()
    pool = PoolkitPool(lambda: driver, pool_size=1)
    pool.connect().close()
    assert driver.mock_calls == [call.rollback()]
    pool.dispose()
