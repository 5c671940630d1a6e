"""``python -m bench.elastic [trace ...] [--docs docs]``: elastic size beside fixed sizes, in virtual time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.elastic.report import play, shown, write
from bench.elastic.traces import TRACES


def main(arguments: list[str] | None = None) -> int:
    names = [trace.name for trace in TRACES]
    parser = argparse.ArgumentParser(prog="python -m bench.elastic", description=__doc__)
    parser.add_argument("traces", nargs="*", metavar="trace", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--docs", type=Path, help="write the table and the plots into this documentation folder")
    options = parser.parse_args(arguments)
    unknown = set(options.traces) - set(names)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such trace; known: {', '.join(names)}")
    if options.docs and options.traces:
        parser.error("--docs needs all traces")
    found = {}
    for trace in TRACES:
        if not options.traces or trace.name in options.traces:
            print(f"{trace.name}: {trace.text} ({trace.seconds:.0f} s)", file=sys.stderr)
            found[trace.name] = play(trace)
    print(shown(found))
    if options.docs:
        for path in write(options.docs, found):
            print(f"written: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
