"""``poolkit version``: the installed versions, for bug reports."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

from poolkit import __version__

__all__ = ("as_text", "versions")

_DRIVERS = (
    "sqlalchemy", "psycopg", "psycopg-pool", "asyncpg", "redis", "valkey", "httpx", "httpcore", "httpx2", "httpcore2",
    "urllib3", "requests", "trio",
)  # fmt: skip


def versions() -> dict[str, object]:
    """Return the versions by name; None for a driver that is not installed. Imports no driver."""
    return {
        "poolkit": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "drivers": {name: _installed(name) for name in _DRIVERS},
    }


def as_text(found: dict[str, object], *, as_json: bool) -> str:
    """Return ``found`` as one JSON object, or as lines."""
    if as_json:
        return json.dumps(found, indent=2)
    drivers = found["drivers"]
    assert isinstance(drivers, dict)
    lines = [f"poolkit {found['poolkit']}", f"{found['implementation']} {found['python']} on {found['platform']}"]
    return "\n".join([*lines, *(f"  {name:<13}{number or 'not installed'}" for name, number in drivers.items())])


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
