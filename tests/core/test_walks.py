"""The containers that callers change without the lock: the core copies them before it iterates, and counts again
after each step.
"""

from __future__ import annotations

import ast
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import poolkit
from poolkit import Connector, Pool, _begin
from poolkit._core import invariants
from poolkit._core.repair import repair
from poolkit._core.slots import CLOSING, IDLE, IN_USE, Slot, Slots
from poolkit.policies.members import members
from poolkit.runtimes.threads import _Housekeeper
from poolkit.testing import FakeConnector
from tests.core.test_decisions import NOW, leased, make
from tests.simulation.interleave import Interleaving, SimulatedRuntime


class Taken(deque[Slot]):
    """Like the idle connections of a pool: other threads take some as soon as one is taken."""

    number = 0

    def __init__(self, slots: Iterable[Slot]) -> None:
        super().__init__(slots)
        self.others: list[Slot] = []

    def popleft(self) -> Slot:
        while self.number and len(self):
            self.number -= 1
            slot = self.pop()
            slot.state, slot.leases = IN_USE, 1
            self.others.append(slot)
        return super().popleft()


@pytest.mark.parametrize("taken", range(7))
def test_surplus_that_others_have_taken_meanwhile_is_not_closed(taken: int) -> None:
    """A slot that is both closed and idle would be handed out without a connection."""
    core = make(max_size=10)
    slots = [leased(core) for _ in range(6)]
    for slot in slots:
        core.give_back(slot, NOW)
    core.size.max_idle = 4
    core.endpoint.idle = stolen = Taken(core.endpoint.idle)
    stolen.number = taken
    core.settle(NOW)
    for slot in stolen.others:
        core.leased[id(slot)] = slot
    assert {slot.state for slot in core.endpoint.idle} <= {IDLE}
    assert sum(slot.state is CLOSING for slot in slots) <= 2
    assert len(core.endpoint.idle) <= 4
    invariants.check(core)


def test_what_was_put_back_while_surplus_is_closed_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make(max_size=6)
    slots = [leased(core) for _ in range(6)]
    for slot in slots[:5]:
        core.give_back(slot, NOW)
    core.size.max_idle = 3
    original = Slots.start_close

    def closing(part: Slots, slot: Slot, *args: Any, **how: Any) -> None:
        original(part, slot, *args, **how)
        late = slots[5]
        if late.state is IN_USE:  # by another thread, without the lock
            late.state, late.leases = IDLE, 0
            core.endpoint.idle.append(late)

    monkeypatch.setattr(Slots, "start_close", closing)
    core.settle(NOW)
    assert len(core.endpoint.idle) == 3


def test_a_multiplexed_connection_in_use_is_not_counted_as_idle() -> None:
    core = make(max_size=3, max_idle=1)
    other = leased(core)
    shared = leased(core, capacity=2)
    assert list(core.endpoint.spare) == [shared]
    core.give_back(other, NOW)
    assert other.state is IDLE
    core.give_back(shared, NOW)
    assert shared.state is CLOSING
    invariants.check(core)


class Unwalked(deque[Slot]):
    """A container over which no code may iterate, because other threads change it meanwhile."""

    def __iter__(self) -> Iterator[Slot]:
        raise AssertionError("walked over without a copy")

    def copy(self) -> Any:
        return deque(list(deque.__iter__(self)))


