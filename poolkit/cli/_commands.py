"""What the command line understands; each command's work is in a module of its own, imported when it runs."""

from __future__ import annotations

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


@program.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Print the versions of poolkit, Python and the drivers that it finds."""
    from poolkit.cli._version import as_text, versions

    click.echo(as_text(versions(), as_json=as_json))
