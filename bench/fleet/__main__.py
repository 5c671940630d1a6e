"""``python -m bench.fleet [--processes N] [--minutes N | --seconds S] [--store NAME] [--limit N] [--seed N]``.

Exit code 1: the limit was exceeded in a sample, or a process that ended in good order had got nothing.
"""

from __future__ import annotations

import argparse
import random
import sys

from bench.fleet.run import STORES, hold


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--store", choices=STORES, default="redis")
    parser.add_argument("--limit", type=int, help="connections of the fleet (default: one and a half per process)")
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the random faults; default: a random one, printed"
    )
    given = parser.parse_args()
    limit = given.processes * 3 // 2 if given.limit is None else given.limit
    if given.processes < 2 or limit < 1:
        parser.error("two processes and a limit of one are the least")
    report = hold(
        store=given.store,
        processes=given.processes,
        limit=limit,
        seconds=given.minutes * 60 if given.seconds is None else given.seconds,
        seed=random.randrange(10**6) if given.seed is None else given.seed,
        say=lambda text: print(text, flush=True),
    )
    print(report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
