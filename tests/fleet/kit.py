"""A fleet of real processes, and who counts their connections at the server."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tests.fleet.program import main
from tests.support.waiting import PATIENCE

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
        assert self.pipe.poll(30), "the process says nothing"
        return self.pipe.recv()

    def end(self) -> dict[str, Any]:
        """Stop it in good order; what it has done."""
        self.pipe.send("stop")
        result: dict[str, Any] = self.answer()
        self.process.join(15)
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.join(15)


class Fleet:
    """Processes, and a sampler that asks the server how many connections they have."""

    def __init__(self, store: str, dsn: str, *, limit: int, ttl: float, work: float = 0.005) -> None:
        self.store, self.dsn = store, dsn
        self.limit, self.ttl, self.work = limit, ttl, work
        self.processes: list[Process] = []
        self.samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()

    def _sample(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fleet-guarded'"
                ).fetchone()
                assert row is not None
                self.samples.append((time.time(), row[0]))
                time.sleep(0.005)

    def start(self, count: int, address: str, *, threads: int = 3) -> list[Process]:
        started = [
            Process(self.store, address, self.dsn, self.limit, self.ttl, threads, self.work) for _ in range(count)
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

    def until(self, condition: Callable[[int], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.samples and condition(self.samples[-1][1])):
            assert time.monotonic() < deadline, f"{what}: {self.samples[-3:]}"
            time.sleep(0.01)

    @property
    def most(self) -> int:
        return max(count for _, count in self.samples)
