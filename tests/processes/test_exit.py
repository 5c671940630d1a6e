"""Pain 37: a program that ends with its pools open ends at once, silently and with status 0."""

from __future__ import annotations

import re
import sys
import time

import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.processes.exit_program import CASES
from tests.processes.programs import run

# CPython 3.14: ``datetime`` cannot be used at the very end. httpx says so of an open stream, on any transport.
_OF_HTTPX = (
    r"\AException ignored while closing generator <generator object Client\.stream at \w+>:\n"
    r"Traceback .*\n(?:  File .*/httpx/_(?:client|models)\.py.*\n)+"
    r"ImportError: sys\.meta_path is None, Python is likely shutting down\n\Z"
)


@pytest.fixture
def urls(redis_server: RedisServer, postgres: PostgresServer, http_server: HTTPServer) -> dict[str, str]:
    return {"redis": redis_server.url, "postgres": postgres.url, "http": http_server.url, "": ""}


def seconds(case: str, url: str, **more: str) -> float:
    """How long the program runs as a whole; whatever it says on stderr fails the test."""
    began = time.monotonic()
    _, complaints = run("-m", "tests.processes.exit_program", case, url, **more)
    spent = time.monotonic() - began
    if case == "httpx" and sys.version_info[:2] == (3, 14):
        complaints = re.sub(_OF_HTTPX, "", complaints)
    assert complaints == ""
    return spent


def quickest(case: str, url: str, **more: str) -> float:
    return min(seconds(case, url, **more) for _ in range(2))


@pytest.mark.timeout(90)
@pytest.mark.parametrize("case", CASES)
def test_the_end_of_the_interpreter_waits_for_no_pool(case: str, urls: dict[str, str]) -> None:
    """Compared with the same program that leaves by os._exit(): the end itself may take half a second, or half of the
    program's own time on a machine that takes long for everything.

    The difference of two runs on a busy machine is noise of its own: only if it stays large in six tries, which
    a pool that waits for a timeout would do every time, the test fails.
    """
    if case == "httpx" and sys.version_info[:3] == (3, 13, 0):
        pytest.skip("CPython 3.13.0 itself crashes at its end beside an open stream of httpx's, on any transport")
    url = urls[CASES[case][1]]
    differences = []
    for _ in range(6):
        base = quickest(case, url, POOLKIT_SKIP="1")
        differences.append(quickest(case, url) - base)
        if differences[-1] < max(0.5, 0.5 * base):
            return
    raise AssertionError(f"the end takes {min(differences):.2f} s")
