"""The callers of one cluster, and the thread that kills, restarts, adds and slows its nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

from poolkit.cli.demo.cluster.plan import ADDED, KILLED, SLOWED
from poolkit.cli.demo.cluster.record import Book, Kill, in_flight
from poolkit.cli.demo.cluster.sites import Site
from poolkit.errors import describe

__all__ = ("Load",)


class Load:
    """Threads around one site, from :meth:`start` to :meth:`stop`."""

    def __init__(self, site: Site, note: Callable[[str], None], now: Callable[[], float]) -> None:
        self.site = site
        self.book = Book()
        self.failure: BaseException | None = None
        """An error outside of requests, such as a server that did not come back."""
        self._note = note
        self._now = now
        self._over = threading.Event()
        callers = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(site.plan.callers)]
        self._callers = callers
        self._hand = threading.Thread(target=self._break, name="poolkit-demo-hand", daemon=True)

    def start(self) -> None:
        """Start the callers."""
        for thread in (*self._callers, self._hand):
            thread.start()

    def stop(self) -> None:
        """Stop requests and events; return when all threads have ended, within their timeouts."""
        self._over.set()
        for thread in (*self._callers, self._hand):
            if thread.ident is not None:
                thread.join()

    @property
    def over(self) -> bool:
        """Whether all events have happened."""
        return not self._hand.is_alive()

    def _call(self, number: int) -> None:
        chance, plan = Random(number), self.site.plan
        while not self._over.wait(plan.pause * chance.uniform(0.5, 1.5)):
            try:
                self.site.ask()
            except Exception as error:  # noqa: BLE001 - what the caller got is what is counted
                self.book.errors.append(describe(error))

    def _break(self) -> None:
        try:
            self._all_troubles()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for the end
            self.failure = error
        finally:
            self.book.phase(None, self.site.cluster.stats())

    def _all_troubles(self) -> None:
        site, book, plan, stats = self.site, self.book, self.site.plan, self.site.cluster.stats
        book.phase("four nodes", stats())
        if self._wait(plan.before):
            return

        before, errors = stats(), len(book.errors)
        book.phase(f"{KILLED} killed", before)
        site.servers[KILLED].kill()
        caught = in_flight(before, stats(), KILLED)
        self._say(f"{KILLED} killed, {caught} requests in flight on it")
        if self._wait(plan.without):
            return
        book.kill = Kill(KILLED, caught, len(book.errors) - errors)

        book.phase(f"{KILLED} back", stats())
        site.servers[KILLED].start()
        self._say(f"{KILLED} is started again")
        if self._wait(plan.back):
            return

        book.phase(f"{ADDED} added", stats())
        site.cluster.update(site.nodes(spare=True))
        self._say(f"{ADDED} added")
        if self._wait(plan.added):
            return

        book.phase(f"{SLOWED} slowed", stats())
        site.slow(SLOWED)
        self._say(f"{SLOWED} slowed down")
        self._wait(plan.slowed)

    def _wait(self, share: float) -> bool:
        """Sleep for this share of the time; True if the demo is to end instead."""
        return self._over.wait(share * self.site.plan.seconds)

    def _say(self, text: str) -> None:
        self._note(f"{self._now():5.1f} s  {self.site.title}: {text}")
