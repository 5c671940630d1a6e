"""``poolkit demo cluster``: four real servers and a spare one in a cluster under load, while nodes fail and change.

plan (what happens when) · sites (the servers, their cluster and one request) · record (who served what) ·
load (callers, and the hand that breaks things) · report (lines, tables)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from poolkit.errors import MissingExtra

__all__ = ("KINDS", "run")

KINDS = {"postgres": "psycopg", "redis": "redis", "http": "httpx"}
"""The kinds of servers, and the library that each needs."""


def run(*, kinds: Sequence[str], seconds: float, as_json: bool) -> int:
    """Run the demo; the exit code is 0, or 1 if more requests were lost than were in flight on the killed node.

    Raises:
        MissingExtra: a library or a server program is not installed.
        PoolError: a server did not start or come back; the others have ended.
        KeyboardInterrupt: Ctrl-C; the servers have ended.
    """
    missing = [name for name in ("rich", *(KINDS[kind] for kind in kinds)) if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"the demo needs {', '.join(missing)}: pip install 'poolkit[demo]'")
    from poolkit.cli.demo.cluster._run import run_demo

    return run_demo(kinds=kinds, seconds=seconds, as_json=as_json)
