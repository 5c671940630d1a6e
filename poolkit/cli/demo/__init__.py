"""``poolkit demo``: one request handler on the drivers' own pools and on poolkit's, with servers that fail.

plan (what a run is) · stacks (the handler and its clients) · load (the callers) · servers (start, break, count) ·
scenes (what goes wrong with a pool) · record (what happened) · show (progress) · report (the tables)
"""

from __future__ import annotations

from importlib.util import find_spec

from poolkit.errors import MissingExtra

__all__ = ("run",)

_NEEDED = ("rich", "sqlalchemy", "greenlet", "psycopg", "redis", "httpx", "httpcore")


def run(*, quick: bool = False, as_json: bool = False) -> int:
    """Run the demo and return the exit code of the process, 0.

    Raises:
        MissingExtra: a library or a server program is not installed.
        PoolError: a server did not start or come back; the others have ended.
        KeyboardInterrupt: Ctrl-C; the servers have ended.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"the demo needs {', '.join(missing)}: pip install 'poolkit[demo]'")
    from poolkit.cli.demo._run import run_demo

    return run_demo(quick=quick, as_json=as_json)
