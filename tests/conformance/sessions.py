"""One pytest session of a driver's suite, in processes of its own, and what became of its tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parent / "inside"
PROJECT = Path(__file__).parents[2]
HUNG = 70  # exit status of inside/conf_record.py when it gave a test up
RESTARTS = 40


@dataclass(frozen=True)
class Session:
    """What to run: some files of one suite, with one set-up."""

    name: str
    root: Path  # pytest's rootdir and the first entry of sys.path
    files: tuple[str, ...]
    plugins: tuple[str, ...]  # besides the swap and the recorder; nothing is loaded by itself
    swap: str  # module in inside/ that puts the classes in place
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None
    own_directory: bool = False  # run in an empty directory, for tests that write where they stand
    roles: tuple[str, ...] | None = None  # the classes that this session wants; None: all
    test_limit: float = 60.0
    total_limit: float = 900.0


@dataclass
class Outcome:
    """What a session did, by test."""

    session: Session
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    log: Path | None = None

    def outcome(self, test: str) -> str:
        """Return passed, failed, skipped, xfailed, or absent."""
        row = self.results.get(test)
        return str(row["outcome"]) if row else "absent"


class _Reader:
    """Adds up the record files of a session's processes."""

    def __init__(self, outcome: Outcome, same_id: Callable[[str], str]) -> None:
        self.outcome = outcome
        self.same_id = same_id
        self.done: list[str] = []  # ids as pytest spells them
        self.restarts = 0

    def read(self, report: Path) -> tuple[bool, str | None]:
        """Take in one process's record; return whether it came to its end, and the test it died in."""
        ended, running = False, None
        counts: dict[str, list[int]] = {}
        for line in report.read_text().splitlines() if report.exists() else ():
            row = json.loads(line)
            if "start" in row:
                running = row["start"]
            elif "note" in row:
                if row["note"] not in self.outcome.notes:
                    self.outcome.notes.append(row["note"])
            elif "collection" in row:
                self.outcome.notes.append(f"collection of {row['collection']} failed: {row['why']}")
            elif "counts" in row:
                counts, ended = row["counts"], "end" in row
            else:
                running = None
                self.take(row)
        for name, (made, used) in counts.items():
            total = self.outcome.counts.setdefault(name, [0, 0])
            total[0] += made
            total[1] += used
        return ended, running

    def take(self, row: dict[str, Any]) -> None:
        self.done.append(row["id"])
        self.outcome.results[self.same_id(row["id"])] = row


_live: set[subprocess.Popen[bytes]] = set()
_live_lock = threading.Lock()


def stop_all() -> None:
    """Kill the sessions that are running; for the end of an interrupted run."""
    with _live_lock:
        for process in _live:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(
    session: Session,
    classes: Mapping[str, str],
    directory: Path,
    only: list[str] | None = None,
    extra: str = "",
    same_id: Callable[[str], str] = str,
) -> Outcome:
    """Run a session, again without what is done when a test hangs or takes the process with it.

    Args:
        session: what to run.
        classes: the classes under test by role; empty leaves the driver's own.
        directory: where records and logs go; emptied first.
        only: nothing but these tests, named as pytest names them.
        extra: an expression for pytest's ``-k``.
        same_id: gives one spelling of a test's name, whatever the classes are called.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    outcome = Outcome(session, log=directory / "log.txt")
    reader = _Reader(outcome, same_id)
    began = time.monotonic()
    while True:
        report = directory / f"record-{reader.restarts}.jsonl"
        environment = _environment(session, classes, report)
        if reader.done:
            environment["CONF_DONE"] = _list(directory / "done.txt", reader.done)
        if only is not None:
            environment["CONF_ONLY"] = _list(directory / "only.txt", only)
        left = session.total_limit - (time.monotonic() - began)
        status = _process(session, environment, directory, extra, max(left, 1.0))
        ended, running = reader.read(report)
        if status is None:
            outcome.notes.append(f"stopped after {session.total_limit:g} s; what had not run counts as failed")
            break
        if ended or (status != HUNG and running is None):
            if not ended:
                outcome.notes.append(f"pytest ended with status {status} before its session did: see {outcome.log}")
            break
        if status != HUNG and running is not None:
            why = f"the process ended with status {status} in this test"
            reader.take({"id": running, "outcome": "failed", "why": why, "seconds": 0.0, "used": []})
        reader.restarts += 1
        if reader.restarts >= RESTARTS:
            outcome.notes.append(f"gave up after {RESTARTS} restarts; what had not run counts as failed")
            break
    outcome.seconds = time.monotonic() - began
    return outcome


def _list(path: Path, names: list[str]) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def _environment(session: Session, classes: Mapping[str, str], report: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    path = [str(session.root), str(INSIDE), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    environment.update(
        PYTHONPATH=os.pathsep.join(p for p in path if p),
        PYTHONDONTWRITEBYTECODE="1",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        PYTHONFAULTHANDLER="1",
        CONF_CLASSES=json.dumps(dict(classes)),
        CONF_REPORT=str(report),
        CONF_LIMIT=str(session.test_limit),
        CONF_TESTS=str(session.root),
    )
    environment.update(session.environment)
    return environment


def _process(session: Session, environment: dict[str, str], directory: Path, extra: str, limit: float) -> int | None:
    command = [sys.executable, "-m", "pytest", "-p", session.swap, "-p", "conf_record"]
    for plugin in session.plugins:
        command += ["-p", plugin]
    cache = directory / "cache"  # psycopg's conftest.py notes there that it runs, and refuses to run after a crash
    shutil.rmtree(cache, ignore_errors=True)
    command += ["-o", f"cache_dir={cache}", "-q", "--tb=short", "-rN", "--continue-on-collection-errors"]
    command += ["--rootdir", str(session.root)]
    if session.config is not None:
        command += ["-c", str(session.config)]
    if extra:
        command += ["-k", extra]
    command += [*session.arguments, *(str(session.root / file) for file in session.files)]
    where = directory / "cwd" if session.own_directory else session.root
    where.mkdir(exist_ok=True)
    with open(directory / "log.txt", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=where,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _live_lock:
            _live.add(process)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process)  # also what a test forked and left behind
            process.wait()
            with _live_lock:
                _live.discard(process)
