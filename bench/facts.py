"""Facts of the machine and the versions: what a reader needs to judge the numbers. No names, no paths."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

__all__ = ("facts",)

_DISTRIBUTIONS = (
    "poolkit", "SQLAlchemy", "psycopg", "psycopg-pool", "asyncpg", "redis", "valkey", "httpx", "httpcore", "httpx2",
    "aiohttp", "DBUtils",
)  # fmt: skip


def facts() -> dict[str, str]:
    """Return what was measured on, as name and value."""
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "threading": "free-threaded" if free_threaded else "GIL",
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
