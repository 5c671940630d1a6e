"""The base of both clusters: the core behind its lock, nodes, discovery, events, statistics. Nothing here waits."""

from __future__ import annotations

import math
import random as _random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .. import _registry
from .._listeners import Listeners
from .._log import logger
from .._misuse import together
from .._timeouts import DEFAULT, Default
from ..config import PoolConfig
from ..connector import AsyncConnector, Connector, Verdict, default_classify
from ..errors import (
    AcquireTimeout,
    ConfigError,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    describe,
    shown,
)
from ..policies.retire import NEVER
from ..runtimes.fork import Stage, after_fork
from ._config import ClusterConfig
from ._core import ClusterCore, Do, Effect, NodeEntry, NodeRequest
from ._events import ClusterEvent, ClusterEventKind, ClusterListener, ClusterStats, NodeState
from ._gate import ClusterGate
from ._node import Node, checked_nodes, node_name
from ._nodepool import engine_of, in_words, node_stats
from .discovery import Discovery, Found, StaticDiscovery

__all__ = ("DEFAULT", "ClusterShell", "Default", "live_clusters")

C = TypeVar("C")
T = TypeVar("T")


_FILES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""OSErrors about files that a block may raise; they say nothing about a connection."""

_clusters: weakref.WeakSet[Any] = weakref.WeakSet()
_clusters_lock = threading.Lock()


class ClusterShell(Generic[C]):
    """The parts of a cluster that do not wait for anything."""

    _pool_kind: type[Any]
    _driver_kind: Any
    _driver: Any
    _leases: dict[int, Any]  # of acquire()
    _runtime: Any

    def __init__(
        self,
        make: Callable[[Node], Any],
        nodes: Iterable[Node | str] | Discovery,
        config: ClusterConfig | None,
        settings: dict[str, Any],
        *,
        pool: PoolConfig | None,
        name: str | None,
        role_of: Callable[[C], Any] | None,
        classify: Callable[[BaseException], Verdict] | None,
        listeners: Iterable[ClusterListener],
        clock: Callable[[], float] | None,
        random: Callable[[], float] | None,
    ) -> None:
        if not callable(make):
            raise ConfigError(f"make={make!r}: must be a function from a Node to its connector or pool", "make")
        if config is not None and not isinstance(config, ClusterConfig):
            raise ConfigError(f"config={config!r}: must be a ClusterConfig", "config")
        if pool is not None and not isinstance(pool, PoolConfig):
            raise ConfigError(f"pool={pool!r}: must be a PoolConfig, for the pool of each node", "pool")
        self._make = make
        self._config = (config or ClusterConfig()).replace(**settings)
        self._pool_config = pool
        self.name = _registry.pool_name(name).replace("pool-", "cluster-") if name is None else shown(name)
        self._role_of = role_of
        self._classify_method = classify
        self._clock = clock or time.monotonic
        self._random = random or _random.random
        self._listeners: Listeners[ClusterEvent] = Listeners(self.name, self.remove_listener)
        for listener in listeners:
            self._listeners.add(listener)
        self._source = nodes if isinstance(nodes, Discovery) else StaticDiscovery(checked_nodes(nodes))
        self._found: Found | None = None
        self._driver = self._driver_kind(self)
        self._restart()
        with _clusters_lock:
            _clusters.add(self)

    def _restart(self) -> None:
        """Create an empty core with a lock of its own (again in a forked child)."""
        self._updating = threading.Lock()
        self._complaint = ""
        self._core = core = ClusterCore(self.name, self._config, self._random, asks_roles=self._role_of is not None)
        self._listeners.restart()
        self._gate = ClusterGate(
            core,
            name=self.name,
            clock=self._clock,
            lock=threading.RLock(),
            repair=lambda: core.repair(self._clock()),
            perform=self._perform,
            call_later=self._driver.call_later,
            run_due=self.run_due,
            note_alone=self._note_alone,
        )

    def _after_fork(self) -> None:
        """In the child: pools restart by themselves. No leases and no probes are left; discovery goes on."""
        old = self._core
        self._restart()
        self._core.closed = old.closed
        for entry in (*old.entries.values(), *old.draining):
            entry.tickets.clear()
            entry.leases = 0
            entry.asking = False
            if entry.state is NodeState.PROBING:  # the thread that probed it is not in this process
                entry.state, entry.until = NodeState.EJECTED, -NEVER
                self._core.due = -NEVER
        self._core.entries, self._core.tiers, self._core.tiering = old.entries, old.tiers, old.tiering
        self._core.grouped, self._core.failing, self._core.starting = old.grouped, old.failing, old.starting
        if old.tiering is not None:
            self._core.due = min(self._core.due, old.tiering.due)
        if self._found is not None and self._found.again is not None:
            self._find_again(-NEVER)

    def run_due(self) -> None:
        """Called by the runtime when something is due. Does not block."""
        self._gate.scheduled = NEVER
        if self._core.closed:
            return
        now = self._clock()
        if now >= self._core.find_at:
            self._core.find_at = NEVER
            self._driver.find()
        self._gate.step(self._core.tick, now)
        self._gate.keep_time()

    def run_inbox(self) -> None:
        """Run the steps that finalizers have left. Does not block."""
        self._gate.run_posted()

    # -- effects and events -------------------------------------------------------------------------------------------

    def _perform(self, effects: deque[Effect]) -> None:
        while effects:
            do, entry, request, event = effects[0]
            try:
                if do is Do.WAKE:
                    assert request is not None
                    if request.parker is not None:  # else the caller does not sleep yet, and checks the outcome first
                        request.parker.wake()
                elif do is Do.EMIT:
                    assert event is not None
                    self._listeners.pending.append(event)
                else:
                    assert entry is not None
                    self._driver.start(do, entry)
            except Exception:
                effects.popleft()
                raise
            effects.popleft()  # after the work: if interrupted, do it twice rather than never
        if self._listeners.pending:
            self._listeners.flush()

    def _note_alone(self) -> None:
        for request in self._core.requests.in_order():
            self._core.effects.append(Effect(Do.WAKE, None, request))

    def add_listener(self, listener: ClusterListener) -> None:
        """Call ``listener(event)`` for each later :class:`ClusterEvent`, in order, outside the lock. Thread-safe."""
        self._gate.step(self._listeners.add, listener)

    def remove_listener(self, listener: ClusterListener) -> None:
        """Undo :meth:`add_listener`. Does nothing if the listener is not registered. Thread-safe."""
        self._gate.step(self._listeners.remove, listener)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def update(self, nodes: Iterable[Node | str]) -> None:
        """Replace the nodes. Thread-safe.

        Nodes that stay keep their connections, even if weight, priority, zone or role change. A removed node gets no
        new requests and drains within ``drain_timeout``. A new node is warmed up first and then starts slowly.
        A discovery overrides this with its next change. Raises :class:`~poolkit.ConfigError` for invalid nodes, and
        changes nothing then.
        """
        self._apply(checked_nodes(nodes))

    def _apply(self, nodes: tuple[Node, ...]) -> None:
        with self._updating:  # one update at a time; pools are created outside of the core's lock
            if self._core.closed:
                raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
            old = self._core.entries
            made = {
                node.name: self._make_node(node)
                for node in nodes
                if node.name not in old or not old[node.name].node.same_endpoint(node)
            }
            self._gate.step(self._core.update, nodes, made, self._clock())

    def _make_node(self, node: Node) -> tuple[Any, Callable[[], float], int]:
        """Create the pool of a node: the pool, its capacity, and the capacity that it always has. Does no I/O."""
        with together():  # one pool per node is no sign of misuse, whether make() is the user's or an adapter's
            made = self._make(node)
        if isinstance(made, (Connector, AsyncConnector)) or (hasattr(made, "connect") and not hasattr(made, "lease")):
            with together():
                made = self._pool_kind(made, self._pool_config, name=f"{self.name}/{node.name}")
        if not hasattr(made, "lease"):
            raise ConfigError(
                f"{self.name}: make({node.name!r}) returned {made!r}: must be a connector or have lease(timeout)",
                "make",
            )
        places = getattr(made, "places", None)
        engine = engine_of(made)
        if engine is not None:
            engine._callers_have_elsewhere()
        if callable(places):
            return made, places, 0
        if engine is not None and not engine._features.keyed:
            return made, lambda: engine._config.max_size or math.inf, 1
        return made, lambda: math.inf, 1

    def pool(self, node: str) -> Any:
        """The pool of a node: a :class:`~poolkit.Pool`, or what ``make`` returned. KeyError for an unknown node."""
        return self._core.entries[node_name(node)].pool

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The current nodes."""
        return tuple(entry.node for entry in list(self._core.entries.values()))

    # -- discovery ----------------------------------------------------------------------------------------------------

    def _take_found(self, found: Found) -> None:
        """Apply an answer of the discovery and note when to ask again."""
        old, self._found = self._found, found
        if not self._core.entries or old is None or found.nodes != old.nodes:
            self._apply(checked_nodes(found.nodes, type(self._source).__name__))
        self._complaint = ""
        self._gate.step(self._find_again, NEVER if found.again is None else self._clock() + found.again)

    def _find_again(self, at: float) -> None:
        """Under the lock: the discovery is due at ``at``."""
        self._core.find_at = at
        self._core.due = min(self._core.due, at)

    def _find_failed(self, error: BaseException) -> None:
        """The discovery has failed: keep the nodes, report the error once."""
        text = describe(error)
        if text != self._complaint:  # log the same failure once, not at each attempt
            self._complaint = text
            logger.warning("%s: discovery failed; the nodes are unchanged: %s", self.name, text)
            self._gate.step(self._core.emit, ClusterEventKind.DISCOVERY_FAILED, self._clock(), None, error)
        self._gate.step(self._find_again, self._clock() + self._source.interval)

    def _after_find(self, found: Found | None, error: BaseException | None) -> None:
        """A call of ``find`` has ended."""
        if self._core.closed:
            return
        try:
            if found is not None:
                self._take_found(found)
        except Exception as refused:  # noqa: BLE001  reported below
            error = refused
        if error is not None:
            self._find_failed(error)
        self._gate.keep_time()

    # -- leases: the parts that do not wait ---------------------------------------------------------------------------

    def _deadline(self, timeout: float | Default | None, now: float) -> float:
        if isinstance(timeout, Default):
            timeout = self._config.acquire_timeout
        elif timeout is not None and not _is_duration(timeout):
            raise ConfigError(f"timeout={timeout!r}: must be a time in seconds, 0 or more, or None", "timeout")
        return NEVER if timeout is None else now + timeout

    def _restrict(self, request: NodeRequest, avoid: Iterable[str]) -> None:
        """Check the wanted role and apply ``avoid``."""
        if request.role is not None and not isinstance(request.role, str):
            raise ConfigError(f"role={request.role!r}: must be a string, or None", "role")
        if avoid:
            entries = self._core.entries
            request.tried = {entries[name] for name in avoid if name in entries}

    def _expire(self, request: NodeRequest, now: float) -> AcquireTimeout | None:
        """Under the lock: the deadline has passed. Return the error, or None if the request was just served."""
        if request.outcome is not None:
            return None
        core = self._core
        ahead = sum(other.ticket < request.ticket for queue in core.requests.queues.values() for other in queue)
        nodes = ", ".join(f"{m.name} {m.state.value} {m.leases}/{m.capacity():g}" for m in core.entries.values())
        core.abandon(request, now, timed_out=True)
        return AcquireTimeout(
            f"{self.name}: no free place on a node within {now - request.since:.2f} s ({ahead} ahead of you; {nodes})"
        )

    def _on_lease(self, connection: C) -> Any:
        """The lease of a connection that a caller of :meth:`acquire` returns."""
        lease = self._leases.pop(id(connection), None)
        if lease is None:
            raise self._translated(
                NotLeased(f"{self.name}: release() of a connection that is not leased from this cluster")
            )
        return lease

    def _translated(self, error: BaseException) -> BaseException:
        """The error as callers see it. Adapters override this: their errors are also the driver's."""
        return error

    def _not_opened(
        self, request: NodeRequest, entry: NodeEntry, error: BaseException, spent: float, late: bool
    ) -> bool:
        """The node's pool gave no lease. Return whether another node may be tried."""
        core, now = self._core, self._clock()
        request.tried = {*request.tried, entry}
        ticket = request.ticket
        busy = isinstance(error, AcquireTimeout) and not isinstance(error, ServerUnavailable)
        if not isinstance(error, Exception) or isinstance(error, (ConfigError, UsageError)) or busy:
            return False  # the caller's abandon() frees the capacity
        if isinstance(error, (PoolClosed, PoolSuspended, PoolBusy)):  # the node was taken out meanwhile
            self._gate.post(core.give_up, entry, ticket, now)
            request.outcome = None
            _forget_frames(error)
            return True
        self._gate.post(core.failed, entry, ticket, error, spent, now)
        request.outcome = None
        if late:
            return False
        _forget_frames(error)
        return True

    def _end(self, core: ClusterCore, entry: NodeEntry, ticket: int, error: BaseException | None, since: float) -> None:
        """A lease has ended: free its capacity and judge the node by the error. Never waits."""
        if core is not self._core:
            return  # the parent process's
        now = self._clock()
        spent = now - since
        if error is None or isinstance(error, _FILES):
            self._gate.post(core.succeeded, entry, ticket, spent, now)
        elif not isinstance(error, Exception):
            self._gate.post(core.give_up, entry, ticket, now)  # a cancellation says nothing about the node
        else:
            verdict = self._verdict(entry, error)
            if verdict is Verdict.RETIRE:
                self._gate.post(core.wrong_server, entry, ticket, error, spent, now)
            elif verdict is Verdict.KEEP:
                self._gate.post(core.succeeded, entry, ticket, spent, now)
            elif verdict is Verdict.DISCARD and not isinstance(error, TimeoutError):
                self._gate.post(core.give_up, entry, ticket, now)
            else:
                self._gate.post(core.failed, entry, ticket, error, spent, now)

    def _verdict(self, entry: NodeEntry, error: BaseException) -> Verdict:
        classify = self._classify_method or getattr(entry.pool, "classify", None)
        if classify is None:
            engine = engine_of(entry.pool)
            return default_classify(error) if engine is None else engine._driver.operations.verdict(error)
        try:
            verdict = classify(error)
        except Exception:
            logger.exception("%s: classify failed", self.name)
            return Verdict.DISCARD
        return verdict if isinstance(verdict, Verdict) else Verdict.DISCARD

    def _dropped(self, core: ClusterCore, entry: NodeEntry, ticket: int) -> None:
        """Called by a finalizer: takes no lock. The next thread that has the lock does the work; a waiter is woken."""
        if core is not self._core:
            return  # the parent process's
        self._gate.inbox.append((core.give_up, (entry, ticket, self._clock())))
        if self._runtime is not None:
            self._runtime.nudge(self)
        try:
            waiting = [next(iter(queue)) for queue in core.requests.queues.values()]
        except (StopIteration, RuntimeError):  # none waits, or the queue is changing: then another thread has the lock
            return
        for request in waiting:
            if request.parker is not None:
                request.parker.wake()

    def _drop(self, entry: NodeEntry) -> None:
        """Close the idle connections of an ejected node and send the waiters of its pool to other nodes."""
        engine = engine_of(entry.pool)
        if engine is not None:
            engine.suspend(fail_fast=True)
            engine.clear()
            engine.resume()

    def _role_after(self, entry: NodeEntry, error: BaseException | None, role: str | None) -> None:
        """A lookup of a node's role has ended. A timeout of a busy pool changes nothing."""
        if isinstance(error, AcquireTimeout) and not isinstance(error, ServerUnavailable):
            error, role = None, entry.known_role
        self._gate.step(self._core.role_found, entry, error, role, self._clock())

    # -- shutdown ------------------------------------------------------------------------------------------------------

    def _ending(self, timeout: float | None) -> Iterator[tuple[Any, float | None]]:
        """Refuse new requests; yield the pool of each node with the seconds that are left to end it."""
        deadline = NEVER if timeout is None else self._clock() + timeout
        self._gate.step(self._core.close, self._clock())
        self._source.close()
        if self._runtime is not None:
            self._runtime.schedule(self, NEVER)  # cancel what is scheduled
        for entry in (*self._core.entries.values(), *self._core.draining):
            yield entry.pool, None if deadline == NEVER else max(0.0, deadline - self._clock())

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> ClusterConfig:
        """The settings in effect."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the cluster refuses new requests."""
        return self._core.closed

    def stats(self) -> ClusterStats:
        """A frozen snapshot. Thread-safe; never waits for I/O."""
        self._gate.run_posted()
        entries = self._gate.step(lambda: (*self._core.entries.values(), *self._core.draining))
        nodes = tuple(node_stats(entry, self._core.tiering) for entry in entries)
        waiting = self._gate.step(lambda: sum(len(queue) for queue in self._core.requests.queues.values()))
        return ClusterStats(self.name, nodes, sum(node.leases for node in nodes), waiting, self._core.timeouts)

    def explain(self) -> str:
        """The state of the cluster as text. Thread-safe."""
        return in_words(self.stats())

    def check_books(self) -> None:
        """Raise AssertionError unless the invariants of the cluster hold. For tests."""
        self._gate.run_posted()
        self._gate.step(self._core.check)

    def __repr__(self) -> str:
        core = self._core
        return f"<{type(self).__name__} {self.name!r} of {len(core.entries)} nodes{', closed' if core.closed else ''}>"


def _forget_frames(error: BaseException) -> None:
    """Remove the traceback of an error that no caller gets. The error and the frames that raised it form a reference
    cycle: if the caller drops its lease without closing it, that cycle would keep the lease until the next collection.
    """
    error.__traceback__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None


def _is_duration(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value >= 0


def live_clusters() -> list[ClusterShell[Any]]:
    """All clusters of this process that are not closed."""
    with _clusters_lock:
        known = _registry.snapshot(_clusters)
    return [cluster for cluster in known if not cluster.closed]


def _after_fork_in_child() -> None:
    global _clusters_lock
    _clusters_lock = threading.Lock()  # another thread of the parent process may have held it
    for cluster in list(_clusters):
        cluster._after_fork()


after_fork(Stage.CLUSTERS, _after_fork_in_child)
