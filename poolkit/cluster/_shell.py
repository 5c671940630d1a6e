"""What the two clusters share: the lock and the core behind it, nodes, discovery, events, statistics. No waiting."""

from __future__ import annotations

import math
import os
import random as _random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .. import _lifecycle
from .._churn import together
from .._log import logger
from .._shell import DEFAULT, Default
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
from ._config import ClusterConfig
from ._core import Caller, ClusterCore, Member
from ._events import ClusterEventKind, ClusterListener, ClusterStats, NodeState
from ._gate import ClusterGate
from ._node import Node, checked_nodes, node_name
from ._nodepool import engine_of, node_stats, told
from .discovery import Discovery, Found, StaticDiscovery

__all__ = ("DEFAULT", "ClusterShell", "Default", "live_clusters")

C = TypeVar("C")
T = TypeVar("T")


_FILES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""OSErrors that a block raises about files, never about a connection that stood."""

_clusters: weakref.WeakSet[Any] = weakref.WeakSet()
_clusters_lock = threading.Lock()


class ClusterShell(ClusterGate, Generic[C]):
    """Everything about a cluster that does not wait."""

    _pool_kind: type[Any]
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
        self.name = _lifecycle.pool_name(name).replace("pool-", "cluster-") if name is None else shown(name)
        self._role_of = role_of
        self._classify_method = classify
        self._clock = clock or time.monotonic
        self._random = random or _random.random
        self._listeners: list[ClusterListener] = list(listeners)
        self._source = nodes if isinstance(nodes, Discovery) else StaticDiscovery(checked_nodes(nodes))
        self._found: Found | None = None
        self._begin()
        with _clusters_lock:
            _clusters.add(self)

    def _begin(self) -> None:
        """An empty core with a lock of its own (again in a forked child)."""
        self._updating = threading.Lock()
        self._find_at = NEVER
        self._complaint = ""
        self._open_gate(ClusterCore(self.name, self._config, self._random, asks_roles=self._role_of is not None))

    def _after_fork(self) -> None:
        """In the child: the pools begin anew by themselves; nobody is on a node, and discovery goes on."""
        old = self._core
        self._begin()
        self._core.closed = old.closed
        for member in (*old.members.values(), *old.leaving):
            member.seats.clear()
            member.leases = 0
            member.asking = False
            if member.state is NodeState.PROBING:  # who probed it is not here
                member.state, member.until = NodeState.EJECTED, -NEVER
                self._core.due = -NEVER
        self._core.members, self._core.tiers, self._core.tiering = old.members, old.tiers, old.tiering
        self._core.grouped, self._core.failing, self._core.starting = old.grouped, old.failing, old.starting
        if old.tiering is not None:
            self._core.due = min(self._core.due, old.tiering.due)
        if self._found is not None and self._found.again is not None:
            self._find_at = self._core.due = -NEVER

    def run_due(self) -> None:
        """Called by the runtime when something is due. Does not block."""
        self._scheduled = NEVER
        if self._core.closed:
            return
        now = self._clock()
        if now >= self._find_at:
            self._find_at = NEVER
            self._begin_find()
        self._decide(self._core.tick, now)
        self._keep_time()

    # -- nodes --------------------------------------------------------------------------------------------------------

    def update(self, nodes: Iterable[Node | str]) -> None:
        """These are the nodes from now on. Thread-safe.

        Those that stay keep their connections, also with another weight, priority, zone or role; a removed one gets
        nobody any more and drains within ``drain_timeout``; a new one is warmed up first, then begins slowly. Raises
        :class:`~poolkit.ConfigError` and changes nothing for nodes that cannot be meant. A discovery that is in use
        overrides it with its next news.
        """
        self._apply(checked_nodes(nodes))

    def _apply(self, nodes: tuple[Node, ...]) -> None:
        with self._updating:  # pools are made outside of the core's lock, and two updates one after the other
            if self._core.closed:
                raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
            old = self._core.members
            made = {
                node.name: self._member_parts(node)
                for node in nodes
                if node.name not in old or not old[node.name].node.same_endpoint(node)
            }
            self._decide(self._core.update, nodes, made, self._clock())

    def _member_parts(self, node: Node) -> tuple[Any, Callable[[], float], int]:
        """Make what stands behind a node: its pool, and how many leases it can have. Does no I/O."""
        with together():  # as many as there are nodes, in the user's make() and in an adapter's
            made = self._make(node)
        if isinstance(made, (Connector, AsyncConnector)) or (hasattr(made, "connect") and not hasattr(made, "lease")):
            with together():
                made = self._pool_kind(made, self._pool_config, name=f"{self.name}/{node.name}")
        if not hasattr(made, "lease"):
            raise ConfigError(
                f"{self.name}: make({node.name!r}) gave {made!r}: must be a connector or something with lease(timeout)",
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
        """What stands behind a node: its pool, with all that a pool has. KeyError if there is none."""
        return self._core.members[node_name(node)].pool

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of now."""
        return tuple(member.node for member in list(self._core.members.values()))

    # -- discovery ----------------------------------------------------------------------------------------------------

    def _begin_find(self) -> None:
        raise NotImplementedError

    def _take_found(self, found: Found) -> None:
        """There is an answer: apply it, and note when to ask again."""
        old, self._found = self._found, found
        if not self._core.members or old is None or found.nodes != old.nodes:
            self._apply(checked_nodes(found.nodes, type(self._source).__name__))
        self._complaint = ""
        self._find_at = NEVER if found.again is None else self._clock() + found.again

    def _find_failed(self, error: BaseException) -> None:
        """The source has failed: the nodes stay as they are."""
        text = describe(error)
        if text != self._complaint:  # once, not every second
            self._complaint = text
            logger.warning("%s: discovery failed, the nodes stay as they are: %s", self.name, text)
            self._decide(self._core.tell, ClusterEventKind.DISCOVERY_FAILED, self._clock(), None, error)
        self._find_at = self._clock() + self._source.interval

    def _after_find(self, found: Found | None, error: BaseException | None) -> None:
        """A look of the source has ended."""
        if self._core.closed:
            return
        try:
            if found is not None:
                self._take_found(found)
        except Exception as refused:  # noqa: BLE001  told below
            error = refused
        if error is not None:
            self._find_failed(error)
        self._keep_time()

    # -- leases, the parts without waiting ----------------------------------------------------------------------------

    def _deadline(self, timeout: float | Default | None, now: float) -> float:
        if isinstance(timeout, Default):
            timeout = self._config.acquire_timeout
        elif timeout is not None and not _is_duration(timeout):
            raise ConfigError(f"timeout={timeout!r}: must be a time in seconds, 0 or more (or None)", "timeout")
        return NEVER if timeout is None else now + timeout

    def _restrict(self, caller: Caller, avoid: Iterable[str]) -> None:
        """He wants a role, or to avoid nodes by name."""
        if caller.role is not None and not isinstance(caller.role, str):
            raise ConfigError(f"role={caller.role!r}: must be a word, or None", "role")
        if avoid:
            members = self._core.members
            caller.tried = {members[name] for name in avoid if name in members}

    def _expire(self, caller: Caller, now: float) -> AcquireTimeout | None:
        """Under the lock: the caller's time is up; None if he was served in this very moment."""
        if caller.outcome is not None:
            return None
        core = self._core
        ahead = sum(other.ticket < caller.ticket for queue in core.queues.values() for other in queue)
        nodes = ", ".join(f"{m.name} {m.state.value} {m.leases}/{m.places():g}" for m in core.members.values())
        core.abandon(caller, now, timed_out=True)
        return AcquireTimeout(
            f"{self.name}: no place on a node in {now - caller.since:.2f} s ({ahead} ahead of you; {nodes})"
        )

    def _on_lease(self, connection: C) -> Any:
        """The lease of a connection that comes back from :meth:`acquire`'s caller."""
        lease = self._leases.pop(id(connection), None)
        if lease is None:
            raise self._translated(
                NotLeased(f"{self.name}: release of a connection that is not on lease from this cluster")
            )
        return lease

    def _translated(self, error: BaseException) -> BaseException:
        """An error of the cluster as its callers are to see it; for adapters, whose errors are the driver's too."""
        return error

    def _not_opened(self, caller: Caller, member: Member, error: BaseException, spent: float, late: bool) -> bool:
        """The node's pool gave no lease: whether another node may be tried."""
        core, now = self._core, self._clock()
        caller.tried = {*caller.tried, member}
        ticket = caller.ticket
        busy = isinstance(error, AcquireTimeout) and not isinstance(error, ServerUnavailable)
        if not isinstance(error, Exception) or isinstance(error, (ConfigError, UsageError)) or busy:
            return False  # and he gives up his place as whoever leaves
        if isinstance(error, (PoolClosed, PoolSuspended, PoolBusy)):  # taken out while he waited there
            self._submit(core.give_up, member, ticket, now)
            caller.outcome = None
            _forget_frames(error)
            return True
        self._submit(core.failed, member, ticket, error, spent, now)
        caller.outcome = None
        if late:
            return False
        _forget_frames(error)
        return True

    def _end(self, core: ClusterCore, member: Member, ticket: int, error: BaseException | None, since: float) -> None:
        """A lease has ended: its place passes on, the node gets the credit or the blame. Never waits."""
        if core is not self._core:
            return  # the parent process's
        now = self._clock()
        spent = now - since
        if error is None or isinstance(error, _FILES):
            self._submit(core.succeeded, member, ticket, spent, now)
        elif not isinstance(error, Exception):
            self._submit(core.give_up, member, ticket, now)  # cancelled: says nothing about the node
        else:
            verdict = self._verdict(member, error)
            if verdict is Verdict.RETIRE:
                self._submit(core.misled, member, ticket, error, spent, now)
            elif verdict is Verdict.KEEP:
                self._submit(core.succeeded, member, ticket, spent, now)
            elif verdict is Verdict.DISCARD and not isinstance(error, TimeoutError):
                self._submit(core.give_up, member, ticket, now)
            else:
                self._submit(core.failed, member, ticket, error, spent, now)

    def _verdict(self, member: Member, error: BaseException) -> Verdict:
        classify = self._classify_method or getattr(member.pool, "classify", None)
        if classify is None:
            engine = engine_of(member.pool)
            return default_classify(error) if engine is None else engine._verdict(error)
        try:
            verdict = classify(error)
        except Exception:
            logger.exception("%s: classify failed", self.name)
            return Verdict.DISCARD
        return verdict if isinstance(verdict, Verdict) else Verdict.DISCARD

    def _dropped(self, core: ClusterCore, member: Member, ticket: int) -> None:
        """Called by a finalizer: takes no lock; the next one at the lock does the work, and one who waits is woken."""
        if core is not self._core:
            return  # the parent process's
        self._inbox.append((core.give_up, (member, ticket, self._clock())))
        if self._runtime is not None:
            self._runtime.nudge(self)
        try:
            waiting = [next(iter(queue)) for queue in core.queues.values()]
        except (StopIteration, RuntimeError):  # nobody, or the queue is changing: then somebody is at the lock
            return
        for caller in waiting:
            if caller.parker is not None:
                caller.parker.wake()

    def _drop(self, member: Member) -> None:
        """An ejected node: its idle connections go, those who wait for one of its connections look elsewhere."""
        engine = engine_of(member.pool)
        if engine is not None:
            engine.suspend(fail_fast=True)
            engine.clear()
            engine.resume()

    def _role_after(self, member: Member, error: BaseException | None, role: str | None) -> None:
        """A look at a node's role has ended; a pool too busy to tell is no news."""
        if isinstance(error, AcquireTimeout) and not isinstance(error, ServerUnavailable):
            error, role = None, member.known_role
        self._decide(self._core.role_found, member, error, role, self._clock())

    # -- the end ------------------------------------------------------------------------------------------------------

    def _ending(self, timeout: float | None) -> Iterator[tuple[Any, float | None]]:
        """Admit nobody from now on. Each node's pool with the seconds that are left for it to end."""
        deadline = NEVER if timeout is None else self._clock() + timeout
        self._decide(self._core.close, self._clock())
        self._source.close()
        if self._runtime is not None:
            self._runtime.schedule(self, NEVER)  # nothing is due any more
        for member in (*self._core.members.values(), *self._core.leaving):
            yield member.pool, None if deadline == NEVER else max(0.0, deadline - self._clock())

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> ClusterConfig:
        """The settings in effect."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the cluster admits nobody any more."""
        return self._core.closed

    def stats(self) -> ClusterStats:
        """A frozen snapshot. Thread-safe; never waits for I/O."""
        self._drain()
        members = self._decide(lambda: (*self._core.members.values(), *self._core.leaving))
        nodes = tuple(node_stats(member, self._core.tiering) for member in members)
        waiting = self._decide(lambda: sum(len(queue) for queue in self._core.queues.values()))
        return ClusterStats(self.name, nodes, sum(node.leases for node in nodes), waiting, self._core.timeouts)

    def explain(self) -> str:
        """The state of the cluster in plain words."""
        return told(self.stats())

    def check_books(self) -> None:
        """Raise AssertionError unless the cluster's books balance. For tests."""
        self._drain()
        self._decide(self._core.check)

    def __repr__(self) -> str:
        core = self._core
        return f"<{type(self).__name__} {self.name!r} of {len(core.members)} nodes{', closed' if core.closed else ''}>"


def _forget_frames(error: BaseException) -> None:
    """Of an error that nobody gets: it is in a circle with the frames that have raised it, and the lease that the
    caller gets in the end would be held by that until the next collection, if he drops it.
    """
    error.__traceback__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None


def _is_duration(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value >= 0


def live_clusters() -> list[ClusterShell[Any]]:
    """Every cluster of this process that is neither closed nor collected."""
    with _clusters_lock:
        known = _lifecycle.snapshot(_clusters)
    return [cluster for cluster in known if not cluster.closed]


def _after_fork_in_child() -> None:
    global _clusters_lock
    _clusters_lock = threading.Lock()  # another thread of the parent may have held it
    for cluster in list(_clusters):
        cluster._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
