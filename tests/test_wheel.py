"""What a user installs: the engine, the adapters, the command and the test kit, and nothing that only we run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("poolkit", "poolkit_adapters")
IN_POOLKIT = {
    "_core", "cli", "cluster", "dashboard", "fleet", "frameworks", "policies", "runtimes", "telemetry", "testing",
}  # fmt: skip
IN_TESTING = {"__init__.py", "clock.py", "connectors.py", "pytest.py", "servers"}
NOT_CODE = {".typed", ".js", ".css", ".html", ".svg", ".json", ".yml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    with ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)
    files = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    code = {path for path in files if path.suffix == ".py"}
    assert {path.suffix for path in files - code if path.parts[0] in PACKAGES} <= NOT_CODE
    in_the_tree = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert code == in_the_tree


def test_a_new_part_of_the_package_is_one_that_users_run() -> None:
    """Who adds one names it here; benchmarks are in ``bench``, simulations in ``tests/simulation``."""
    assert {path.parent.name for path in (ROOT / "poolkit").glob("*/__init__.py")} == IN_POOLKIT
    assert {path.name for path in (ROOT / "poolkit" / "testing").iterdir()} - {"__pycache__"} == IN_TESTING


def test_nothing_in_the_package_imports_what_is_only_in_a_checkout() -> None:
    for path in [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in names} & {"bench", "tests"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("top", "--help"), ("doctor", "--json")])
def test_the_command_runs_without_the_repository(wheel: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    program = (
        "import sys, poolkit, poolkit_adapters; from poolkit.cli import main; "
        f"assert poolkit.__file__.startswith({str(wheel)!r}), poolkit.__file__; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
