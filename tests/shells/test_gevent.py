"""gevent replaces Python's primitives, perhaps after poolkit was imported. Pools still work.

Each program runs in a process of its own, because gevent's patches cannot be undone.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")

PATCH = "from gevent import monkey; monkey.patch_all(); import gevent"

BEFORE = """
import time
from poolkit import Connector, Pool

class Fake(Connector):
    live = 0
    def connect(self, timeout):
        time.sleep(0.01)
        Fake.live += 1
        return object()
    def close(self, connection):
        time.sleep(0.01)
        Fake.live -= 1
"""

MAKE = "pool = Pool(Fake(), max_size=2, acquire_timeout=20.0, idle_timeout=0.3)"

WORK = """
served = []

def work(number):
    for _ in range(10):
        with pool.lease():
            time.sleep(0.001)
    served.append(number)

gevent.joinall([gevent.spawn(work, number) for number in range(10)], timeout=60)
assert sorted(served) == list(range(10)), served
pool.check_books()
deadline = time.monotonic() + 20
while Fake.live and time.monotonic() < deadline:
    time.sleep(0.01)
assert not Fake.live, "idle connections are not closed: no housekeeping"
pool.release(pool.acquire())
pool.close(20.0)
assert not Fake.live
print("well")
"""


def run(*parts: str) -> None:
    program = "\n".join(parts)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n", done.stdout + done.stderr
    ours = [line for line in done.stderr.splitlines() if "poolkit/" in line or "poolkit:" in line]
    assert not ours, done.stderr  # gevent breaks the end of threads that began before, and Python reports that


def test_patched_before_the_import() -> None:
    run(PATCH, BEFORE, MAKE, WORK)


def test_patched_after_the_import() -> None:
    run(BEFORE, PATCH, MAKE, WORK)


def test_patched_after_the_import_of_an_adapter() -> None:
    run("import poolkit_adapters.dbapi", BEFORE, PATCH, MAKE, WORK)


def test_patched_after_a_pool_was_made() -> None:
    run(BEFORE, MAKE, PATCH, WORK)


def test_patched_after_a_pool_was_used() -> None:
    """The pool's threads are real ones, which leave their work to new ones."""
    run(BEFORE, MAKE, "pool.release(pool.acquire())", PATCH, WORK)
