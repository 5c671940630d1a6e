"""Load for a while, by threads or by tasks of one loop: how many requests were answered, how fast, at what cost.

The servers are processes of their own, so the CPU time of this process is the clients'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.figures import waits_of
from bench.result import Param
from bench.turns import Run, quiet_gc, together

__all__ = ("Load", "by_tasks", "by_threads", "record")

_PATIENCE = 60.0


@dataclass(frozen=True)
class Load:
    """The numbers of the measured time."""

    rate: float
    """Answered requests per second."""
    cpu: float
    """CPU seconds of this process per request."""
    times: list[float]
    """Seconds that each answered request took."""
    failed: int = 0
    """Requests that ended in an error; they are in no other number."""


def record(bench: Run, subject: str, load: Load, **params: Param) -> None:
    """Add the load's numbers under their usual names."""
    bench.add(subject, "rate", "1/s", load.rate, **params)
    bench.add(subject, "cpu", "us", load.cpu * 1e6, **params)
    bench.add(subject, "failed", "requests", load.failed, **params)
    for name, value in waits_of(load.times).items():
        bench.add(subject, f"latency {name}", "ms", value * 1000, **params)


def by_threads(request: Callable[[], object], threads: int, seconds: float) -> Load:
    """``threads`` threads send one request after the other. Each begins with one that does not count."""
    times: list[list[float]] = [[] for _ in range(threads)]
    clock = time.perf_counter
    end = [0.0]
    failed = [0] * threads

    def work(index: int) -> None:
        note = times[index].append
        while (begun := clock()) < end[0]:
            try:
                request()
            except Exception:  # counted: some pools close a connection that another thread is using
                failed[index] += 1
            else:
                note(clock() - begun)

    together(lambda _index: request(), threads)
    with quiet_gc():
        begun, cpu = clock(), time.process_time()
        end[0] = begun + seconds
        together(work, threads)
        cpu, elapsed = time.process_time() - cpu, clock() - begun
    return _load(times, cpu, elapsed, sum(failed))


async def by_tasks(
    request: Callable[[], Awaitable[object]], tasks: int, seconds: float, warm: float, *, abandon: bool = False
) -> Load:
    """``tasks`` tasks send one request after the other; after ``warm`` seconds the ``seconds`` begin that count.

    Afterwards, requests in flight are cancelled, so that a pool that serves no caller does not delay the run.
    ``abandon``: leave it, for a process that ends now.
    """
    times: list[float] = []
    clock = time.perf_counter

    over = False
    failed = [0]

    async def work() -> None:
        while not over:  # some drivers lose a cancellation; the next round cancels again
            begun = clock()
            try:
                await request()
            except Exception:  # counted, and shown
                failed[0] += 1
                await asyncio.sleep(0)
            else:
                times.append(clock() - begun)

    with quiet_gc():
        running = [asyncio.ensure_future(work()) for _ in range(tasks)]
        done, _ = await asyncio.wait(running, timeout=warm, return_when=asyncio.FIRST_EXCEPTION)
        times.clear()
        begun, cpu = clock(), time.process_time()
        if not done:
            done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        counted, cpu, elapsed = list(times), time.process_time() - cpu, clock() - begun
    if not abandon:
        over = True
        for task in running:
            task.cancel()
        _, stuck = await asyncio.wait(running, timeout=_PATIENCE)
        if stuck:
            raise RuntimeError(
                f"{len(stuck)} of {tasks} requests did not end in {_PATIENCE:g} s after their cancellation"
            )
    for task in done:
        task.result()  # what no request may raise, such as an interrupt
    return _load([counted], cpu, elapsed, failed[0])


def _load(times: list[list[float]], cpu: float, elapsed: float, failed: int) -> Load:
    every = [one for mine in times for one in mine]
    return Load(len(every) / elapsed, cpu / max(1, len(every)), every, failed)
