"""One run of the demo: servers, load, events and tables, and the shutdown if it is interrupted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from poolkit.cli.demo.cluster.load import Load
from poolkit.cli.demo.cluster.plan import Plan
from poolkit.cli.demo.cluster.report import as_data, header, line, print_report
from poolkit.cli.demo.cluster.sites import Site, make_site
from poolkit.cli.demo.terminal import console_for, terminable
from poolkit.cluster import ClusterEvent, ClusterEventKind
from poolkit.errors import PoolError, said
from poolkit.testing.servers import ServerError

__all__ = ("run_demo",)

_TOLD = (ClusterEventKind.NODE_EJECTED, ClusterEventKind.NODE_USABLE)


def run_demo(*, kinds: Sequence[str], seconds: float, as_json: bool) -> int:
    """See :func:`poolkit.cli.demo.cluster.run`."""
    plan = Plan(seconds)
    console = console_for(as_json)
    note = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    sites = [make_site(kind, plan) for kind in dict.fromkeys(kinds)]
    try:
        with terminable(), ExitStack() as stack:
            _start(sites, stack, note)
            loads = _load(sites, stack, note)
    except ServerError as error:
        raise PoolError(f"the demo ended early: {said(error, 1000)}") from error
    if as_json:
        sys.stdout.write(json.dumps(as_data(loads, plan), indent=2) + "\n")
    else:
        print_report(console, loads)
        console.print("The servers have ended and their files are removed.")
    return 0 if all(load.book.kill is not None and load.book.kill.kept for load in loads) else 1


def _start(sites: Sequence[Site], stack: ExitStack, note: Callable[[str], None]) -> None:
    """Start all servers at once; the stack ends them."""
    servers = [(site, name, server) for site in sites for name, server in site.servers.items()]
    note(f"starting {len(servers)} servers ...")
    stack.callback(_on_all, servers, lambda server: server.stop())
    _on_all(servers, lambda server: server.start())
    for site, name, server in servers:
        note(f"{site.title} {name} listens on {server.host}:{server.port}, process {server.pid}")


def _on_all(servers: Sequence[tuple[Site, str, Any]], do: Callable[[Any], object]) -> None:
    """Run it for all concurrently; return when all have ended, and raise the first error."""
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(lambda one: do(one[2]), servers))


def _load(sites: Sequence[Site], stack: ExitStack, note: Callable[[str], None]) -> list[Load]:
    began = time.monotonic()

    def now() -> float:
        return time.monotonic() - began

    def tell(site: Site, event: ClusterEvent) -> None:
        if event.kind in _TOLD:
            note(
                f"{now():5.1f} s  {site.title}: {event.kind.value.replace('node', event.node)} {event.detail}".rstrip()
            )

    for site in sites:
        stack.callback(site.close)
        site.open(partial(tell, site))
    loads = [Load(site, note, now) for site in sites]
    began = time.monotonic()
    with ExitStack() as ending:
        for load in loads:
            ending.callback(load.stop)
            load.start()
        _watch(loads, now, note)
    for load in loads:
        if load.failure is not None:
            raise load.failure
    return loads


def _watch(loads: Sequence[Load], now: Callable[[], float], note: Callable[[str], None]) -> None:
    """Print a line for each cluster and second, until all events have happened."""
    note(header())
    due = 1.0
    while not all(load.over for load in loads):
        time.sleep(0.05)
        if now() >= due:
            due += 1.0
            for load in loads:
                note(line(load.site.title, load.book.second(now(), load.site.cluster.stats())))
