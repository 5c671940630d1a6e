"""From start to end: servers, four runs, tables; and the way out when somebody wants to leave earlier."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from rich.console import Console

from poolkit.cli.demo.load import Load
from poolkit.cli.demo.plan import FULL, QUICK, RUNS
from poolkit.cli.demo.record import Record
from poolkit.cli.demo.report import as_data, print_report
from poolkit.cli.demo.servers import Servers, break_things, running
from poolkit.cli.demo.show import LiveView, PlainView, view_for
from poolkit.testing.servers import ServerError

__all__ = ("run_demo",)


def run_demo(*, quick: bool, as_json: bool) -> int:
    """See :func:`poolkit.cli.demo.run`."""
    began = time.monotonic()
    plan = QUICK if quick else FULL
    console = _console(as_json)
    try:
        with _terminable(), view_for(console) as view, running(view.note) as servers:
            records = [_one_run(Record(mode, pools, plan), servers, view) for mode, pools in RUNS]
    except ServerError as error:
        console.print(f"poolkit demo: {error}", markup=False, highlight=False, style="red")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(as_data(records, plan), indent=2) + "\n")
    else:
        print_report(console, records, plan)
        console.print(f"Done in {time.monotonic() - began:.0f} s; the servers have ended, nothing is left behind.")
    return 0


def _one_run(record: Record, servers: Servers, view: PlainView | LiveView) -> Record:
    before = servers.opened()
    load, stop = Load(record, servers.sites), threading.Event()
    failures: list[BaseException] = []

    def spoil() -> None:
        try:
            break_things(servers, record, view.note, stop)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    faults = threading.Thread(target=spoil, name="poolkit-demo-faults", daemon=True)
    load.start()
    try:
        while not load.ready.wait(0.1):
            pass
        if load.failure is None:
            view.begin(record)
            faults.start()
        while not load.over.wait(0.1):
            view.tick(record)
    finally:
        stop.set()
        load.stop()
        if faults.is_alive():
            faults.join(10)  # it may be in the middle of a restart, which must not outlive the servers' end
    for error in (load.failure, *failures):
        if error is not None:
            raise error
    view.end(record)
    after = servers.opened()
    record.opened.update({server: after[server] - before[server] for server in after})
    return record


def _console(as_json: bool) -> Console:
    stream = sys.stderr if as_json else sys.stdout
    with contextlib.suppress(AttributeError, ValueError):
        # A terminal of another encoding shows a question mark rather than a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # suppressed where it has none
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a file or pipe has no edge
    return console


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the servers on the way out, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
