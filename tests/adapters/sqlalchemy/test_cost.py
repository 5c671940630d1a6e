"""The cost of a checkout compared with QueuePool's, and the duties that it must not skip."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from poolkit_adapters.sqlalchemy import _fairy as fairy
from tests.adapters.sqlalchemy.conftest import FakeDriver, since
from tests.support.instructions import instructions


@pytest.mark.parametrize(
    ("theirs", "ours", "bound"),
    [(QueuePool, PoolkitPool, 0.83), (AsyncAdaptedQueuePool, AsyncPoolkitPool, 0.94)],
    ids=["sync", "async"],
)
def test_29_a_checkout_costs_less_than_with_queuepool(theirs: Any, ours: Any, bound: float, fake: FakeDriver) -> None:
    """In bytecodes, which do not depend on the load of the machine. The shares are largest with SQLAlchemy 2.0."""

    def cost(pool: Any) -> float:
        return instructions(lambda: pool.connect().close())

    assert cost(ours(fake, check_after_idle=1.0)) / cost(theirs(fake)) < bound


def test_nothing_is_remembered_of_connections_that_came_back(fake: FakeDriver) -> None:
    """Closed, detached, invalidated or dropped: no reference stays."""
    pool = PoolkitPool(fake, pool_size=2)
    before = len(fairy._checkout_refs)
    pool.connect().close()
    detached = pool.connect()
    detached.detach()
    broken = pool.connect()
    broken.invalidate()
    dropped = pool.connect()
    assert len(fairy._checkout_refs) == before + 1
    del dropped
    gc.collect()
    assert len(fairy._checkout_refs) == before
    assert pool.checkedout() == 0
    detached.close()
    pool.dispose()


def test_a_reset_that_fails_is_logged_once_and_its_connection_replaced(
    fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """In SQLAlchemy's own words; the next user gets another connection."""
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0)
    connection = pool.connect()
    first = connection.dbapi_connection
    calls: list[int] = []

    def rollback() -> None:
        calls.append(1)
        raise OSError("gone")

    first.rollback = rollback  # type: ignore[union-attr, method-assign]
    with caplog.at_level(logging.ERROR, "sqlalchemy.pool"):
        connection.close()
    assert [record.getMessage() for record in caplog.records] == ["Exception during reset or similar"]
    assert calls == [1]
    again = pool.connect()
    assert again.dbapi_connection is not first
    again.close()


@since[2, 0, 58]  # the first 2.0 leave the record to the collection of the fairy, as under QueuePool
def test_an_interrupt_in_the_reset_is_raised_and_the_place_comes_back(fake: FakeDriver) -> None:
    """As with QueuePool, the state of the connection is unknown, so it is aborted."""
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0)
    connection = pool.connect()
    first = connection.dbapi_connection

    def rollback() -> None:
        raise KeyboardInterrupt

    first.rollback = rollback  # type: ignore[union-attr, method-assign]
    with pytest.raises(KeyboardInterrupt):
        connection.close()
    del connection
    gc.collect()
    again = pool.connect()
    assert again.dbapi_connection is not first
    again.close()
    assert pool.checkedout() == 0


def test_listeners_that_come_late_are_heard(fake: FakeDriver) -> None:
    """Listeners for checkout, reset and checkin are called from then on, also for connections in use."""
    pool = PoolkitPool(fake, pool_size=1)
    pool.connect().close()
    connection = pool.connect()
    heard: list[str] = []
    for name in ("checkout", "reset", "checkin"):
        event.listen(pool, name, lambda *_, name=name: heard.append(name))
    connection.close()
    pool.connect().close()
    assert heard == ["reset", "checkin", "checkout", "reset", "checkin"]
