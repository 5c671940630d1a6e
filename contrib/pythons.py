"""The tests on many Pythons: finds the interpreters, gives each an environment of its own, and runs pytest in it.

``test 3.14 3.15t -- tests/core`` looks for ``python3.14`` and ``python3.15t`` in ``--folder`` and on PATH. What of the
extra ``test`` has no wheel for an interpreter is left out and listed; its tests skip themselves by name. Interpreters
without the GIL run with ``PYTHON_GIL=0``.

``folder DIR`` makes such a folder: Debian's newest Pythons by ``debootstrap``, as root. The system's own packages stay
as they are. Debian has none without the GIL.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NAMES = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.13t", "3.14t", "3.15t"]
DEBIAN = ["3.14", "3.15"]
LOADER = {
    "x86_64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "aarch64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}


def found(name: str, folder: Path | None) -> str | None:
    """The interpreter of this name."""
    if folder is not None:
        for place in (folder / "pythons/bin", folder / "bin", folder):
            if (path := place / f"python{name}").is_file():
                return str(path)
    return shutil.which(f"python{name}")


def requirements(extra: str, tables: dict[str, list[str]], seen: set[str]) -> list[str]:
    """The requirements of an extra, with those of the extras that it refers to."""
    known: list[str] = []
    for one in tables[extra]:
        if own := re.fullmatch(r"poolkit\[([\w,]+)\]", one):
            for other in own[1].split(","):
                if other not in seen:
                    seen.add(other)
                    known += requirements(other, tables, seen)
        else:
            known.append(one)
    return known


def install(python: Path) -> list[str]:
    """The project and the extra ``test``; the requirements that cannot be installed."""
    # the newest pip: an older one may not run on a new Python, and ensurepip does not find its wheel in a folder
    place = next(python.parents[1].glob("lib/python3*/site-packages"))
    own = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    subprocess.run([*own, "--no-user", "--upgrade", "--target", str(place), "pip"], check=True)
    pip = [str(python), *own[1:], "--prefer-binary"]
    if subprocess.run([*pip, "-e", f"{HERE}[test]"], check=False, capture_output=True).returncode == 0:
        return []
    subprocess.run([*pip, "-e", str(HERE)], check=True)
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib  # type: ignore[import-not-found,no-redef]
    tables = tomllib.loads(text)["project"]["optional-dependencies"]
    missing = []
    for one in requirements("test", tables, {"test"}):
        done = subprocess.run([*pip, one], check=False, capture_output=True, text=True)
        if done.returncode:
            missing.append(one)
            print(f"  not installed: {one}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
    return missing


def test(names: list[str], folder: Path | None, into: Path, arguments: list[str]) -> int:
    """Run the tests on each interpreter that is there; 1 if any failed or none was found."""
    lines, failed = [], 0
    for name in names:
        interpreter = found(name, folder)
        if interpreter is None:
            lines.append(f"{name}: no such interpreter on PATH" + (f" or in {folder}" if folder else ""))
            continue
        home = into / name
        python = home / "bin" / "python"
        stamp = home / ".installed"
        if not stamp.exists() or stamp.stat().st_mtime < (HERE / "pyproject.toml").stat().st_mtime:
            print(f"{name}: {interpreter}: installing", flush=True)
            subprocess.run([interpreter, "-m", "venv", "--without-pip", str(home)], check=True)
            stamp.write_text("\n".join(install(python)))
        without = stamp.read_text().splitlines()
        environment = {**os.environ, "PYTHON_GIL": "0"} if name.endswith("t") else dict(os.environ)
        code = subprocess.run([python, "-m", "pytest", *arguments], cwd=HERE, env=environment, check=False).returncode
        failed += bool(code)
        verdict = f"failed ({code})" if code else "passed"
        lines.append(f"{name}: {verdict}" + (f", without {', '.join(without)}" if without else ""))
        print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return int(failed or not any(": passed" in line for line in lines))


def make_folder(folder: Path, mirror: str, suite: str) -> int:
    """Debian's Pythons in a folder, each with a wrapper in ``pythons/bin`` that runs it by the folder's own loader."""
    triple, loader = LOADER[platform.machine()]
    packages = ",".join(["ca-certificates", *(f"python{name}-{part}" for name in DEBIAN for part in ("venv", "dev"))])
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(folder), mirror]
    subprocess.run(command, check=True)
    home = folder / "pythons"
    (home / "bin").mkdir(parents=True)
    for part in ("lib", "include", "share"):
        (home / part).symlink_to(Path("..") / "usr" / part)
    run = f"{folder / 'lib64' / loader} --library-path {folder / 'usr/lib' / triple}"
    for name in DEBIAN:
        wrapper = home / "bin" / f"python{name}"
        wrapper.write_text(f'#!/bin/sh\nexec {run} --argv0 "$0" {folder / "usr/bin" / wrapper.name} "$@"\n')
        wrapper.chmod(0o755)
        print(wrapper)
    return 0


def main() -> int:
    """The command line."""
    arguments = sys.argv[1:]
    rest: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, rest = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("test", help="run the tests")
    run.add_argument("names", nargs="*", default=NAMES, help="such as 3.14 and 3.14t")
    run.add_argument("--folder", help="where to look before PATH")
    run.add_argument("--into", default=".venv-pythons", help="where the environments are kept")
    make = commands.add_parser("folder", help="make a folder with Debian's newest Pythons")
    make.add_argument("folder")
    make.add_argument("--mirror", required=True, help="the Debian mirror that the system uses")
    make.add_argument("--suite", default="sid")
    options = parser.parse_args(arguments)
    if options.command == "folder":
        return make_folder(Path(options.folder).resolve(), options.mirror, options.suite)
    folder = Path(options.folder).resolve() if options.folder else None
    return test(options.names, folder, Path(options.into).resolve(), rest)


if __name__ == "__main__":
    sys.exit(main())