class UnwalkedDict(dict[int, Slot]):
    """The same for the register of leases."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("walked over without a copy")

    values = keys = items = __iter__  # type: ignore[assignment]

    def copy(self) -> dict[int, Slot]:
        return dict(dict.items(self))


COMMANDS: dict[str, Callable[[Pool[Any]], object]] = {
    "stats": lambda pool: pool.stats(),
    "lane_stats": lambda pool: pool.lane_stats(),
    "explain": lambda pool: pool.explain(),
    "diagnose": lambda pool: pool.diagnose(),
    "details": lambda pool: pool.details(),
    "dump": lambda pool: pool.dump(),
    "advice": lambda pool: pool.advice(),
    "check_books": lambda pool: pool.check_books(),
    "run_due": lambda pool: (pool._core.want_sweep(0.0), pool.run_due()),
    "discard_idle": lambda pool: pool.discard_idle(lambda connection: False),
    "suspend": lambda pool: (pool.suspend(), pool.resume()),
    "reconfigure": lambda pool: pool.reconfigure(max_size=4, max_idle=1),
    "clear": lambda pool: pool.clear(),
    "repair": lambda pool: pool._gate.step(repair, pool._core, pool._clock()),
    "unused_since": lambda pool: pool._membership.unused_since(),
    "a release of one too many": lambda pool: pool.release(pool.acquire()),
    "a failed check": lambda pool: pool.release(pool.acquire(), error=ConnectionResetError()),
    "fork": _begin.after_fork,
    "drain": lambda pool: pool.drain(0),
    "close": lambda pool: pool.close(),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_walks_over_what_callers_change_without_the_lock(command: str) -> None:
    pool: Pool[Any] = Pool(FakeConnector(streams=1), max_size=5, max_idle=2, leak_after=1000.0)
    core = pool._core
    held = [pool.acquire() for _ in range(5)]
    core.endpoint.idle = Unwalked(core.endpoint.idle)
    pool._leased = core.leased = UnwalkedDict(dict.items(core.leased))
    core.moved.append(True)  # the paths without the lock must use the containers that replace the real ones
    pool._gate.step(pool._fast.outdate)
    for connection in held[:3]:
        pool.release(connection)
    COMMANDS[command](pool)
    pool.close()


SHARED = {
    # attributes that threads change without the lock of the reader
    "idle", "leased", "_leased", "waited", "used", "watchers", "inbox", "_inbox", "_nudged", "workers", "revoked",
    "reports", "_lost", "all_slots", "moved",
}  # fmt: skip
WALKS = {
    "list", "tuple", "set", "frozenset", "dict", "deque", "Counter", "sorted", "sum", "min", "max", "any", "all", "map",
    "filter", "reversed", "enumerate", "zip", "iter",
}  # fmt: skip
SAFE = {
    ("stats.py", "copied.leased"): "a copy",
    ("opentelemetry.py", "_made.items"): "a program calls instrument() in one thread",
    ("_pool.py", "self._sessions"): "asyncpg: only the thread of the event loop adds to it",
}


def walked(tree: ast.AST) -> Iterator[ast.expr]:
    """Return what a node iterates over, by a loop or by a function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            yield node.iter
        elif isinstance(node, ast.Starred):
            yield node.value
        elif isinstance(node, ast.Call):
            function = node.func
            if (isinstance(function, ast.Name) and function.id in WALKS) or (
                isinstance(function, ast.Attribute) and function.attr in ("extend", "update", "union", "join")
            ):
                yield from node.args


def shared(what: ast.expr) -> str | None:
    """Return the source text of a shared container that is iterated without a copy."""
    while isinstance(what, ast.Call) and isinstance(what.func, ast.Attribute):
        if what.func.attr not in ("values", "keys", "items"):
            return None  # among them copy()
        what = what.func.value
    return ast.unparse(what) if isinstance(what, ast.Attribute) and what.attr in SHARED else None


DEQUES = {"idle", "waited", "used", "inbox", "_inbox", "workers", "reports", "_lost", "ring"}
"""Those of them that are deques: a copy fails on a free-threaded Python 3.13, so ``members()`` makes it."""


def copied_deques(source: str) -> list[str]:
    """The copies of shared deques in a source that are made without ``members()``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "copy":
            what = node.func.value
            if (what.attr if isinstance(what, ast.Attribute) else ast.unparse(what)) in DEQUES:
                found.append(ast.unparse(what))
    return found


def weak(tree: ast.AST) -> set[str]:
    """The weak sets and dicts that a source makes. Their walks are Python code, and fail if another thread adds."""
    made = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Call):
            continue
        if ast.unparse(node.value.func).rpartition(".")[2].startswith("Weak"):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made.update(ast.unparse(one) for one in targets)
    return made


def threads_run_beside(tree: ast.AST) -> ast.AST:
    """Without the functions that run in a forked child, which has one thread."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "_after_fork_in_child":
            node.body = [ast.Pass()]
    return tree


def bare_walks(source: str, file: str) -> list[str]:
    """Return the iterations over shared containers in a source that are not known to be safe."""
    tree = threads_run_beside(ast.parse(source))
    texts = [text for one in walked(tree) if (text := shared(one)) is not None]
    known = weak(tree)
    for one in walked(tree):
        text = ast.unparse(one).removesuffix("()")
        if text.removesuffix(".items").removesuffix(".values").removesuffix(".keys") in known:
            texts.append(text)
    return [text for text in texts if (file, text) not in SAFE]


