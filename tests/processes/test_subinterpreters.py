"""A subinterpreter that lets no daemon thread start: the pool works, and says once who does the threads' work."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

INSIDE = """
import logging, sys
sys.path[:] = PATH
told = []
class Note(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger("poolkit").addHandler(Note())
from poolkit import Connector, Pool
from poolkit.testing import ManualClock

class Fake(Connector):
    live, failing = 0, 2
    def connect(self, timeout):
        if Fake.failing:
            Fake.failing -= 1
            raise ConnectionRefusedError("down")
        Fake.live += 1
        return object()
    def close(self, connection):
        Fake.live -= 1

pool = Pool(Fake(), max_size=3, acquire_timeout=20.0)
held = [pool.acquire() for _ in range(3)]
for connection in held:
    pool.release(connection)
pool.check_books()
assert Fake.live == 3, Fake.live
pool.close()
assert Fake.live == 0, Fake.live

clock = ManualClock()
pool = Pool(Fake(), max_size=3, idle_timeout=10.0, max_lifetime=None, clock=clock)
pool.warm_up(3)
for _ in range(12):
    pool.release(pool.acquire())
    clock.advance(1.0)
pool.release(pool.acquire())
assert Fake.live == 1, Fake.live
pool.close()
assert len(told) == 1 and "no thread can be started" in told[0], told
print("well", flush=True)
"""

WAITS = """
from poolkit import BackoffConfig, PoolError

pool = Pool(Fake(), max_size=1, backoff=BackoffConfig(base=0.01, cap=0.05))
Fake.failing = 3
held = pool.acquire(timeout=20.0)  # retries: each failed connect is tried again by the caller that waits
assert Fake.failing == 0
began = time.monotonic()
try:
    pool.acquire(timeout=0.2)
except PoolError:
    assert time.monotonic() - began >= 0.2
else:
    raise AssertionError("two have the only connection")
Fake.failing = 10**9
pool.release(held, discard=True)
try:
    pool.acquire(timeout=0.2)
except PoolError as error:
    assert isinstance(error.__cause__, ConnectionRefusedError), error.__cause__
else:
    raise AssertionError("a connection of a server that is down")
pool.check_books()
pool.close()
assert len(told) == 1, told  # told once for all pools
print("well", flush=True)
"""

CONCURRENT = """
import os, sys
from concurrent import interpreters
inside = INSIDE.replace("PATH", repr(sys.path))
interpreters.create().exec(inside)
sys.stdout.flush()
os._exit(0)
"""

OUTSIDE = """
import os, sys
inside = INSIDE.replace("PATH", repr(sys.path))
if sys.version_info >= (3, 13):
    import _interpreters
    failed = _interpreters.exec(_interpreters.create("isolated"), inside)
    if failed is not None:
        print(failed.formatted, failed.errdisplay)
else:
    import _xxsubinterpreters
    _xxsubinterpreters.run_string(_xxsubinterpreters.create(isolated=True), inside)
sys.stdout.flush()
os._exit(0)  # the end of a subinterpreter is CPython's business, and shaky in some of its releases
"""

MODULE = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"


@pytest.mark.skipif(importlib.util.find_spec(MODULE) is None, reason="this Python has no subinterpreters")
def test_a_pool_works_where_daemon_threads_are_refused() -> None:
    run(OUTSIDE.replace("INSIDE", repr(INSIDE), 1))


@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters is new in Python 3.14")
def test_idle_timeout_retries_and_deadlines_hold_in_a_subinterpreter() -> None:
    inside = INSIDE.replace('print("well", flush=True)\n', WAITS).replace(
        "import logging, sys", "import logging, sys, time"
    )
    run(CONCURRENT.replace("INSIDE", repr(inside), 1))


def run(program: str) -> None:
    """Run a program in a process of its own; all must be well in its subinterpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.stdout == "well\n", done.stdout + done.stderr
