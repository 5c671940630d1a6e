"""``reconnect_timeout`` and ``reconnect_failed``: what an outage of the server tells the application."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from poolkit import BackoffConfig

from .support import Twin, within

QUICK = BackoffConfig(base=0.02, cap=0.1)


async def test_an_error_of_reconnect_failed_is_logged_and_it_is_called_again(
    twin: Twin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    told: list[Any] = []

    async def failed(pool: Any) -> None:
        told.append(pool)
        raise LookupError("nobody is on call")

    arguments = {"reconnect_timeout": 0.1, "reconnect_failed": twin.callback(failed), "backoff": QUICK}
    async with within(twin.pool("host=127.0.0.1 port=1", min_size=1, **arguments)):
        await twin.until(lambda: len(told) >= 3)
    logged = [record for record in caplog.records if "reconnect_failed" in record.message]
    assert len(logged) >= 2
    assert all(record.exc_info is not None and record.exc_info[0] is LookupError for record in logged)
    assert not escaped


async def test_reconnect_timeout_may_be_changed(twin: Twin) -> None:
    """As an attribute of the pool, which psycopg_pool reads for each series of attempts."""
    told: list[Any] = []

    async def failed(pool: Any) -> None:
        told.append(pool)

    callback = twin.callback(failed)
    pool = twin.pool("host=127.0.0.1 port=1", min_size=1, reconnect_failed=callback, backoff=QUICK)
    pool.reconnect_timeout = 0.1
    async with within(pool):
        await twin.until(lambda: len(told) >= 2)


async def test_reconnect_timeout_may_be_infinite(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    arguments = {"reconnect_timeout": math.inf, "backoff": QUICK}
    async with within(twin.pool("host=127.0.0.1 port=1", min_size=1, **arguments)) as pool:
        await twin.until(lambda: pool.get_stats().get("connections_errors", 0) >= 3)
    assert not escaped
