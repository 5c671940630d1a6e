"""What a system may lack, and which tests need it. Those are skipped there; poolkit's own code has a guard.

Tests with a condition of their own (``skipif(not hasattr(os, "fork"))``) are not listed.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

import pytest

__all__ = ("LACKS", "NEEDS", "needs_of", "skip_what_is_lacking")

LACKS: dict[str, Callable[[], bool]] = {
    "fork": lambda: not hasattr(os, "fork"),
    "poll": lambda: not hasattr(select, "poll"),
    "Unix sockets": lambda: not hasattr(socket, "AF_UNIX"),
    "POSIX signals": lambda: not hasattr(signal, "pthread_kill"),
    "POSIX file locks": lambda: importlib.util.find_spec("fcntl") is None,
    "PostgreSQL and Redis for this system": lambda: sys.platform == "win32",
    "/proc": lambda: sys.platform != "linux",
}
"""Each requirement of tests, and whether this system lacks it."""

NEEDS: dict[str, str] = {
    "tests/adapters/dbapi/test_postgres.py::test_11_a_forked_child_begins_empty_and_harms_nothing": "fork",
    "tests/adapters/httpx/test_liveness.py::test_11_fork": "fork",
    "tests/adapters/httpx/test_replays.py::test_http_2_a_post_is_not_lost_to_a_connection_that_the_server_had_closed":
        "poll",
    "tests/adapters/httpx/test_strangers.py": "poll",
    "tests/adapters/httpx/test_ways.py::test_unix_socket": "Unix sockets",
    "tests/adapters/psycopg/test_sessions.py::test_a_forked_child_may_drop_its_parents_connection": "fork",
    "tests/adapters/psycopg/test_weak_points.py::test_04_a_keyboard_interrupt_while_waiting_loses_no_connection":
        "POSIX signals",
    "tests/adapters/psycopg/test_weak_points.py::test_06_a_forked_child_has_backends_of_its_own_and_harms_nothing":
        "fork",
    "tests/adapters/redis/test_clean.py": "poll",
    "tests/adapters/redis/test_detached_connects.py": "poll",
    "tests/adapters/redis/test_interrupted_connects.py": "poll",
    "tests/adapters/redis/test_shared.py": "poll",
    "tests/adapters/urllib3/test_complaints.py": "fork",
    "tests/dashboard/test_many_readers.py": "Unix sockets",
    "tests/fleet/test_files_lost.py": "POSIX file locks",
    "tests/fleet/test_fleet.py": "POSIX file locks",
    "tests/fleet/test_stores.py": "POSIX file locks",
    "tests/fleet/test_stores_silent.py": "POSIX file locks",
    "tests/fleet/test_threads.py": "POSIX file locks",
    "tests/guarantees/test_guarantees.py": "fork",
    "tests/test_demo.py": "PostgreSQL and Redis for this system",
    "tests/test_demo_cluster.py": "PostgreSQL and Redis for this system",
    "tests/test_servers.py": "PostgreSQL and Redis for this system",
    "tests/processes/test_exit.py": "fork",
}  # fmt: skip
"""By file, or by file and test."""

SERVERS = {"postgres", "redis_server", "redis_cluster", "redis_sentinel"}
"""The fixtures that start real servers."""


def needs_of(file: str, test: str, fixtures: set[str]) -> set[str]:
    """Return the requirements of a test."""
    found = {NEEDS.get(file), NEEDS.get(f"{file}::{test}")}
    if fixtures & SERVERS:
        found.add("PostgreSQL and Redis for this system")
    return {need for need in found if need is not None}


def skip_what_is_lacking(items: list[pytest.Item]) -> None:
    """Mark the tests that cannot run here."""
    lacking = {need for need, lacks in LACKS.items() if lacks()}
    for item in items:
        name = getattr(item, "originalname", None) or item.name
        file = item.nodeid.partition("::")[0]
        for need in needs_of(file, name, set(getattr(item, "fixturenames", ()))) & lacking:
            item.add_marker(pytest.mark.skip(reason=f"this system lacks: {need}"))
