"""Samples connections at the servers, and memory and descriptors of this process."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.reliability.world import World
from bench.soak.callers import Adapter

__all__ = ("Usage", "Watch", "usage")

GRACE = 1.0
"""Seconds that a server may take to end a session whose client has gone."""


@dataclass(frozen=True)
class Usage:
    """The resources of this process."""

    rss: float
    fds: int
    threads: int

    def __str__(self) -> str:
        return f"{self.rss:.1f} MiB, {self.fds} descriptors, {self.threads} threads"


def usage() -> Usage:
    """Resident memory in MiB, open descriptors, threads; after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), threading.active_count())


@dataclass
class Watch:
    """Samples the servers over its own connections, without the proxies."""

    world: World
    adapters: list[Adapter]
    most: Counter[str] = field(default_factory=Counter)
    budget: Counter[str] = field(default_factory=Counter)
    excess: list[str] = field(default_factory=list)
    """Samples above the budget for longer than the grace."""
    samples: int = 0
    brief: int = 0
    """Samples above the budget that were over within the grace: a session that its client has left."""

    def __post_init__(self) -> None:
        self._since: dict[str, float] = {}
        self._postgres: Any = None
        for adapter in self.adapters:
            self.budget[self._group(adapter)] += adapter.size

    def run(self, stop: threading.Event) -> None:
        """Sample until ``stop`` is set."""
        while not stop.wait(0.1):
            self.sample()
        if self._postgres is not None:
            self._postgres.close()

    def sample(self, now: float | None = None) -> None:
        """Count once; ``now`` is of time.monotonic."""
        counted: Counter[str] = Counter()
        with contextlib.suppress(Exception):  # a server that is down has no connections
            counted += self._count_postgres()
        with contextlib.suppress(Exception):
            counted += self._count_others()
        self.samples += 1
        now = time.monotonic() if now is None else now
        for group, limit in self.budget.items():
            self.most[group] = max(self.most[group], counted[group])
            if counted[group] <= limit:
                self._since.pop(group, None)
                continue
            self.brief += 1
            if now - self._since.setdefault(group, now) > GRACE:
                self.excess.append(f"{group}: {counted[group]} connections at the server, {limit} allowed")

    @staticmethod
    def _group(adapter: Adapter) -> str:
        """Count by adapter where PostgreSQL names the client; count the others together."""
        kind = str(adapter.client.kind)
        return f"postgres {adapter.name}" if kind == "postgres" else kind

    def _count_postgres(self) -> Counter[str]:
        if not any(group.startswith("postgres") for group in self.budget):
            return Counter()
        if self._postgres is None or self._postgres.closed:
            self._postgres = self.world.postgres.connect()
        try:
            rows = self._postgres.execute(
                "select application_name, count(*) from pg_stat_activity"
                " where backend_type = 'client backend' group by 1"
            ).fetchall()
        except Exception:
            self._postgres.close()
            raise
        return Counter({f"postgres {name.removesuffix('-poolkit')}": int(number) for name, number in rows})

    def _count_others(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        if "http2" in self.budget:
            counted["http2"] = sum(not one.transport.is_closing() for one in list(self.world.http2.connections))
        if "redis" in self.budget:
            counted["redis"] = len(self.world.redis.client_list())
        if "http" in self.budget:
            counted["http"] = self.world.http.stats().open
        return counted
