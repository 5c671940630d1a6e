"""One run of the demo: servers, rounds and tables, and the shutdown if it is interrupted."""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import product

from poolkit.cli.demo.load import Load
from poolkit.cli.demo.plan import FULL, MODES, POOLS, QUICK
from poolkit.cli.demo.record import Record
from poolkit.cli.demo.report import as_data, print_report
from poolkit.cli.demo.scenes import play
from poolkit.cli.demo.servers import Servers, break_things, running
from poolkit.cli.demo.show import LiveView, PlainView, view_for
from poolkit.cli.demo.stacks import import_everything
from poolkit.cli.demo.terminal import console_for, terminable
from poolkit.errors import PoolError, said
from poolkit.testing.servers import ServerError

__all__ = ("run_demo",)


def run_demo(*, quick: bool, as_json: bool) -> int:
    """See :func:`poolkit.cli.demo.run`."""
    import_everything()
    began = time.monotonic()
    plan = QUICK if quick else FULL
    console = console_for(as_json)
    records = {turn: Record(*turn, plan) for turn in product(MODES, POOLS)}
    try:
        with terminable(), view_for(console) as view, running(view.note) as servers:
            for turn in plan.turns():
                _one_round(records[turn], servers, view)
            scenes = play(servers.sites, view.note) if plan.scenes else []
    except ServerError as error:
        raise PoolError(f"the demo ended early: {said(error, 1000)}") from error
    if as_json:
        sys.stdout.write(json.dumps(as_data(list(records.values()), plan, scenes), indent=2) + "\n")
    else:
        print_report(console, list(records.values()), plan, scenes)
        console.print(f"Done in {time.monotonic() - began:.0f} s; the servers have ended and their files are removed.")
    return 0


def _one_round(record: Record, servers: Servers, view: PlainView | LiveView) -> None:
    before = servers.opened()
    load, stop = Load(record, servers.sites), threading.Event()
    failures: list[BaseException] = []

    def spoil() -> None:
        try:
            break_things(servers, load.round, view.note, stop)
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
            faults.join(10)  # wait for a restart that is running: it must end before the servers do
    for error in (load.failure, *failures):
        if error is not None:
            raise error
    view.end(record)
    after = servers.opened()
    record.opened.update({server: after[server] - before[server] for server in after})
