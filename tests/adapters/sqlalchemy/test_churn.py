"""The log does not report uses that are correct with QueuePool."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from poolkit import _misuse
from poolkit.policies.churn import Churn
from poolkit_adapters.sqlalchemy import PoolkitPool

# since Python 3.13 sqlite3 says so when a connection is collected
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Exception ignored in. <sqlite3:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(_misuse, "_misuse", Churn())
    caplog.set_level(logging.WARNING, "poolkit.churn")
    return caplog


def engine_on(path: Any) -> Any:
    return create_engine(f"sqlite:///{path / 'a.db'}", poolclass=PoolkitPool)


def use(engine: Any) -> None:
    with engine.connect() as connection:
        connection.execute(text("select 1"))


@pytest.mark.parametrize("close", [True, False])
def test_an_engine_may_be_disposed_of_again_and_again(close: bool, tmp_path: Any, log: Any) -> None:
    """SQLAlchemy creates a new pool each time, but the application has created one."""
    engine = engine_on(tmp_path)
    for _ in range(30):
        use(engine)
        engine.dispose(close=close)
    gc.collect()
    engine_on(tmp_path).pool.poolkit.close()  # the next pool logs what finalizers have reported
    assert log.messages == []


def test_an_engine_may_be_dropped(tmp_path: Any, log: Any) -> None:
    """As with QueuePool, the driver closes its connections."""
    for _ in range(3):
        engine = engine_on(tmp_path)
        use(engine)
        del engine
        gc.collect()
    engine_on(tmp_path).pool.poolkit.close()
    assert log.messages == []


def test_engines_that_are_made_again_and_again_are_still_named(tmp_path: Any, log: Any) -> None:
    """The application should share one engine."""
    for _ in range(30):
        engine = engine_on(tmp_path)
        pools = [engine.pool]
        engine.dispose()
        for pool in (*pools, engine.pool):
            pool.poolkit.close()
    assert len(log.messages) == 1
    assert "20 pools were created at" in log.messages[0]
