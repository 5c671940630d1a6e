"""One random fault after the other, from a seed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

from bench.reliability.world import World
from bench.soak.callers import Adapter, Callers

__all__ = ("Chaos",)


class Chaos:
    """Causes a fault about every third of a second, and undoes it."""

    def __init__(self, world: World, adapters: list[Adapter], callers: Callers, *, seed: int) -> None:
        self.world, self.adapters, self.callers = world, adapters, callers
        self.done: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._kinds = {adapter.client.kind for adapter in adapters}

    def run(self, stop: threading.Event) -> None:
        """Run until ``stop`` is set; all faults are undone then."""
        faults: list[tuple[float, str, Callable[[threading.Event], object]]] = [
            (4, "wire", self._wire),
            (3, "sessions", self._sessions),
            (3, "pool", self._pool),
            (0.4, "restart", self._restart),
        ]
        weights = [weight for weight, _, _ in faults]
        while not stop.wait(self._dice.uniform(0.1, 0.6)):
            (_, _, fault), *_ = self._dice.choices(faults, weights)
            fault(stop)

    def _count(self, *words: str) -> None:
        self.done[" ".join(words)] += 1

    def _wire(self, stop: threading.Event) -> None:
        fronts = [adapter for adapter in self.adapters if adapter.front is not None]
        if not fronts:
            return
        front = self._dice.choice(fronts).front
        what = self._dice.choice(["latency", "cut", "reset", "silence", "mute", "partial", "refused", "unanswered"])
        self._count("proxy:", what)
        try:
            if what == "latency":
                front.latency = self._dice.uniform(0.005, 0.05)
            elif what == "cut":
                front.cut()
            elif what == "reset":
                front.reset()
            elif what == "partial":
                front.reply_limit = self._dice.randrange(40)
            else:
                front.mode = {"silence": "silent", "mute": "mute", "refused": "refuse", "unanswered": "silent"}[what]
                if what in ("refused", "unanswered"):
                    front.reset()
            stop.wait(self._dice.uniform(0.05, 0.7))
        finally:
            front.latency, front.reply_limit, front.mode = 0.0, None, "pass"
            if what in ("silence", "mute", "partial"):
                front.reset()  # who lost bytes would wait for them for ever

    def _sessions(self, stop: threading.Event) -> None:
        kind = self._dice.choice(sorted(self._kinds))
        if kind == "postgres":
            what = self._dice.choice(["end all", "end some", "failover"])
            if what == "failover":
                self.world.fail_over()
                stop.wait(0.2)
                self.world.set_right()
            else:
                pids = self.world.postgres.backends()
                chosen = pids if what == "end all" else self._dice.sample(pids, len(pids) // 2)
                self.world.sql(*(f"select pg_terminate_backend({pid})" for pid in chosen))
        elif kind == "redis":
            what = self._dice.choice(["CLIENT KILL", "CLIENT PAUSE"])
            if what == "CLIENT KILL":
                self.world.redis.kill_clients()
            else:
                self.world.redis_command("CLIENT", "PAUSE", str(self._dice.randrange(50, 700)), "ALL")
        elif kind == "http":
            what = "keep-alive ends"
            self.world.http.close_connections()
        else:
            what = "GOAWAY"
            self.world.say_goodbye()
        self._count(f"{kind}:", what)

    def _pool(self, stop: threading.Event) -> None:
        adapter = self._dice.choice(self.adapters)
        engine = adapter.client.engine
        what = self._dice.choice(["clear", "reconfigure", "suspend"])
        self._count("pool:", what)
        if what == "clear":
            self.callers.at(adapter, engine.clear)
        elif what == "reconfigure":
            self.callers.at(adapter, lambda: engine.reconfigure(min_size=0, max_size=1, max_idle=1))
            stop.wait(self._dice.uniform(0.02, 0.3))
            self.callers.at(adapter, lambda: engine.reconfigure(max_size=adapter.size, max_idle=adapter.size))
        else:
            self.callers.at(adapter, engine.suspend)
            stop.wait(self._dice.uniform(0.02, 0.3))
            self.callers.at(adapter, engine.resume)

    def _restart(self, stop: threading.Event) -> None:
        kind = self._dice.choice(sorted(self._kinds - {"http2"}) or ["http2"])
        if kind == "http2":
            return
        server = getattr(self.world, kind)
        if self._dice.random() < 0.5:
            self._count(f"{kind}:", "restart")
            server.restart(down=self._dice.uniform(0.0, 0.4))
        else:
            self._count(f"{kind}:", "crash")
            server.kill()
            stop.wait(self._dice.uniform(0.0, 0.4))
            server.start()
