"""``python -m tests.mutants [number ...]``: plant each fault in a copy and see that the tests notice.

First the simulations with fixed seeds, then the tests that the mutant names. Exit status 1 if one survives, 2 if
the list no longer fits the code or the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from . import LIST, ROOT, Mutant, Stale, load, plant

SIMULATION = ["-m", "tests.simulation", "--seed", "1", "--steps", "40000", "--pools", "120"]
PYTEST = ["-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "-W", "ignore"]
PARTS = ("poolkit", "poolkit_adapters", "bench", "tests", "pyproject.toml")


class Copy:
    """A copy of the package and its tests, in which faults are planted one after the other."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "conformance"))
            else:
                shutil.copy2(source, folder / part)
        where = self.run(["-c", "import poolkit; print(poolkit.__file__)"])[1]
        if not where.startswith(str(folder)):
            raise SystemExit(f"the copy does not import itself but {where}")

    def run(self, arguments: list[str]) -> tuple[int | None, str]:
        """Exit status (None: not done in time) and output of this Python with the copy."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "POOLKIT_SEED": "1",
        }  # fmt: skip
        with tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            try:
                status: int | None = child.wait(self.limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                try:
                    os.killpg(child.pid, signal.SIGKILL)  # a broken engine may leave children behind
                except ProcessLookupError:
                    pass
                child.wait()
            output.seek(0)
            return status, output.read()

    def steps(self, mutant: Mutant) -> list[tuple[str, list[str]]]:
        """What is run for a mutant, by name."""
        pytest = [*PYTEST, *mutant.tests]
        return [("simulation", SIMULATION), *([("tests", pytest)] if mutant.tests else [])]

    def notice(self, mutant: Mutant) -> str | None:
        """Which step notices the fault, and how; None if none does."""
        file = self.folder / "poolkit" / mutant.file
        sound = file.read_text(encoding="utf-8")
        file.write_text(plant(mutant, sound), encoding="utf-8")
        try:
            for name, arguments in self.steps(mutant):
                status, output = self.run(arguments)
                if status is None:
                    return f"{name}: not done in {self.limit:g} s"
                if status != 0:
                    if name == "tests" and status not in (1, 3):  # nothing collected, wrong arguments: no catch
                        raise SystemExit(f"mutant {mutant}: pytest ended with {status}:\n{output[-2000:]}")
                    return f"{name}: {_evidence(output)}"
            return None
        finally:
            file.write_text(sound, encoding="utf-8")


def _evidence(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
    telling = [line for line in lines if "Error" in line or "Failure" in line]
    return (failed or telling or lines or ["no output"])[-1 if not failed else 0][:150]


def _sound(copy: Copy, chosen: list[Mutant]) -> None:
    """Without a fault everything passes, or nothing here would prove anything."""
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    for name, arguments in (("simulation", SIMULATION), ("tests", [*PYTEST, *tests])):
        if name == "tests" and not tests:
            continue
        status, output = copy.run(arguments)
        if status != 0:
            sys.stdout.write(f"the {name} must pass before a fault is planted:\n{output[-3000:]}\n")
            raise SystemExit(2)


def main() -> int:
    """Run the mutants; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="only these (default: all)")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="at a time")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one run (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the list and end")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests without a fault first")
    options = parser.parse_args()
    mutants = load()
    if options.list:
        sys.stdout.write("".join(f"{mutant}\n" for mutant in mutants))
        return 0
    try:
        for mutant in mutants:
            plant(mutant, (ROOT / "poolkit" / mutant.file).read_text(encoding="utf-8"))
    except (Stale, OSError) as error:
        sys.stdout.write(f"{LIST.name} does not fit the code: {error}\n")
        return 2
    chosen = [mutant for mutant in mutants if not options.numbers or mutant.number in options.numbers]
    begun = time.monotonic()
    survived: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="poolkit-mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.jobs):
            (Path(folder) / str(number)).mkdir()
            copies.put(Copy(Path(folder).resolve() / str(number), options.limit))
        if not options.no_control:
            control = copies.get()
            control.limit = 10 * options.limit
            _sound(control, chosen)
            control.limit = options.limit
            copies.put(control)

        def work(mutant: Mutant) -> tuple[Mutant, str | None]:
            copy = copies.get()
            try:
                return mutant, copy.notice(mutant)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.jobs) as threads:
            for mutant, by in threads.map(work, chosen):
                if by is None:
                    survived.append(mutant)
                sys.stdout.write(
                    f"{'caught  ' if by else 'SURVIVED'} {mutant}\n{f'            by {by}' if by else ''}\n"
                )
                sys.stdout.flush()
    spent = time.monotonic() - begun
    sys.stdout.write(f"mutants: {len(chosen) - len(survived)} of {len(chosen)} caught in {spent:.0f} s\n")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
