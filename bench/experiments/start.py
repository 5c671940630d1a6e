"""*start*: what `import poolkit` takes, and what comes with it, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.turns import Run

__all__ = ("run",)

_PROGRAM = """
import sys, time, json
before = set(sys.modules)
begun = time.perf_counter_ns()
cpu = time.process_time_ns()
{statement}
print(json.dumps([time.perf_counter_ns() - begun, time.process_time_ns() - cpu, sorted(set(sys.modules) - before)]))
"""
_STATEMENTS = {
    "import poolkit": "import poolkit",
    "a Pool": "import poolkit; poolkit.Pool",
    "an AsyncPool": "import poolkit; poolkit.AsyncPool",
    "import threading": "import threading",
    "import asyncio": "import asyncio",
}


def run(bench: Run) -> None:
    """Import in fresh interpreters, in turn."""
    repeat = bench.pick(1, 2, 15)
    bench.say(f"{len(_STATEMENTS)} statements, {repeat} times")
    for turn in bench.turns(list(_STATEMENTS), repeat, lambda name: f"poolkit: {name}"):
        with turn as name:
            program = _PROGRAM.format(statement=_STATEMENTS[name])
            done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
            elapsed, cpu, modules = json.loads(done.stdout)
            bench.add(name, "time", "ms", elapsed / 1e6)
            bench.add(name, "cpu", "ms", cpu / 1e6)
            bench.add(name, "modules", "modules", len(modules))
            foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"poolkit"}
            bench.add(name, "modules from elsewhere", "modules", len(foreign))
