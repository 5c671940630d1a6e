"""The suites there are."""

from __future__ import annotations

from tests.conformance.suite import Suite
from tests.conformance.suite_http import Httpcore, Httpx
from tests.conformance.suite_psycopg import Psycopg
from tests.conformance.suite_redis import Redis
from tests.conformance.suite_sqlalchemy import SQLAlchemy

SUITES: tuple[Suite, ...] = (SQLAlchemy(), Redis(), Httpcore(), Httpx(), Psycopg())
