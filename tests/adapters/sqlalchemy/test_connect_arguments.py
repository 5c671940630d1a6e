"""What a connect adds to its arguments is not there in the next one."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.support.resolver import ANSWERS, Resolver


@pytest.mark.parametrize("recreated", [False, True])
def test_each_connect_begins_with_the_arguments_of_the_engine(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, recreated: bool
) -> None:
    """Older versions of SQLAlchemy give all connects the same ones. So a name was resolved once, for the process."""
    resolver = Resolver(monkeypatch)
    resolver.addresses = [postgres.host]
    url = postgres.sqlalchemy_url("psycopg").replace(f"@{postgres.host}:", f"@{ANSWERS}:")
    engine = create_engine(url, poolclass=PoolkitPool, connect_timeout=20)
    if recreated:
        engine.dispose()
    changed: list[bool] = []

    @event.listens_for(engine, "do_connect")
    def change(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        changed.append("application_name" in keywords)
        keywords["application_name"] = "test"

    for count in (1, 2):
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            assert driver.info.get_parameters()["connect_timeout"] == "20"
        pool: Any = engine.pool
        pool.poolkit.clear()
        assert len(resolver.asked) == count
    engine.dispose()
    assert changed == [False, False]
