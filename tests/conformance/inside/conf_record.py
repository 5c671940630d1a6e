"""pytest plugin: write down what became of each test, and end the process when one hangs.

One JSON object for each line of the file ``CONF_REPORT``. The runner starts the session again, without the
tests already done (``CONF_DONE``), when a test hung or killed the process.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import threading
import time
from typing import Any

import conf_swap
import pytest

HUNG = 70  # exit status that says so
PID = os.getpid()


class Recorder:
    """Hooks of one session."""

    def __init__(self) -> None:
        path = os.environ.get("CONF_REPORT")
        self.file = open(path, "a", buffering=1) if path else None  # noqa: SIM115 - open as long as the session
        self.limit = float(os.environ.get("CONF_LIMIT", "60"))
        self.between = os.environ.get("CONF_COLLECT") == "between"
        self.row: dict[str, Any] = {}
        self.since = 0.0
        self.before: dict[str, tuple[int, ...]] = {}
        for note in conf_swap.notes:
            self.put({"note": note})
        threading.Thread(target=self._watch, daemon=True, name="conformance-watch").start()

    def put(self, row: dict[str, Any]) -> None:
        # A forked child of a test must not write into its parent's record.
        if self.file is not None and os.getpid() == PID:
            self.file.write(json.dumps(row) + "\n")

    def _watch(self) -> None:
        while True:
            time.sleep(0.25)
            row = self.row
            if row and time.monotonic() - self.since > self.limit:
                try:
                    self.put({**row, "outcome": "failed", "why": f"hung: no end after {self.limit:g} s"})
                    self.put({"counts": conf_swap.counts})
                    faulthandler.dump_traceback(file=sys.__stderr__)
                finally:
                    os._exit(HUNG)

    # Which tests run.

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self.put({"collection": report.nodeid, "why": lines[-1] if lines else "collection error"})

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        out: list[Any] = []
        for variable, keep_named in (("CONF_DONE", False), ("CONF_ONLY", True)):
            path = os.environ.get(variable)
            if not path:
                continue
            with open(path) as file:
                names = {line.rstrip("\n") for line in file}
            kept = [item for item in items if (item.nodeid in names) == keep_named]
            out += [item for item in items if (item.nodeid in names) != keep_named]
            items[:] = kept
        if out:
            config.hook.pytest_deselected(items=out)
        if self.between:
            # What one test leaves behind must not fail whichever later test the collector happens to run in.
            gc.disable()
            gc.collect()
            gc.freeze()

    # What became of them.

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.put({"start": nodeid})
        self.before = {name: tuple(pair) for name, pair in conf_swap.counts.items()}
        self.since = time.monotonic()
        self.row = {"id": nodeid, "outcome": "passed", "why": "", "seconds": 0.0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        row = self.row
        if not row:
            return
        row["seconds"] = round(row["seconds"] + report.duration, 3)
        expected = hasattr(report, "wasxfail")
        if report.failed:
            if row["outcome"] != "failed":
                row["outcome"] = "failed"
                row["why"] = f"{report.when}: {_reason(report)}"
        elif report.skipped and row["outcome"] == "passed":
            row["outcome"] = "xfailed" if expected else "skipped"
            row["why"] = "" if expected else str(report.longrepr)[-200:]

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        row, self.row = self.row, {}
        row["used"] = [n for n, pair in conf_swap.counts.items() if tuple(pair) != self.before.get(n, (0, 0))]
        if self.between:
            row["left"] = _collect()
        self.put(row)

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        self.put({"counts": conf_swap.counts, "end": int(exitstatus)})

    def pytest_unconfigure(self, config: Any) -> None:
        gc.enable()
        _leave_threads()


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)[-400:]
    return " ".join(str(text).split())[:300]


def _collect() -> list[str]:
    """Return what a test left for the garbage collector to complain of (unclosed sockets, ...)."""
    left: list[str] = []
    hook, sys.unraisablehook = (
        sys.unraisablehook,
        lambda u: left.append(f"{u.exc_type.__name__}: {u.exc_value}"[:160]),
    )
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    return left


def _leave_threads() -> None:
    """End the process although a failed test left a thread behind that would keep it."""
    deadline = time.monotonic() + 2
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)


def pytest_configure(config: Any) -> None:
    """Register the recorder; the swap has happened by now, when its plugin was imported."""
    config.pluginmanager.register(Recorder(), "conformance-recorder")
