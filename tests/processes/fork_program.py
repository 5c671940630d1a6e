"""A program that forks with idle, leased and connecting connections and with the pool's lock held by a thread.

``python -m tests.processes.fork_program KIND URL WAY``. It says on stdout how far it is and waits for a line on
stdin before each step, so that the test can look at the wire meanwhile.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

import poolkit
from tests.processes.subjects import Held, make

DETACHED = ("engine", "psycopg", "dbapi", "sqlalchemy", "redis")
"""Kinds whose connects run beside their callers."""


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def child(subject: Any, held: Held, way: str, pipe: int) -> None:
    """Use the pool, leave the parent's lease alone or put it away, and end in the way asked for."""
    ids = [subject.use(), subject.use()]
    kept: Any = held
    if way == "put-away":
        try:
            held.put_away()
        except Exception:
            traceback.print_exc()
    elif way == "collect":
        held.ask = held.end = held.put_away = lambda: ""  # the last references to the lease
        del kept
        gc.collect()
    elif way == "close":
        subject.close()
    os.write(pipe, json.dumps({"ids": ids}).encode())
    os.close(pipe)
    if way == "os._exit":
        os._exit(0)
    sys.exit(0)


def main() -> None:
    kind, url, way = sys.argv[1:]
    subject = make(kind, url)
    held = subject.hold()
    leases = [subject.hold() for _ in range(2)]
    mine = {"leased": held.ask(), "idle": sorted(lease.ask() for lease in leases)}
    say(step="leased")  # the test holds up new connects from now on

    late: list[str] = []
    connector = threading.Thread(target=lambda: late.append(subject.use()))
    connector.start()
    say(step="connecting")  # the test goes on when it has seen that connect
    [pool] = poolkit.pools()
    while kind not in DETACHED and pool.stats().waiting:
        time.sleep(0.005)  # this caller is to have its own connection, not one that comes back
    for lease in leases:
        lease.end()
    if kind in DETACHED:
        connector.join(30)  # served by what came back; the connect that it caused goes on
    while kind == "redis" and pool.stats().connecting:
        time.sleep(0.005)  # what a handshake sends after the fork would count as the child's
    locked, unlock = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with pool._gate.lock:
            locked.set()
            unlock.wait(60)

    threading.Thread(target=hold_the_lock, daemon=True).start()
    locked.wait(30)
    del leases[:]
    say(step="fork")  # the test notes what every connection has sent so far

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(subject, held, way, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    answer = json.loads(text) if text else None
    say(step="forked", child=answer, status=status, mine=mine)  # the test compares, and lets the connect go on
    unlock.set()

    connector.join(30)
    again = held.ask()
    held.end()
    others = [subject.hold() for _ in range(4)]
    numbers = [other.ask() for other in others]
    for other in others:
        other.end()
    invariants = "hold"
    if pool.stats().waiting or pool.stats().in_use:
        invariants = repr(pool.stats())
    subject.close()
    say(step="done", leased=again, late=late, others=numbers, invariants=invariants)


if __name__ == "__main__":
    main()
