"""``python -m bench.reliability [--quick] [--adapter NAME] [--fault NAME] [--json FILE] [--write]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from bench.reliability.faults import FAULTS
from bench.reliability.measure import ADAPTERS, CLUSTERS, Result, measure
from bench.reliability.report import line, write
from bench.reliability.world import world

QUICK = {"reset", "silence", "refused", "sessions ended", "CLIENT KILL", "keep-alive ends", "GOAWAY"}


ALL = {**ADAPTERS, **CLUSTERS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run some of the faults, about two minutes")
    parser.add_argument("--adapter", choices=ALL, action="append", help="run only this adapter (may be repeated)")
    parser.add_argument("--fault", action="append", help="run only this fault (may be repeated)")
    parser.add_argument("--json", type=Path, help="write all results into this file")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reliability.md")
    given = parser.parse_args()
    names = given.adapter or list(ALL)
    faults = [
        fault
        for fault in FAULTS
        if (not given.quick or fault.name in QUICK) and (not given.fault or fault.name in given.fault)
    ]
    results: list[Result] = []
    begun = time.monotonic()
    try:
        with world() as servers:
            for fault in faults:
                for name in names:
                    if ALL[name].kind not in fault.kinds:
                        continue
                    for ours in (True, False):
                        results.append(measure(servers, name, fault, ours=ours))
                        print(line(results[-1]), flush=True)
    finally:  # also the results of the runs before one that raised
        print(f"{len(results)} runs in {time.monotonic() - begun:.0f} s")
        if given.json:
            given.json.write_text(json.dumps([one.as_json() for one in results], indent=1) + "\n")
    if given.write:
        write(results, faults)
    wrong = sum(one.wrong for one in results if one.pool == "poolkit")
    lost = [one for one in results if one.pool == "poolkit" and (one.capacity < one.size or not one.finished)]
    return 1 if wrong or lost else 0


if __name__ == "__main__":
    sys.exit(main())
