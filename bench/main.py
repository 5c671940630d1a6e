"""The command: measure or read, then print, judge and write."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.result import Result
from bench.tables import as_text, failures_table, tables_of, targets_table
from bench.targets import judge
from bench.turns import Effort

__all__ = ("Options", "run")


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    experiments: Sequence[str] = ()
    quick: bool = False
    targets: bool = False
    json: Path | None = None
    source: Path | None = None
    update: Path | None = None
    docs: Path | None = None
    check: bool = False


def run(options: Options) -> int:
    """Run the command and return the exit code.

    It is 1 if a checked page differs from the numbers, or if poolkit or an experiment failed in this run. The numbers
    of the others are shown and written before. A missed target is a result, not a failure, and so is a turn that
    failed in a peer.

    Raises:
        ConfigError: an unknown experiment, a file that holds no results, a page without its marks, an earlier run
            of another effort.
        MissingExtra: a peer is not installed.
    """
    earlier = Result.read(options.update) if options.update else None  # an unusable file is told before measuring
    result = Result.read(options.source) if options.source else _measure(options)
    failed = [] if options.source else [one for one in result.failures if one.ours]
    if earlier is not None:
        result = result.with_earlier(earlier)
    if options.json:
        options.json.write_text(result.to_json(), encoding="utf-8")
    if options.docs and options.check:
        from bench.page import agrees

        if not agrees(result, options.docs):
            sys.stderr.write(f"{options.docs}: the tables are not those of the results\n")
            return 1
        return 0
    if not options.targets:
        for tables in tables_of(result).values():
            for table in tables:
                sys.stdout.write(as_text(table) + "\n\n")
    sys.stdout.write(as_text(targets_table(judge(result))) + "\n")
    if result.failures:
        sys.stdout.write("\n" + as_text(failures_table(result.failures)) + "\n")
    if options.docs:
        from bench.page import write

        write(result, options.docs)
    if failed:
        sys.stderr.write(f"bench: {as_text(failures_table(failed))}\n")
    return 1 if failed else 0


def _measure(options: Options) -> Result:
    from bench.suite import measure

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    return measure(options.experiments, Effort.QUICK if options.quick else Effort.FULL, say)
