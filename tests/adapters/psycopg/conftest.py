"""Fixtures: both twins, and what the adapters for PostgreSQL share."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit.testing.servers import PostgresServer
from tests.support.postgres_sessions import admin, application, pytest_pyfunc_call

from .support import Twin

__all__ = ("admin", "application", "named", "pytest_pyfunc_call", "twin")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest, postgres: PostgresServer) -> Twin:
    return Twin(postgres, asynchronous=request.param)


@pytest.fixture
def named(application: str) -> dict[str, Any]:
    return {"application_name": application}
