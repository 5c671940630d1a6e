"""``poolkit top``: the pools of running services in a terminal.

_frame (a snapshot as a picture) · _keys (whether q was pressed)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from poolkit import MissingExtra, PoolError
from poolkit.cli._dashboard import attached

if TYPE_CHECKING:
    from poolkit.dashboard._remote import Everybody

__all__ = ("run",)


def run(targets: Sequence[str], *, interval: float, once: bool, as_json: bool) -> int:
    """Update every ``interval`` seconds until q or Ctrl-C; return 0. Later errors are shown and retried.

    Raises ConfigError for an invalid target, PoolError if a target does not answer at first, MissingExtra without rich.
    """
    source = attached(targets)
    if as_json:
        return _lines(source, interval, once)
    try:
        from rich.console import Console
    except ImportError:
        raise MissingExtra("poolkit top needs rich: pip install 'poolkit[cli]'") from None
    from poolkit.cli.top._frame import frame

    console = Console()
    if once:
        console.print(frame(source.state()))
        return 0
    if not console.is_terminal:
        raise click.UsageError("the output is not a terminal: use --once or --json")
    return _watch(source, interval, console)


def _lines(source: Everybody, interval: float, once: bool) -> int:
    try:
        while True:
            click.echo(json.dumps(source.state()))
            sys.stdout.flush()
            if once:
                return 0
            time.sleep(interval)
    except KeyboardInterrupt:  # the normal way to stop it
        return 0


def _watch(source: Everybody, interval: float, console: Any) -> int:
    from rich.live import Live

    from poolkit.cli.top._frame import frame, note
    from poolkit.cli.top._keys import Keys

    last = note("asking")
    try:
        with Keys() as keys, Live(last, console=console, screen=True, auto_refresh=False) as live:
            quits = False
            while True:
                if quits:
                    return 0
                try:
                    last = frame(source.state(), height=console.size.height)
                    live.update(last, refresh=True)
                except PoolError as error:
                    live.update(note(f"{error}; trying again"), refresh=True)
                quits = keys.quit_within(interval)
    except KeyboardInterrupt:  # the same as q
        return 0
