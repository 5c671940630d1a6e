"""Writes the tables of errors into ``docs/adapters/*.md`` from the tables of the adapters (``ERRORS``).

``python docs/make_error_tables.py`` writes, ``--check`` only says whether the pages agree (exit code 1 if not).
"""

from __future__ import annotations

import importlib
import importlib.util
import sqlite3
import sys
from pathlib import Path

import asyncpg
import httpcore
import httpx
import psycopg
import psycopg_pool
import redis
from marked import keep
from sqlalchemy import exc

import poolkit
import poolkit.cluster
from poolkit_adapters._errors import Table
from poolkit_adapters.asyncpg._errors import ERRORS as ASYNCPG
from poolkit_adapters.dbapi._errors import errors_of
from poolkit_adapters.httpcore._errors import ERRORS as HTTPCORE
from poolkit_adapters.httpx._cluster import CLUSTER_ERRORS as HTTPX
from poolkit_adapters.psycopg._cluster import CLUSTER_ERRORS as PSYCOPG
from poolkit_adapters.redis._group import CLUSTER_ERRORS as REDIS
from poolkit_adapters.sqlalchemy._cluster import CLUSTER_ERRORS as SQLALCHEMY

URLLIB3 = importlib.util.find_spec("urllib3") is not None and importlib.util.find_spec("requests") is not None
try:
    import valkey

    from poolkit_adapters.valkey._group import CLUSTER_ERRORS as VALKEY
except ImportError:  # the page is left as it is
    valkey = None

PAGES = Path(__file__).resolve().parent / "adapters"
PUBLIC = {
    "poolkit": poolkit, "poolkit.cluster": poolkit.cluster, "httpx": httpx, "httpcore": httpcore, "redis": redis,
    "psycopg_pool": psycopg_pool, "psycopg": psycopg, "sqlalchemy.exc": exc, "module": sqlite3,
    "asyncpg": asyncpg,
}  # fmt: skip
if valkey is not None:
    PUBLIC |= {"valkey": valkey, "valkey.exceptions": valkey.exceptions}


if URLLIB3:
    for driver in ("urllib3.exceptions", "requests.exceptions"):
        PUBLIC[driver] = importlib.import_module(driver)


def name(kind: type) -> str:
    """As users import it."""
    for module, place in PUBLIC.items():
        if getattr(place, kind.__name__, None) is kind:
            return f"`{module}.{kind.__name__}`"
    return f"`{kind.__name__}`"


def table(errors: Table) -> str:
    """A table in Markdown; a class of an adapter has no module, because each adapter exports its own."""
    lines = ["| what happened | raised | caught as |", "| --- | --- | --- |"]
    for row in errors:
        bases = ", ".join(name(base) for base in row.bases)
        lines.append(f"| {row.what} | {name(row.error)} | {bases} |")
    return "\n".join(lines)


def generated() -> dict[str, str]:
    """The text for each page."""
    found = {
        "httpx": f"{table(HTTPX)}\n\nFor users of httpcore itself (`poolkit_adapters.httpcore`):\n\n{table(HTTPCORE)}",
        "redis": table(REDIS),
        **({} if valkey is None else {"valkey": table(VALKEY)}),
        "psycopg": table(PSYCOPG),
        "asyncpg": table(ASYNCPG),
        "sqlalchemy": table(SQLALCHEMY),
        "dbapi": table(errors_of(sqlite3)),
    }
    if URLLIB3:
        own, theirs = (importlib.import_module(f"poolkit_adapters.{one}._errors") for one in ("urllib3", "requests"))
        found["urllib3"] = f"{table(own.ERRORS)}\n\nWith requests:\n\n{table(theirs.ERRORS)}"
    return found


if __name__ == "__main__":
    codes = [keep(PAGES / f"{page}.md", __file__, text, sys.argv[1:]) for page, text in generated().items()]
    sys.exit(max(codes))
