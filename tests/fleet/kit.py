"""A fleet of real processes, and a sampler that counts their connections at the server."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import psycopg

from tests.fleet.program import main
from tests.support.waiting import PATIENCE, until

__all__ = ("Fleet", "Process")

CONTEXT = multiprocessing.get_context("forkserver")  # imports once; processes start in milliseconds
CONTEXT.set_forkserver_preload(["tests.fleet.program"])


class Process:
    """One member of the fleet."""

    def __init__(self, *arguments: Any) -> None:
        self.pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=main, args=(other, *arguments), daemon=True)
        self.process.start()
        other.close()

    def answer(self) -> Any:
        assert self.pipe.poll(PATIENCE), "the process says nothing"
        return self.pipe.recv()

    def done(self) -> int:
        """The number of leases so far."""
        self.pipe.send("done?")
        return int(self.answer())

    def works(self, more: int = 1) -> None:
        """Wait until it has had this many more leases."""
        wanted = self.done() + more
        until(lambda: self.done() >= wanted, "the process works")

    def end(self) -> dict[str, Any]:
        """Stop it normally; return its results."""
        self.pipe.send("stop")
        result: dict[str, Any] = self.answer()
        self.process.join(PATIENCE)
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE)


class Fleet:
    """Processes, and a sampler that counts their connections at the server."""

    def __init__(self, store: str, dsn: str, *, limit: int, ttl: float, work: float = 0.005) -> None:
        self.store, self.dsn = store, dsn
        self.limit, self.ttl, self.work = limit, ttl, work
        self.processes: list[Process] = []
        self.samples: list[dict[str, int]] = []  # connections by group of processes
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()

    def _sample(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                rows = connection.execute(
                    "SELECT substr(application_name, 15), count(*) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'fleet-guarded-%' GROUP BY 1"
                ).fetchall()
                self.samples.append(dict(rows))
                time.sleep(0.005)

    def start(self, count: int, address: str, *, threads: int = 3, group: str = "all") -> list[Process]:
        started = [
            Process(group, self.store, address, self.dsn, self.limit, self.ttl, threads, self.work)
            for _ in range(count)
        ]
        self.processes += started
        for process in started:
            assert process.answer() == "ready"
        return started

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self._stop.set()
        self._sampler.join()

    def until(self, count: int, what: str, *, group: str | None = None) -> None:
        """Wait until a sample from now on shows this many connections (of one group)."""
        seen = len(self.samples)

        def shown() -> bool:
            later = self.samples[seen:]
            return any((sum(one.values()) if group is None else one.get(group, 0)) == count for one in later)

        until(shown, what)

    @property
    def totals(self) -> list[int]:
        """Connections in each sample so far."""
        return [sum(sample.values()) for sample in list(self.samples)]

    @property
    def most(self) -> int:
        """The most connections that any sample shows."""
        return max(self.totals, default=0)
