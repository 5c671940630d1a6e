"""The experiments by name, and a run of some or all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from bench.facts import facts
from bench.result import Result
from bench.turns import Effort, Run
from poolkit._misuse import together
from poolkit.errors import ConfigError, MissingExtra

__all__ = ("EXPERIMENTS", "Experiment", "measure", "require")


@dataclass(frozen=True)
class Experiment:
    """The name of an experiment, its question, and the module whose ``run`` measures it."""

    name: str
    question: str

    def run(self, bench: Run) -> None:
        """Measure."""
        module = import_module(f"bench.experiments.{self.name}")
        module.run(bench)


EXPERIMENTS = {
    one.name: one
    for one in (
        Experiment("cycle", "What does it cost to take a connection and give it back when nobody else wants one?"),
        Experiment("contended", "More callers than connections: how many are served, and who gets how much?"),
        Experiment("overload", "Callers with deadlines, too many for the connections: how many are answered in time?"),
        Experiment("spike", "50 callers at once on 5 open connections, where opening one more takes 150 ms."),
        Experiment("scale", "Does an operation cost more when there are more connections, waiters or endpoints?"),
        Experiment("sql", "SELECT 1 on a real PostgreSQL, through SQLAlchemy, psycopg and asyncpg."),
        Experiment("redis", "GET on a real Redis, through redis-py."),
        Experiment("http", "GET from a real HTTP server, through httpx, with aiohttp as the bar."),
        Experiment("cells", "Each adapter beside its driver's own pool: 1 to 64 callers, few and as many connections."),
        Experiment("exporters", "What does it cost that metrics, traces and logs are taken?"),
        Experiment("start", "What does `import poolkit` take, and what comes with it?"),
    )
}

_NEEDED = {
    "sqlalchemy": "SQLAlchemy", "greenlet": "greenlet", "psycopg": "psycopg", "psycopg_pool": "psycopg-pool",
    "asyncpg": "asyncpg", "redis": "redis", "httpx": "httpx", "httpcore": "httpcore",
    "aiohttp": "aiohttp", "dbutils": "DBUtils", "matplotlib": "matplotlib",
    "prometheus_client": "prometheus-client", "opentelemetry.sdk": "opentelemetry-sdk",
}  # fmt: skip


def require() -> None:
    """Say at once which of the peers is not installed.

    Raises:
        MissingExtra: one or more.
    """
    missing = [shown for name, shown in _NEEDED.items() if not _is_there(name)]
    if missing:
        raise MissingExtra(f"the benchmarks need {', '.join(missing)}: pip install 'poolkit[bench]'")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def measure(names: Sequence[str], effort: Effort, say: Callable[[str], None] | None = None) -> Result:
    """Run the experiments of these names, all if there are none, in the order of :data:`EXPERIMENTS`.

    What fails is in :attr:`Result.failures`, and the rest is measured. ``say`` is called with progress messages. The
    servers end before this returns.

    Raises:
        ConfigError: there is no experiment of that name.
        MissingExtra: a peer is not installed.
    """
    unknown = set(names) - set(EXPERIMENTS)
    if unknown:
        raise ConfigError(
            f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}", "experiments"
        )
    require()
    result = Result(facts=facts(), effort=effort.name.lower())
    run = Run(result, effort, say)
    with _peers_put_aside(), together():  # a benchmark makes pools again and again, and means it
        for name, experiment in EXPERIMENTS.items():
            if names and name not in names:
                continue
            run.start(name)
            begun = time.monotonic()
            try:
                experiment.run(run)
            except Exception as error:  # noted: the numbers of the others are not lost
                run.failed("", error)
            result.seconds[name] = round(time.monotonic() - begun, 1)
    return result


@contextmanager
def _peers_put_aside() -> Iterator[None]:
    """Import the drivers and keep the collector from looking through their modules before and after each turn.

    That took 70 ms each time, a quarter of a quick run, and in the experiments that leave the collector on it fell
    on the pool that was being measured.
    """
    for name in _NEEDED:
        if name != "matplotlib":  # it measures nothing
            import_module(name)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
