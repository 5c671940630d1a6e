"""``python -m bench [EXPERIMENT ...]``: poolkit beside the drivers' own pools. It needs the extra ``bench``.

Exit codes: 0 measured or the page agrees, 1 failed (the other numbers are written), 2 used wrongly or a peer is not
installed, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.main import Options, run
from poolkit.errors import MissingExtra, PoolError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``arguments`` default to those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure poolkit beside the drivers' own pools, turn by turn. Real PostgreSQL, Redis and HTTP "
        "servers are started on loopback and end with the run.",
    )
    add = parser.add_argument
    add(
        "experiments", nargs="*", metavar="EXPERIMENT",
        help="cycle, contended, overload, spike, scale, sql, redis, http, cells, exporters, start (default: all)",
    )  # fmt: skip
    add("--quick", action="store_true", help="run some of the cases, once each, in about a minute")
    add("--targets", action="store_true", help="print the targets and the measured values, without the tables")
    add("--json", type=Path, metavar="FILE", help="write all numbers into this file")
    add("--from", dest="source", type=Path, metavar="FILE", help="do not measure; read the numbers of an earlier run")
    add("--update", type=Path, metavar="FILE", help="take the experiments that this run lacks from an earlier one")
    add("--docs", type=Path, metavar="FOLDER", help="write the tables and plots of benchmarks.md in this folder")
    add("--check", action="store_true", help="with --from and --docs: change nothing; fail if the page differs")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.check and not (options.source and options.docs):
        parser.error("--check compares a page with an earlier run: it needs --from and --docs")
    if options.source and (options.experiments or options.quick):
        parser.error("--from measures nothing: it goes without EXPERIMENT and --quick")
    try:
        return run(options)
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted\n")
        return 130
    except PoolError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2 if isinstance(error, MissingExtra) else 1


if __name__ == "__main__":
    sys.exit(main())
