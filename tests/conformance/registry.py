"""The suites there are."""

from __future__ import annotations

from tests.conformance.suite import Suite
from tests.conformance.suite_asyncpg import Asyncpg
from tests.conformance.suite_http import Httpcore, Httpcore2, Httpx, Httpx2
from tests.conformance.suite_psycopg import Psycopg
from tests.conformance.suite_redis import Redis, Valkey
from tests.conformance.suite_sqlalchemy import SQLAlchemy
from tests.conformance.suite_urllib3 import Requests, Urllib3

SUITES: tuple[Suite, ...] = (
    SQLAlchemy(),
    Redis(),
    Valkey(),
    Httpcore(),
    Httpx(),
    Httpcore2(),
    Httpx2(),
    Psycopg(),
    Asyncpg(),
    Urllib3(),
    Requests(),
)
