"""What the command line understands; each command's work is in a module of its own, imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from poolkit import __version__

__all__ = ("program",)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, message="poolkit %(version)s")
def program() -> None:
    """One connection-pool engine behind SQLAlchemy, redis-py, httpx, psycopg and any DB-API driver."""


@program.command()
@click.option("--quick", is_flag=True, help="A quarter of the load, in less than 15 seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON; progress goes to stderr.")
def demo(quick: bool, as_json: bool) -> int:
    """Load real servers through poolkit and through the drivers' own pools, and break them half-way.

    Starts PostgreSQL, Redis and an HTTP server on loopback, in a temporary directory; nothing is left behind.
    """
    from poolkit.cli.demo import run

    return run(quick=quick, as_json=as_json)


_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@program.command()
@click.argument("experiments", nargs=-1)
@click.option("--quick", is_flag=True, help="Some of the cases, once each, in less than a minute.")
@click.option("--targets", is_flag=True, help="Print what is aimed at and what was measured, without the tables.")
@click.option("--json", "json_file", type=_FILE, help="Write all numbers into this file.")
@click.option("--from", "source", type=_FILE, help="Measure nothing; read the numbers of an earlier run.")
@click.option("--docs", type=_FOLDER, help="Write the tables and plots of benchmarks.md in this folder.")
@click.option("--check", is_flag=True, help="With --from and --docs: change nothing, fail if the page is another one.")
def bench(
    experiments: tuple[str, ...],
    quick: bool,
    targets: bool,
    json_file: Path | None,
    source: Path | None,
    docs: Path | None,
    check: bool,
) -> int:
    """Measure poolkit beside the drivers' own pools, turn by turn.

    EXPERIMENTS are cycle, contended, spike, scale, sql, redis, http and start; without any, all of them. Real
    PostgreSQL, Redis and HTTP servers are started on loopback and end with the run.
    """
    if check and not (source and docs):
        raise click.UsageError("--check compares a page with an earlier run: it needs --from and --docs")
    if source and (experiments or quick):
        raise click.UsageError("--from measures nothing: it goes without EXPERIMENTS and --quick")
    from poolkit.bench.main import Options, run

    return run(Options(experiments, quick, targets, json_file, source, docs, check))


@program.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Print the versions of poolkit, Python and the drivers that it finds."""
    from poolkit.cli._version import as_text, versions

    click.echo(as_text(versions(), as_json=as_json))
