"""Processes that work under one limit while some are killed, cut off from the store, and replaced one after another,
and while the store is emptied, damaged or full.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.fleet.damage import DAMAGE, full_disk
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.faults.proxy import FaultProxy
from tests.fleet.kit import Fleet, Process

__all__ = ("STORES", "Report", "hold")

STORES = ("redis", "postgres", "file")
TTL = 2.0
WORK = 0.03
"""Seconds that a process keeps a connection: long enough for two processors to serve sixteen processes."""
THREADS = 3


@dataclass
class Report:
    """The result of a run."""

    store: str
    limit: int
    seed: int
    samples: int = 0
    most: int = 0
    full: int = 0
    """The number of samples in which the whole limit was in use."""
    started: int = 0
    leases: int = 0
    """Leases of the processes that were ended normally; killed processes report nothing."""
    troubles: Counter[str] = field(default_factory=Counter)
    starved: list[str] = field(default_factory=list)
    """The number of processes that were ended normally and had no lease."""

    @property
    def failures(self) -> list[str]:
        """The violations of the run; empty if there are none."""
        found = list(self.starved)
        if self.most > self.limit:
            found.append(f"{self.most} connections under a limit of {self.limit}")
        if not self.full:
            found.append("the limit was never used: nothing was tested")
        return found

    def text(self) -> str:
        """The result as text."""
        troubles = ", ".join(f"{count} x {name}" for name, count in sorted(self.troubles.items()))
        lines = [
            f"store {self.store}, seed {self.seed}: {self.started} processes, {troubles or 'no trouble'}",
            f"{self.samples} samples at the server: at most {self.most} connections, the limit is {self.limit}",
            f"all of them there in {self.full / max(1, self.samples):.0%} of the samples",
            f"{self.leases} leases reported by processes that were ended normally",
        ]
        return "\n".join([*lines, *(f"FAILED: {text}" for text in self.failures)])


class _World:
    """The fleet, half of which reaches the store through a proxy, and its faults."""

    def __init__(self, fleet: Fleet, place: str, through: str, proxy: FaultProxy | None, report: Report) -> None:
        self.fleet = fleet
        self.places = (place, through)
        self.proxy = proxy
        self.report = report
        self.alive: list[Process] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            self.report.started += 1
            self.alive += self.fleet.start(1, self.places[self.report.started % 2], threads=THREADS)

    def end(self, process: Process) -> None:
        """Wait until the process has had a lease, so that a busy machine is not reported as starvation."""
        starved = False
        try:
            process.works()
        except AssertionError:
            starved = True
        result = process.end()
        self.report.leases += result["done"]
        if starved:
            self.report.starved.append(f"a process got nothing: {Counter(result['failed']).most_common(2)}")

    def kill_some(self, chance: random.Random) -> None:
        """Kill up to a quarter of the processes with SIGKILL and start as many new ones."""
        victims = chance.sample(self.alive, chance.randint(1, max(1, len(self.alive) // 4)))
        for process in victims:
            process.kill()
            self.alive.remove(process)
        self.start(len(victims))

    def roll(self, chance: random.Random) -> None:
        """End each process normally and replace it, one after the other."""
        for process in list(self.alive):
            self.end(process)
            self.alive.remove(process)
            self.start(1)

    def damage(self, chance: random.Random) -> None:
        """Empty, damage or fill the store for up to half a lease; new processes join at the same time."""
        damages: dict[str, Callable[[str], Callable[[], None]]] = dict(DAMAGE[self.report.store])
        if self.report.store == "file":
            damages["full disk"] = lambda _: full_disk([process.process.pid or 0 for process in self.alive])
        name = chance.choice(sorted(damages))
        self.report.troubles[f"store: {name}"] += 1
        end = damages[name](self.places[0])
        try:
            if "full" not in name:
                victim = chance.choice(self.alive)
                victim.kill()
                self.alive.remove(victim)
                self.start(1)
            time.sleep(TTL * chance.uniform(0.0, 0.5))
        finally:
            end()

    def cut(self, chance: random.Random) -> None:
        """Drop all packets between half of the processes and the store, for up to two leases."""
        assert self.proxy is not None
        self.proxy.mode = "silent"
        time.sleep(TTL * chance.uniform(0.2, 2.0))
        self.proxy.mode = "pass"


def hold(
    *, store: str, processes: int, limit: int, seconds: float, seed: int, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Run a fleet for ``seconds``, then end it normally. Everything that was started ends before this returns.

    At a random moment some processes are killed, or half of them are cut off from the store, or all are replaced one
    after the other, or the store loses or cannot keep what it knows.
    A sampler asks the server every 5 ms how many connections there are.
    """
    report = Report(store, limit, seed)
    chance = random.Random(seed)
    with _servers(store, processes, limit) as (dsn, place, through, proxy):
        fleet = Fleet(store, dsn, limit=limit, ttl=TTL, work=WORK)
        try:
            world = _World(fleet, place, through, proxy, report)
            world.start(processes)
            say(f"{processes} processes, limit {limit}, store {store}, seed {seed}")
            troubles = [*[world.kill_some] * 2, world.roll, *[world.damage] * 2, *[world.cut] * (2 if proxy else 0)]
            over = time.monotonic() + seconds
            while time.monotonic() < over and fleet.most <= limit:
                time.sleep(min(chance.uniform(0.5, 3.0), max(0.0, over - time.monotonic())))
                trouble = chance.choice(troubles)
                report.troubles[trouble.__name__.replace("_", " ")] += 1
                trouble(chance)
                say(f"{max(0.0, over - time.monotonic()):6.0f} s left, {trouble.__name__}: {_now(fleet)}")
            time.sleep(2 * TTL)  # what the last ones killed had comes back
            if fleet.most <= limit:
                with contextlib.suppress(AssertionError):  # the report says so
                    fleet.until(limit, "the whole limit is used")
            for process in world.alive:
                world.end(process)
        finally:
            fleet.close()
        report.samples, report.most = len(fleet.samples), fleet.most
        report.full = sum(count == limit for count in fleet.totals)
    return report


def _now(fleet: Fleet) -> str:
    return f"{fleet.totals[-1]} connections, at most {fleet.most} in {len(fleet.samples)} samples"


@contextlib.contextmanager
def _servers(store: str, processes: int, limit: int) -> Iterator[tuple[str, str, str, FaultProxy | None]]:
    """The database, and the store: its place, its place behind a proxy, and the proxy (None: there is no network)."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(PostgresServer(max_connections=limit + 20))
        if store == "file":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            yield database.url, folder, folder, None
            return
        server: Any = RedisServer() if store == "redis" else PostgresServer(max_connections=2 * processes + 20)
        stack.enter_context(server)
        proxy = FaultProxy("127.0.0.1", server.port).start()
        stack.callback(proxy.stop)
        yield database.url, server.url, server.url.replace(f":{server.port}", f":{proxy.port}"), proxy
