"""Installs the built wheel into empty environments and uses it there: ``python tests/support/installed.py dist``.

Run by ``make dist``. Alone, the wheel brings nothing else, the part of the quickstart without a driver runs, and each
adapter says what to install. With all extras, every module can be imported, the whole quickstart runs, and so does
``poolkit demo --quick``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "all,demo"
ALONE = """
import importlib.metadata, poolkit, poolkit_adapters
from poolkit import MissingExtra
found = {one.metadata["Name"] for one in importlib.metadata.distributions()} - {"pip", "setuptools"}
assert found == {"poolkit"}, found
for adapter in ("sqlalchemy", "redis", "valkey", "httpx", "httpx2", "httpcore", "httpcore2", "psycopg", "asyncpg",
                "urllib3", "requests"):
    try:
        importlib.import_module("poolkit_adapters." + adapter)
    except MissingExtra as error:
        assert "pip install" in str(error), error
    else:
        raise SystemExit("poolkit_adapters." + adapter + " was imported without its driver")
import poolkit_adapters.dbapi
"""
EVERYTHING = """
import importlib, pkgutil, sys, poolkit, poolkit_adapters
for package in (poolkit, poolkit_adapters):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        name = module.name
        old = sys.version_info < (3, 11) and any(one in name for one in ("httpx2", "httpcore2", "valkey"))
        apart = name.endswith((".__main__", ".trio_", "testing.pytest")) or ".django" in name  # need what is no extra
        if not (old or apart):
            importlib.import_module(name)
"""


def quickstart(*, driver: bool) -> str:
    """Return the program of the quickstart; with ``driver=False``, the blocks that need no driver."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    found = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in found if driver or "poolkit_adapters" not in block)


def run(*command: object, place: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=place, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:200]}\n{done.stdout}{done.stderr}")
    return done.stdout


def installed(wheel: Path, extras: str, place: Path) -> Path:
    """An environment of its own with the wheel in it; returns its folder of programs."""
    venv.create(place, with_pip=True)
    programs = place / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-input", f"{wheel}{extras}", place=place)
    run(programs / "python", "-m", "pip", "check", place=place)
    return programs


def without_dead_links(wheel: Path) -> None:
    """Check that the description has no link to a file of the repository, which a package index lacks."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    dead = re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    if dead:
        raise SystemExit(f"dead links in the description: {dead}")


def main(folder: Path) -> None:
    (wheel,) = folder.resolve().glob("*.whl")
    without_dead_links(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        alone = installed(wheel, "", Path(temporary) / "alone")
        run(alone / "python", "-c", ALONE, place=Path(temporary))
        run(alone / "python", "-c", quickstart(driver=False), place=Path(temporary))
        full = installed(wheel, f"[{EXTRAS}]", Path(temporary) / "full")
        run(full / "python", "-c", EVERYTHING, place=Path(temporary))
        run(full / "python", "-c", quickstart(driver=True), place=Path(temporary))
        run(full / "poolkit", "demo", "--quick", place=Path(temporary))
    sys.stdout.write(f"{wheel.name}: installed alone and with [{EXTRAS}], the quickstart and the demo run\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
