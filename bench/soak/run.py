"""One soak from start to report."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.reliability.measure import ADAPTERS, quiet
from bench.reliability.world import World, proxy, world
from bench.soak.callers import Adapter, Book, Callers
from bench.soak.chaos import Chaos
from bench.soak.watch import Usage, Watch, usage

__all__ = ("Report", "soak")

SIZE = 3
WARM_UP = 0.25
"""Share of the time after which memory and descriptors are noted for the first time."""
RSS_SLACK, RSS_SHARE = 12.0, 0.10
"""MiB and share of the memory after warm-up by which it may have grown at the end: fragmentation, caches of the
drivers. A leak of one small object for each request would be more within minutes."""
FD_SLACK = 12
"""Descriptors allowed above the warm-up: spare HTTP/2 connections, and sockets that are being closed."""


@dataclass
class Report:
    """The result of a soak."""

    seed: int
    seconds: float = 0.0
    book: Book = field(default_factory=Book)
    watch: Watch | None = None
    chaos: Chaos | None = None
    adapters: list[Adapter] = field(default_factory=list)
    warm: Usage | None = None
    end: Usage | None = None

    @property
    def failures(self) -> list[str]:
        """The violations; empty if there are none."""
        found = list(self.book.fatal)
        found += [
            f"{adapter.name}: {adapter.capacity} of {adapter.size} connections can be had at the end"
            for adapter in self.adapters
            if adapter.capacity != adapter.size
        ]
        found += sorted(set(self.watch.excess if self.watch else []))
        if self.warm and self.end:
            if self.end.rss > self.warm.rss * (1 + RSS_SHARE) + RSS_SLACK:
                found.append(f"memory grew from {self.warm.rss:.1f} to {self.end.rss:.1f} MiB")
            if self.end.fds > self.warm.fds + FD_SLACK:
                found.append(f"descriptors grew from {self.warm.fds} to {self.end.fds}")
        return found

    def text(self) -> str:
        """The report."""
        lines = [f"soak of {self.seconds:.0f} s, seed {self.seed}", "", f"{'adapter':18}{'requests':>9}  errors"]
        for adapter in self.adapters:
            errors = [(kind, n) for (name, kind), n in self.book.errors.most_common() if name == adapter.name]
            counts = ", ".join(f"{number} {kind}" for kind, number in errors) or "none"
            lines.append(f"{adapter.name:18}{self.book.requests[adapter.name]:9}  {counts}")
        if self.chaos is not None:
            faults = ", ".join(f"{name} {number}" for name, number in sorted(self.chaos.done.items()))
            lines += ["", f"faults ({sum(self.chaos.done.values())}): {faults}"]
        if self.watch is not None:
            most = ", ".join(f"{name} {self.watch.most[name]}/{limit}" for name, limit in self.watch.budget.items())
            lines += [
                f"most connections at the servers in {self.watch.samples} samples: {most}",
                f"samples with sessions still ending on the server above that: {self.watch.brief}",
            ]
        lines += [f"after warm-up: {self.warm}", f"at the end:    {self.end}", ""]
        failures = self.failures
        lines += [f"FAILED: {what}" for what in failures[:20]] or ["ok: no wrong reply, no lost connection"]
        return "\n".join(lines)


def soak(*, seconds: float, adapters: Sequence[str], seed: int) -> Report:
    """Run the soak for ``seconds``, plus a few to start and stop."""
    report = Report(seed)
    with world() as servers, contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        for name in adapters:
            report.adapters.append(_adapter(servers, name, stack))
        callers = Callers(report.adapters, report.book, seed=seed)
        callers.start()
        report.watch = Watch(servers, report.adapters)
        report.chaos = Chaos(servers, report.adapters, callers, seed=seed)
        begun = time.monotonic()
        with _beside(report, report.watch.run):
            for share, name in ((WARM_UP, "warm"), (1.0, "end")):
                with _beside(report, report.chaos.run):
                    _wait(report, callers, begun + seconds * share)
                servers.set_right()
                with callers.full():  # the same number of connections both times
                    setattr(report, name, usage())
        report.seconds = time.monotonic() - begun
        callers.finish()
    return report


def _adapter(servers: World, name: str, stack: contextlib.ExitStack) -> Adapter:
    kind = ADAPTERS[name].kind
    if kind == "http2":
        context = servers.certificates.client_context()
        return Adapter(name, {"ours": True, "server": servers.http2, "context": context, "size": SIZE}, SIZE)
    front = stack.enter_context(proxy(servers.address(kind)))
    made = {"ours": True, "host": front.host, "port": front.port, "name": f"{name}-poolkit", "size": SIZE}
    return Adapter(name, made, SIZE, front)


def _wait(report: Report, callers: Callers, until: float) -> None:
    while time.monotonic() < until and not report.book.fatal:
        time.sleep(0.1)
        for hung in callers.hung():
            report.book.fail(f"no answer and no error: {hung}")


@contextlib.contextmanager
def _beside(report: Report, work: Callable[[threading.Event], object]) -> Iterator[None]:
    """Run ``work(stop)`` in its own thread during the block."""
    stop = threading.Event()

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            report.book.fail(f"the soak itself failed: {error!r}")
            raise

    thread = threading.Thread(target=run, name="soak", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
