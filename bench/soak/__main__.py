"""``python -m bench.soak --minutes N [--seconds S] [--adapters NAME ...] [--seed N]``."""

from __future__ import annotations

import argparse
import random
import sys

from bench.reliability.measure import ADAPTERS
from bench.soak.run import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the random faults; default: a random one, printed"
    )
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    seconds = given.minutes * 60 if given.seconds is None else given.seconds
    report = soak(seconds=seconds, adapters=given.adapters, seed=seed)
    print(report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
