"""``python -m bench [EXPERIMENT ...] [--quick] [--json FILE]``: poolkit beside the drivers' own pools, turn by turn.

Needs the extra ``bench``. On a shared machine only the ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

from .experiments import EXPERIMENTS, Table


def show(table: Table) -> None:
    print(f"\n{table.title}")
    width = max(len(name) for name, _ in table.rows) + 2
    print(" " * width + "".join(f"{column:>14}" for column in table.columns))
    for name, values in table.rows:
        print(f"{name:{width}}" + "".join(f"{value:14.4g}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    unknown = set(options.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    print(f"CPython {platform.python_version()}")
    tables = []
    for name in options.experiments or EXPERIMENTS:
        table = EXPERIMENTS[name](options.quick)
        show(table)
        tables.append(asdict(table))
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
