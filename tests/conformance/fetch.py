"""Get the drivers' test suites: their source distributions, through pip, into a cache that git ignores."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
from pathlib import Path

__all__ = ("NoSuite", "fetch", "installed")


class NoSuite(Exception):
    """The suite of a driver cannot be had here; the text says why and what to do."""


def installed(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def fetch(distribution: str, tests: str, cache: Path, source: Path | None) -> Path:
    """Return the directory that holds the driver's test directory ``tests``, of the version installed.

    Args:
        distribution: the driver's name for pip.
        tests: name of the test directory inside the source distribution.
        cache: where to keep what pip brought.
        source: a directory given by the user, which wins.

    Raises:
        NoSuite: the driver is not installed, or its suite cannot be had.
    """
    version = installed(distribution)
    if version is None:
        raise NoSuite(f"{distribution} is not installed")
    if source is not None:
        for root in (source, source.parent if source.name == tests else source / tests):
            if (root / tests).is_dir():
                return root.resolve()
        raise NoSuite(f"{source} holds no directory {tests!r}")
    root = cache / "src" / f"{distribution}-{version}"
    if not root.is_dir():
        _download(distribution, version, cache, root)
    if not (root / tests).is_dir():
        raise NoSuite(
            f"the source distribution of {distribution} {version} holds no {tests!r}: check out the driver's"
            f" repository at that version and give it with --source"
        )
    return root


def _download(distribution: str, version: str, cache: Path, root: Path) -> None:
    target = cache / "dl"
    target.mkdir(parents=True, exist_ok=True)
    # --no-binary for this one alone: pip asks the build backend for metadata, and may take that as a wheel.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", distribution, "--dest", str(target), f"{distribution}=={version}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    archives = [
        path
        for path in target.glob("*.tar.gz")
        if path.name.lower().replace("-", "_").startswith(f"{distribution.lower().replace('-', '_')}_{version}")
    ]
    if answer.returncode or not archives:
        last = (answer.stderr.strip().splitlines() or ["no source distribution"])[-1]
        raise NoSuite(f"pip could not download {distribution}=={version} as a source distribution: {last}")
    unpacked = root.with_name(f".{root.name}")
    with tarfile.open(archives[0]) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(unpacked, filter="data")
        else:
            archive.extractall(unpacked)
    (inner,) = [path for path in unpacked.iterdir() if path.is_dir()]
    inner.rename(root)
    unpacked.rmdir()
