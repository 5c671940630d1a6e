"""asyncpg's tests of its pool, and of what is used through a pool, on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session
from tests.conformance.suite import Suite

POOL = ("test_pool.py",)
MORE = (
    "test_listeners.py", "test_timeout.py", "test_cancellation.py", "test_prepare.py", "test_cursor.py",
    "test_transaction.py", "test_copy.py", "test_cache_invalidation.py", "test_adversity.py", "test_logging.py",
)  # fmt: skip


class Asyncpg(Suite):
    """The pool of asyncpg."""

    name = "asyncpg"
    distribution = "asyncpg"
    classes: ClassVar[Mapping[str, str]] = {"async": "poolkit_adapters.asyncpg:PoolkitPool"}

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        from poolkit.testing.servers import PostgresServer

        server = stack.enter_context(PostgresServer(max_connections=200))
        # without the driver's source beside them, which would be imported instead of what is installed
        apart = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copytree(root / "tests", apart / "tests")
        root = apart
        dsn = server.dsn
        names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "dbname"}
        files = POOL if quick else POOL + MORE
        return [
            Session(
                name="asyncpg",
                root=root,
                files=tuple(f"tests/{file}" for file in files if (root / "tests" / file).exists()),
                plugins=(),
                swap="conf_asyncpg",
                arguments=("-o", "addopts="),
                environment={variable: str(dsn[name]) for variable, name in names.items()},
            )
        ]
