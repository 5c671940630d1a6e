"""psycopg's tests of its pool, on a real PostgreSQL.

No source distribution on the registry holds them: check out the driver's repository at the pool's version and
give the directory with ``--source psycopg=DIR``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session
from tests.conformance.suite import Suite

# Not here: test_sched*.py, which test the scheduler of the stock pool and no pool.
SYNC = ("test_pool.py", "test_pool_common.py", "test_pool_null.py", "test_null_pool.py")
ASYNC = (
    "test_pool_async.py",
    "test_pool_common_async.py",
    "test_pool_async_noasyncio.py",
    "test_pool_null_async.py",
    "test_null_pool_async.py",
)
NULL = re.compile(r"null", re.IGNORECASE)


class Psycopg(Suite):
    """Pools of psycopg_pool; the tests of null pools are judged only if a null pool is given."""

    name = "psycopg"
    distribution = "psycopg-pool"
    classes: ClassVar[Mapping[str, str]] = {
        "sync": "poolkit_adapters.psycopg:PoolkitConnectionPool",
        "async": "poolkit_adapters.psycopg:AsyncPoolkitConnectionPool",
        "null-sync": "poolkit_adapters.psycopg:PoolkitNullConnectionPool",
        "null-async": "poolkit_adapters.psycopg:AsyncPoolkitNullConnectionPool",
    }
    optional = ("null-sync", "null-async")
    needs = ("anyio",)

    def apart(self, test: str, roles: Mapping[str, str]) -> str | None:
        role = "null-async" if "async" in test.split("::")[0] else "null-sync"
        if role not in roles and NULL.search(test):
            return "null pools (stock)"
        return None

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        return [
            self._session("sync", root, SYNC, quick, stack),
            self._session("async", root, ASYNC, quick, stack),
        ]

    def _session(
        self, name: str, root: Path, files: tuple[str, ...], quick: bool, stack: contextlib.ExitStack
    ) -> Session:
        # Imported here: the other suites do not need what the server's module needs.
        from poolkit.testing.servers import PostgresServer

        server = stack.enter_context(PostgresServer())
        dsn = " ".join(f"{key}={value}" for key, value in server.dsn.items())
        present = [f"tests/pool/{file}" for file in files if (root / "tests/pool" / file).exists()]
        return Session(
            name=name,
            root=root,
            files=tuple(present),
            plugins=("anyio.pytest_plugin",),
            swap="conf_psycopg",
            arguments=(f"--test-dsn={dsn}", *(("-m", "not slow") if quick else ())),
            roles=(name, f"null-{name}"),
        )
