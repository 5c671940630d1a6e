"""``python -m tests.simulation [--steps N] [--pools N] [--seed N]``: seeded simulations of the engine."""

from __future__ import annotations

import argparse
import random
import sys

from .async_simulation import AsyncPoolSimulation
from .budget_simulation import BudgetSimulation
from .pool_simulation import PoolSimulation
from .simulate import CoreSimulation

__all__ = ()


def main() -> None:
    """Simulate until that many steps are done; a failure shows its seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps of the core (default: %(default)s)")
    parser.add_argument("--pools", type=int, default=2000, help="schedules of each kind of pool (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="first seed (default: a fresh one)")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    per_run = 500
    runs = -(-options.steps // per_run)
    for seed in range(first, first + runs):
        CoreSimulation(seed).run(per_run)
        if seed % 10 == 0:
            BudgetSimulation(seed).run(per_run)
    for seed in range(first, first + options.pools):
        PoolSimulation(seed).run()
        AsyncPoolSimulation(seed).run()
    sys.stdout.write(
        f"simulate: {runs * per_run} steps of the core in {runs} schedules, {runs // 10} schedules of pools "
        f"under one budget and {options.pools} schedules of whole "
        f"pools passed (seeds from {first})\n"
    )


if __name__ == "__main__":
    main()
