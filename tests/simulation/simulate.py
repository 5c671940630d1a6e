"""Seeded simulation of the decision core: callers, faults and commands in random order, in virtual time.

After each step the invariants are checked. A failure shows the seed, a minimal replay and its steps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from poolkit._core import commands, invariants, maintenance
from poolkit._core.effects import Do
from poolkit._core.ledger import Account
from poolkit._core.machine import Core
from poolkit._core.queue import ArrivalOrder, Request
from poolkit._core.slots import CHECKING, IN_USE, LeaseRecord, Slot
from poolkit._core.state import Features, Phase
from poolkit.config import AutoscaleConfig, BackoffConfig, BreakerConfig, OverloadConfig, PoolConfig
from poolkit.connector import Verdict
from poolkit.events import EventKind

from .classes import check_growth, check_use, held_by_classes, some_classes
from .replay import Decisions, SimulationFailure, explain

__all__ = ("CoreSimulation", "SimulationFailure", "some_autoscale")

T = TypeVar("T")

STEPS = {
    "acquire": 6.0, "wake_up": 6.0, "release": 6.0, "finish_open": 5.0, "finish_check": 5.0, "finish_close": 5.0,
    "give_up": 1.0, "pass_time": 2.0, "command": 0.3, "drop": 0.5, "collect": 1.0, "fork": 0.02,
}  # fmt: skip
"""What may happen next, with how often it does."""


def some_autoscale(seed: int) -> AutoscaleConfig | None:
    """Some settings for two seeds in five. By chance of its own: what else a seed chooses stays what it was."""
    pick = random.Random(f"elastic {seed}")
    if pick.random() < 0.6:
        return None
    return AutoscaleConfig(
        max_wait=pick.choice([0.0, 0.02]),
        up_delay=pick.choice([0.0, 0.05, 2.0]),
        down_delay=pick.choice([0.5, 5.0]),
        prewarm=pick.choice([0.0, 0.5, 1.0]),
        peak_memory=pick.choice([1.0, 20.0]),
        overload_recovery=pick.choice([0.1, 3.0]),
    )


def some_overload(seed: int) -> OverloadConfig | None:
    """Settings with which some give-ups are enough, for two seeds in five; the default for as many."""
    pick = random.Random(f"overload {seed}")
    roll = pick.random()
    if roll < 0.2:
        return None
    if roll < 0.6:
        return OverloadConfig()
    return OverloadConfig(
        give_up_share=0.01, interval=pick.choice([0.0001, 0.2]), max_wait=pick.choice([None, None, 0.5])
    )


class _Sleeper:
    """A parker that notes that it was woken, and that its caller has its answer."""

    def __init__(self) -> None:
        self.woken = False
        self.answered = False

    def wake(self) -> None:
        self.woken = True


@dataclass
class CoreSimulation:
    """One random schedule. ``CoreSimulation(seed).run(1000)`` raises :class:`SimulationFailure` or returns.

    Callers acquire, release, give up, are told of faults and drop their leases; connects, checks and closes end well
    or not, at any time; the server comes and goes, and may refuse for overload; the pool is cleared, suspended and
    reconfigured, may be elastic, and goes on as a forked child's. After each step the invariants hold, no connection is
    in two hands nor of an older generation, nobody is overtaken beyond ``barging_window``, nobody waits while capacity
    is free, and each caller has one answer.
    In some schedules many callers give up, and the newest come first for a while.
    In some schedules callers are of several classes: then nobody is overtaken within its own, no class gets what is
    reserved for another or goes beyond its limit, and nobody waits while there is capacity that it may use.
    """

    class_share: ClassVar[float] = 0.4
    """In this share of the schedules callers are of several classes."""

    seed: int
    trace: list[str] = field(default_factory=list)
    account: Account | None = None
    most: int = 8
    minimum: int | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.decisions = Decisions()
        pick = self.random
        self.now = 1000.0
        in_caller = pick.random() < 0.3
        features = Features(
            checks=pick.random() < 0.6,
            peeks=pick.random() < 0.5,
            keyed=pick.random() < 0.3,
            # by chance of its own: what else a seed chooses stays what it was
            reports_errors=random.Random(f"reports {self.seed}").random() < 0.5,
        )
        max_size = pick.choice([n for n in (1, 2, 3, 5, 8) if n <= self.most])
        apart = random.Random(f"classes {self.seed}")  # so that the schedules without classes are what they always were
        self.classed = apart.random() < self.class_share
        config = PoolConfig(
            min_size=0 if features.keyed else self._minimum(max_size),
            max_size=max_size,
            max_waiting=pick.choice([None, None, 3, 10]),
            order=pick.choice(["lifo", "fifo"]),
            max_lifetime=pick.choice([None, 5.0, 60.0]),
            idle_timeout=pick.choice([None, 1.0, 20.0]),
            keepalive=pick.choice([None, 2.0]),
            check_after_idle=pick.choice([None, 0, 0.5]),
            max_connecting=pick.choice([1, 2, 16]),
            connect_in_caller=in_caller,
            leak_after=pick.choice([None, 3.0]),
            barging_window=pick.choice([0.0, 0.001, 0.5]),
            backoff=BackoffConfig(base=0.1, cap=2.0),
            breaker=BreakerConfig(failure_threshold=2, reset_timeout=1.0) if pick.random() < 0.3 else None,
            classes=some_classes(apart, max_size) if self.classed else None,
            autoscale=self._autoscale(),
            overload=self._overload(),
        )
        self.impatient = config.overload is not None and config.overload != OverloadConfig()
        self.overloads = 0
        self.core = Core(config, features, name="sim", barging=0.0, random=pick.random, account=self.account)
        self.core.wanted_events = frozenset(EventKind if pick.random() < 0.2 else ())
        self.core.recheck_interval = float("inf")  # it would help those who are forgotten, which is to be found out
        self.multiplexed = pick.random() < 0.3
        self.keys = ["a", "b", "c"] if features.keyed else [None]
        self.waiting: list[Request] = []
        self.opening: list[tuple[Slot, Request | None]] = []
        self.checking: list[tuple[Slot, Request | None]] = []
        self.closing: list[Slot] = []
        self.leases: dict[int, Slot] = {}
        self.changed = False  # the classes are not those that all callers came with
        self.inbox: list[Slot] = []  # of leases that were dropped
        self.server_up = True
        self.numbers = 0
        self.steps = 0
        self.peak = self.core.limit
        self._chance = random.Random(self.seed)  # of what comes next; what a step does has a seed of its own

    def _minimum(self, max_size: int) -> int:
        return self.random.randrange(max_size + 1) if self.minimum is None else min(self.minimum, max_size)

    def _autoscale(self) -> AutoscaleConfig | None:
        return some_autoscale(self.seed)

    def _overload(self) -> OverloadConfig | None:
        return some_overload(self.seed)

    # -- the shell's part -------------------------------------------------------------------------------------

    def _decide(self, step: Callable[..., T], *args: Any) -> T:
        """As a pool's gate: a step, and then whatever the state asks for."""
        result = step(*args)
        self.core.settle(self.now)
        return result

    def _perform(self) -> None:
        for do, slot, request in self.core.take_effects():
            assert slot is None or self.core.all_slots[slot.id]() is slot, "work on a connection of another pool"
            if do is Do.CONNECT:
                assert slot is not None
                self.opening.append((slot, None))
            elif do in (Do.CLOSE, Do.ABORT):
                assert slot is not None
                self.closing.append(slot)
            elif do is Do.PING:
                assert slot is not None
                self.checking.append((slot, None))
            elif do is Do.WAKE:
                assert request is not None
                assert isinstance(request.parker, _Sleeper)
                self._check_outcome(request)
                request.parker.wake()

    def _check_outcome(self, request: Request) -> None:
        slot = request.outcome
        if isinstance(slot, Slot) and slot.state is IN_USE:
            assert slot.generation == slot.endpoint.generation, "a connection of an older generation was handed out"

    def _end(self, request: Request) -> None:
        """The caller goes on, with what it wanted or without."""
        assert isinstance(request.parker, _Sleeper)
        assert not request.parker.answered, "a caller was answered twice"
        request.parker.answered = True
        if request in self.waiting:
            self.waiting.remove(request)

    def _proceed(self, request: Request) -> None:
        """The caller looks at its outcome, as a shell does."""
        outcome = request.outcome
        if isinstance(outcome, Slot):
            if outcome.state is IN_USE:
                self._note_lease(request, outcome)
            elif outcome.state is CHECKING:
                request.outcome = None
                self.checking.append((outcome, request))
            else:
                request.outcome = None
                self.opening.append((outcome, request))
        elif outcome is not None and request in self.waiting:
            self._end(request)

    def _note_lease(self, request: Request, slot: Slot) -> None:
        self.numbers += 1
        record = slot if slot.leases == 1 else LeaseRecord(slot)
        record.since = self.now
        self.leases[self.numbers] = slot
        self.core.leased[self.numbers] = record
        self._end(request)
        check_use(self.core, request, slot, changed=self.changed)
        hands = Counter(id(e) for e in self.leases.values())[id(slot)]
        assert hands <= max(1, slot.capacity), "one connection in two hands"

    # -- steps ------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        endpoint = self.core.add_endpoint(self.random.choice(self.keys))
        request = Request(endpoint, self.now)
        request.parker = _Sleeper()
        if self.core.classes is not None:
            request.caller_class = self.core.classes.of(self.random.choice([None, *(self.core.config.classes or ())]))
        self.waiting.append(request)
        before = next(iter(endpoint.queue.beside(request)), None)
        in_order = isinstance(endpoint.queue.line_of(request.caller_class).order, ArrivalOrder)
        self._decide(self.core.acquire, request, self.now)
        self._check_outcome(request)
        if in_order and before is not None and before.queued and self.now - before.since >= self.core.barging:
            assert not isinstance(request.outcome, Slot), "a newcomer overtook one who had waited long enough"
        self._perform()
        self._proceed(request)

    def _wake_up(self) -> None:
        for request in list(self.waiting):
            if isinstance(request.parker, _Sleeper) and request.parker.woken:
                request.parker.woken = False
                if request.outcome is None and request.queued:
                    self._decide(self.core.look, request, self.now)
                    self._perform()
                self._proceed(request)

    def _give_up(self) -> None:
        for _ in range(self.random.choice([1, 1, 5]) if self.impatient else 1):
            if self.waiting:
                self._one_gives_up()

    def _one_gives_up(self) -> None:
        request = self.random.choice(self.waiting)
        if any(request is other for _, other in self.opening):
            return
        self._end(request)
        timed_out = self.random.random() < 0.5
        self._decide(lambda: self.core.abandon(request, self.now, timed_out=timed_out))

    def _release(self) -> None:
        if self.leases:
            key = self.random.choice(list(self.leases))
            slot = self.leases.pop(key)
            self.core.leased.pop(key, None)
            if slot.leases:
                roll = self.random.random()
                if roll < 0.8:
                    self._decide(self.core.give_back, slot, self.now)
                else:
                    verdict = self.random.choice([Verdict.DISCARD, Verdict.SUSPECT, Verdict.RETIRE])
                    if self.impatient and verdict is Verdict.DISCARD:
                        self._decide(commands.lease_given_up, self.core, slot, self.now)
                    self._decide(self.core.discard, slot, self.now, verdict)

    def _finish_open(self) -> None:
        if not self.opening:
            return
        slot, request = self.opening.pop(self.random.randrange(len(self.opening)))
        gone = request is not None and request not in self.waiting
        if self.server_up and self.random.random() < 0.9 and not gone:
            capacity = self.random.choice([1, 3]) if self.multiplexed else 1
            keep = request is not None
            kept = self._decide(lambda: self.core.connected(slot, object(), capacity, self.now, keep=keep))
            self._perform()
            if request is not None:
                if kept:
                    self._note_lease(request, slot)
                else:
                    self._decide(self.core.retry, request, self.now)
                    self._perform()
                    self._proceed(request)
        else:
            roll = self.random.random()
            verdict = Verdict.FATAL if roll < 0.2 else Verdict.OVERLOADED if roll > 0.8 else Verdict.SUSPECT
            lingers = self.random.random() < 0.3
            error = ConnectionRefusedError("sim")
            endpoint = slot.endpoint
            current = slot.generation == endpoint.generation
            hopeless = current and not (endpoint.dialer.by_caller or endpoint.live) and endpoint.connecting == 1
            told = list(endpoint.requests)
            self._decide(self.core.connect_failed, slot, error, verdict, self.now, lingers)
            if self.core.features.reports_errors and hopeless:
                assert all(one.outcome is not None for one in told), "a caller was not told of a failed connect"
            if lingers:
                self.closing.append(slot)
            if request in self.waiting:
                self._end(request)

    def _finish_check(self) -> None:
        if not self.checking:
            return
        slot, request = self.checking.pop(self.random.randrange(len(self.checking)))
        error = None if self.random.random() < 0.7 else self.random.choice([OSError("dead"), TimeoutError("silent")])
        if request is None:
            self._decide(maintenance.pinged, self.core, slot, error, True, self.now)
        else:
            self._decide(self.core.checked, slot, request, error, self.now)
            self._perform()
            self._proceed(request)

    def _finish_close(self) -> None:
        if self.closing:
            self._decide(self.core.closed, self.closing.pop(self.random.randrange(len(self.closing))))

    def _pass_time(self) -> None:
        self.now += self.random.choice([0.0001, 0.01, 0.3, 1.5, 10.0])
        if self.now >= self.core.due:
            self._decide(maintenance.tick, self.core, self.now)
            self._decide(maintenance.leaks, self.core, self.now)

    def _command(self) -> None:
        roll = self.random.random()
        if roll < 0.3:
            self._decide(commands.clear, self.core, self.now)
        elif roll < 0.5:
            self._decide(commands.suspend, self.core, self.random.random() < 0.3, self.now)
        elif roll < 0.8:
            self._decide(commands.resume, self.core, self.now)
        elif roll < 0.9:
            low = max(1, self.core.config.min_size)
            if not self.classed:
                config = self.core.config.replace(max_size=self.random.randint(low, 8))
            elif self.random.random() < 0.5:
                kept = sum(one.reserved for one in (self.core.config.classes or {}).values())
                config = self.core.config.replace(max_size=self.random.randint(max(low, kept + 1), 8))
            else:
                size = self.core.config.max_size or 1
                classes = some_classes(self.random, size) if self.random.random() < 0.8 else None
                config = self.core.config.replace(classes=classes)
                self.changed = True
            if self.impatient and self.random.random() < 0.2:
                config = config.replace(overload=None if config.overload else self._overload())
            if self._autoscale() is not None and self.random.random() < 0.3:
                config = config.replace(autoscale=None if config.autoscale else AutoscaleConfig(down_delay=2.0))
            self._decide(commands.reconfigure, self.core, config, 0.0, "max_size", self.now)
        else:
            self.server_up = not self.server_up

    def _drop(self) -> None:
        """A finalizer takes the lease out of the register and leaves the rest to the next one at the lock."""
        if self.leases:
            key = self.random.choice(list(self.leases))
            self.inbox.append(self.leases.pop(key))
            self.core.leased.pop(key, None)

    def _collect(self) -> None:
        if self.inbox:
            slot = self.inbox.pop(0)
            if slot.leases:
                self._decide(self.core.dropped, slot, self.now)

    def _fork(self) -> None:
        """Go on as the child: with a core of its own, and nothing and nobody of the parent's."""
        if self.account is not None:  # the other pools of the budget do not fork with this one
            return
        old = self.core
        self.core = Core(old.config, old.features, name="sim", barging=0.0, random=self.random.random)
        self.core.wanted_events, self.core.recheck_interval = old.wanted_events, old.recheck_interval
        commands.inherit(self.core, old)
        for inherited in (self.waiting, self.opening, self.checking, self.closing, self.inbox):
            inherited.clear()
        self.leases.clear()
        self.peak = self.core.limit

    def _choose(self) -> str:
        return self._chance.choices(list(STEPS), list(STEPS.values()))[0]

    def _reseed(self, number: int) -> None:
        """Each step has a seed of its own: so it does the same when others are left out."""
        self.random.seed(self.seed * 1_000_003 + number)

    def step(self) -> None:
        """One random event, then the invariants."""
        number, self.steps = self.steps, self.steps + 1
        chosen = self.decisions.make(number, self._choose, "")
        if chosen:
            before, most = held_by_classes(self.core), self.core.limit
            self._reseed(number)
            self.trace.append(f"{self.now:.4f} {chosen}")
            getattr(self, f"_{chosen}")()
            self._perform()
            self._check_settled()
            invariants.check(self.core)
            if chosen != "command":
                # an elastic limit may change after the growth
                check_growth(self.core, before, max(most, self.core.limit))
            self.overloads = max(self.overloads, self.core.counts.overloads)
            self.peak = max(self.peak, self.core.limit)  # a lowered limit still finds connections in use
            assert len(self.core.all_slots) <= self.peak, "more connections than max_size"

    def _check_settled(self) -> None:
        """SETTLE-TWICE: a second look, at everything, finds nothing to do: the first one has forgotten nobody."""
        if self.now < self.core.due and self.account is None:  # else a tick or a message of the budget is on its way
            self.core.touch_all()
            self.core.settle(self.now)
            assert not self.core.effects, f"settle() has left something to do: {self.core.effects}"

    def run(self, steps: int) -> None:
        """``steps`` random events, then everybody is served or told, and the pool is closed."""
        try:
            self._play(steps)
        except Exception as error:
            made = self.decisions.made
            raise explain("CoreSimulation", self.seed, lambda part: self._again(part)._play(steps), made, error,
                          self._trace_of) from error  # fmt: skip

    def replay(self, script: Mapping[int, str]) -> None:
        """Of the seed's schedule only the steps of ``script``, as a failure shows it. Raises what went wrong."""
        self._again(script)._play(1 + max(script, default=-1))

    def _again(self, script: Mapping[int, str]) -> CoreSimulation:
        other = type(self)(self.seed)
        other.decisions = Decisions(script)
        return other

    def _trace_of(self, script: Mapping[int, str]) -> str:
        other = self._again(script)
        try:
            other._play(1 + max(script, default=-1))
        except Exception:  # the one that is being explained
            pass
        return "".join(f"\n  {line}" for line in other.trace)

    def _play(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self._reseed(-1)
        self._wind_down()

    def _wind_down(self) -> None:
        """With the server up and every lease given back, nobody may be left waiting."""
        self.repair_world()
        for _ in range(400):
            if self.settle():
                break
        assert not self.waiting, f"{len(self.waiting)} callers were never served nor told"
        self.shut()

    def repair_world(self) -> None:
        """The server is up, and the pool hands out."""
        self.server_up = True
        self._decide(commands.resume, self.core, self.now)

    def settle(self) -> bool:
        """Finish what is going on and give every lease back; whether nothing is left to do."""
        self._perform()
        for todo in (self._finish_open, self._finish_check, self._finish_close, self._wake_up):
            for _ in range(10):
                todo()
                self._perform()
        while self.leases or self.inbox:
            self._release()
            self._perform()
            self._collect()
            self._perform()
        invariants.check(self.core)
        if not self.waiting and not self.opening and not self.checking and not self.closing:
            return True
        self.now += 0.5
        if self.now >= self.core.due:
            self._decide(maintenance.tick, self.core, self.now)
        return False

    def shut(self) -> None:
        """Close the pool; nothing is left."""
        self._decide(commands.shut, self.core, Phase.CLOSED, self.now)
        self._perform()
        for _ in range(100):
            self._finish_open()
            self._finish_check()
            self._finish_close()
            self._perform()
        invariants.check(self.core)
        assert not self.core.all_slots, "connections are left after close"
        assert not self.core.counts.reclaimed, "a connection was in nobody's hands"