def test_no_line_walks_over_what_another_thread_may_change() -> None:
    """Without the GIL it fails in up to nine of ten tries: ``deque mutated during iteration``."""
    package = Path(poolkit.__file__).parent
    files = [*package.rglob("*.py"), *(package.parent / "poolkit_adapters").rglob("*.py")]
    assert len(files) > 150
    found = {str(path): bare_walks(path.read_text(encoding="utf-8"), path.name) for path in files}
    assert not {path: texts for path, texts in found.items() if texts}
    copied = {str(path): copied_deques(path.read_text(encoding="utf-8")) for path in files}
    assert not {path: texts for path, texts in copied.items() if texts}


def test_a_copy_of_a_shared_deque_would_be_noticed() -> None:
    assert copied_deques("for slot in endpoint.idle.copy(): pass")
    assert not copied_deques("for slot in members(endpoint.idle): pass; known = leased.copy()")


class Given(deque[int]):
    """A deque that another thread changes in the middle of so many copies and walks."""

    copies = walks = 0

    def copy(self) -> Any:
        self.copies -= 1
        if self.copies >= 0:
            raise RuntimeError("deque mutated during iteration")
        return [self[at] for at in range(len(self))]

    def __iter__(self) -> Iterator[int]:
        self.walks -= 1
        if self.walks >= 0:
            raise RuntimeError("deque mutated during iteration")
        return super().__iter__()


@pytest.mark.parametrize(("copies", "walks"), [(0, 0), (1, 0), (1, 1), (3, 2), (2, 3)])
def test_the_members_of_a_deque_are_had_although_another_thread_changes_it(copies: int, walks: int) -> None:
    given = Given([1, 2, 3])
    given.copies, given.walks = copies, walks
    assert members(given) == [1, 2, 3]


def test_a_request_that_another_thread_takes_from_the_housekeeper_does_no_harm() -> None:
    """A thread that could not start a housekeeper hands back what came meanwhile, while another one has started."""
    keeper = _Housekeeper()

    class Emptied(deque[Any]):
        def popleft(self) -> Any:
            self.clear()
            return super().popleft()

    keeper._inbox = Emptied([(0.0, lambda: None)])
    keeper._read_inbox()
    assert not keeper._due


@pytest.mark.parametrize("walk", ["list(known)", "[one for one in known]", "[*known]", "sorted(known.items())"])
def test_a_bare_walk_over_a_weak_set_would_be_noticed(walk: str) -> None:
    source = f"known: WeakSet[int] = weakref.WeakSet()\ndef look():\n    {walk}\n"
    assert bare_walks(source, "any.py")
    assert not bare_walks(source.replace(walk, "snapshot(known)"), "any.py")
    assert not bare_walks(source.replace("look", "_after_fork_in_child"), "any.py")


@pytest.mark.parametrize(
    "line",
    [
        "for slot in core.endpoint.idle: pass",
        "list(pool._leased.values())",
        "[*self._inbox]",
        "sum(x for x in self.used)",
    ],
)
def test_a_bare_walk_would_be_noticed(line: str) -> None:
    assert bare_walks(line, "any.py")
    assert not bare_walks(line.replace("idle", "idle.copy()").replace("_leased", "_leased.copy()")
                          .replace("_inbox", "_inbox.copy()").replace("used", "used.copy()"), "any.py")  # fmt: skip


class _Server(Connector[object]):
    def connect(self, timeout: float | None) -> object:
        return object()


def _few_may_be_idle(seed: int) -> None:
    world = Interleaving(seed, switch=(0.003, 0.01, 0.03)[seed % 3])
    runtime = SimulatedRuntime(world)
    with mock.patch.object(_begin, "Lock", runtime.lock):
        pool = Pool(
            _Server(), runtime=runtime, clock=world.clock, max_size=6, max_idle=2, max_lifetime=None,
            idle_timeout=None, barging_window=0, acquire_timeout=1000,
        )  # fmt: skip

    def work() -> None:
        for _ in range(3):
            held = [pool.acquire(), pool.acquire()]
            while held:
                pool.release(held.pop())

    for _ in range(3):
        world.spawn(work)
    world.run()
    pool.check_books()
    assert pool.stats().idle <= 2
    assert pool.stats().in_use == 0


@pytest.mark.timeout(180)
def test_connections_come_back_in_any_order_where_few_may_be_idle() -> None:
    for seed in range(45):
        _few_may_be_idle(seed)
