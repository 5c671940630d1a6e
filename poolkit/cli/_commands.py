"""The commands and their options. Each command is implemented in its own module, imported when it runs."""

from __future__ import annotations

import click

from poolkit import __version__
from poolkit.cli._units import DURATION, RATE
from poolkit.errors import PoolError

__all__ = ("program",)


_COUNT = click.IntRange(min=1)
_FACTOR = click.FloatRange(min=0, min_open=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, message="poolkit %(version)s")
def program() -> None:
    """One connection-pool engine behind SQLAlchemy, redis-py, httpx, psycopg and any DB-API driver."""


@program.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="A quarter of the load, in less than 15 seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON; progress goes to stderr.")
@click.pass_context
def demo(context: click.Context, quick: bool, as_json: bool) -> int:
    """Load real servers through poolkit and through the drivers' own pools, and break them half-way.

    Starts PostgreSQL, Redis and an HTTP server on loopback, in a temporary directory, and removes them at the end.
    """
    if context.invoked_subcommand is not None:
        if quick or as_json:
            raise click.UsageError(f"put options of demo {context.invoked_subcommand} after its name")
        return 0
    from poolkit.cli.demo import run

    return run(quick=quick, as_json=as_json)


@demo.command("cluster")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["postgres", "redis", "http"]),
    multiple=True,
    default=("postgres", "http"),
    help="The kind of servers; may be repeated.  [default: postgres and http]",
)
@click.option(
    "--seconds", type=click.FloatRange(4, 600), default=16.0, show_default=True, help="How long the load lasts."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON; progress goes to stderr.")
def demo_cluster(kinds: tuple[str, ...], seconds: float, as_json: bool) -> int:
    """Kill, add and slow the nodes of a cluster under load, and show the traffic moving.

    Starts five servers of each kind on loopback: four nodes and one to be added. Exit code 1: the kill cost more
    requests than were in flight on the killed node, or a server did not start.
    """
    from poolkit.cli.demo.cluster import run

    return run(kinds=kinds, seconds=seconds, as_json=as_json)


@program.command(hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Tell where the benchmarks are."""
    raise click.UsageError("the benchmarks are not part of the package: run python -m bench in a checkout of poolkit")


@program.command()
@click.option("--rate", type=RATE, required=True, help="Leases: 500/s, 30000/min, 20/h; all processes together.")
@click.option("--latency", type=DURATION, required=True, help="Time that a lease takes: 20ms, 0.5s, 150us.")
@click.option("--processes", type=_COUNT, default=1, show_default=True, help="Processes that share the load.")
@click.option("--server-max", type=_COUNT, help="Connections that the server allows, for all processes together.")
@click.option("--headroom", type=_FACTOR, default=1.2, show_default=True, help="Factor on the average load.")
@click.option("--max-wait", type=DURATION, help="Longest wait of 99 % of the callers.  [default: the latency]")
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Plot the wait against the size into this file (.png, .svg, .pdf)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def size(
    rate: float,
    latency: float,
    processes: int,
    server_max: int | None,
    headroom: float,
    max_wait: float | None,
    plot: str | None,
    as_json: bool,
) -> int:
    r"""Compute max_size for a load: Little's law with headroom, and the waits of an M/M/c queue.

    \b
    poolkit size --rate 500/s --latency 20ms
    poolkit size --rate 500/s --latency 20ms --processes 8 --server-max 100

    Exit code 1: the size exceeds the server's limit.
    """
    from poolkit.cli._size import run

    return run(
        rate, latency, processes=processes, server_max=server_max, headroom=headroom, max_wait=max_wait, plot=plot,
        as_json=as_json,
    )  # fmt: skip


@program.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--pool", help="Check only this pool: its table of the file and its variables (default: all tables).")
@click.option(
    "--url", help="Connect to this server and compare with its limits: postgresql://, redis://, valkey:// or http://."
)
@click.option(
    "--adapter",
    type=click.Choice(
        [
            "sqlalchemy",
            "redis",
            "valkey",
            "httpx",
            "httpcore",
            "httpx2",
            "httpcore2",
            "psycopg",
            "asyncpg",
            "urllib3",
            "requests",
            "dbapi",
        ]
    ),
    help="Show the settings in effect with this adapter, and those it refuses.  [default: from the URL]",
)
@click.option(
    "--processes", type=_COUNT, default=1, show_default=True, help="Number of processes that have such a pool."
)
@click.option("--request-timeout", type=DURATION, help="The driver's timeout for one request, for comparison.")
@click.option("--deadline", type=DURATION, help="The time in which the service must answer, for comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    file: str | None,
    pool: str | None,
    url: str | None,
    adapter: str | None,
    processes: int,
    request_timeout: float | None,
    deadline: float | None,
    as_json: bool,
) -> int:
    """Show each setting in effect and its source, check it, and compare it with the server.

    Reads FILE (TOML or YAML) and the environment, as poolkit.load() does. Exit code 1: at least one error was
    found. Warnings alone give 0.
    """
    from poolkit.cli.doctor import run

    return run(
        file=file, pool=pool, url=url, adapter=adapter, processes=processes, request_timeout=request_timeout,
        deadline=deadline, as_json=as_json,
    )  # fmt: skip


def _running(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: the processes of this user that publish their pools."""
    from poolkit.dashboard._places import live_sockets

    try:
        return [path.stem for path in live_sockets() if path.stem.startswith(incomplete)]
    except (PoolError, OSError, AttributeError):
        return []


_TARGETS = click.argument("targets", metavar="[URL | PID | SOCKET]...", nargs=-1, shell_complete=_running)


@program.command()
@_TARGETS
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any other exposes the page to the network.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0: any free port.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another host name of the page.")
@click.option("--actions", is_flag=True, help="Allow holders of the token to clear, suspend, resume and resize pools.")
@click.option("--token-file", type=click.Path(), help="File with the token.  [default: a new token, printed]")
def dashboard(
    targets: tuple[str, ...],
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    actions: bool,
    token_file: str | None,
) -> int:
    """Show the pools of running services on a web page.

    A service is seen if it has called poolkit.dashboard.start(), or mounts DashboardApp (then by its URL). Without an
    argument: all services of this user. Ctrl-C ends it.
    """
    from poolkit.cli._dashboard import run

    return run(targets, host=host, port=port, allow_host=allow_host, actions=actions, token_file=token_file)


@program.command()
@_TARGETS
@click.option("--interval", type=DURATION, default="2s", show_default=True, help="Time between two updates.")
@click.option("--once", is_flag=True, help="Print one frame and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line for each update.")
def top(targets: tuple[str, ...], interval: float, once: bool, as_json: bool) -> int:
    """Show the pools of running services in the terminal; q or Ctrl-C exits.

    A service is seen if it has called poolkit.dashboard.start(), or mounts DashboardApp (then by its URL). Without an
    argument: all services of this user.
    """
    from poolkit.cli.top import run

    return run(targets, interval=interval, once=once, as_json=as_json)


@program.command()
@click.argument("what", type=click.Choice(["grafana", "prometheus"]))
def contrib(what: str) -> None:
    """Print the Grafana dashboard, or the alert rules for Prometheus.

    poolkit contrib grafana > poolkit.json; poolkit contrib prometheus > alerts.yml
    """
    from importlib.resources import files

    name = {"grafana": "grafana.json", "prometheus": "alerts.yml"}[what]
    click.echo((files("poolkit") / "contrib" / name).read_text(encoding="utf-8"), nl=False)


@program.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell: eval "$(poolkit completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(program, {}, "poolkit", "_POOLKIT_COMPLETE").source())


@program.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Print the versions of poolkit, Python and the installed drivers."""
    from poolkit.cli._version import as_text, versions

    click.echo(as_text(versions(), as_json=as_json))
