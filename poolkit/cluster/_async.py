"""The cluster for tasks, one text for asyncio and trio."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

from .._async import AsyncPool, current_runtime
from ..config import PoolConfig
from ..connector import AsyncConnector, Verdict
from ..errors import PoolClosed, WrongLoop
from ..policies.retire import NEVER
from ..runtimes.base import AsyncParker, AsyncRuntime
from ..runtimes.threads import ThreadRuntime
from ._config import ClusterConfig
from ._core import Caller, Do, Member
from ._events import ClusterListener
from ._leases import AsyncClusterLease, ClusterLeaseRequest
from ._node import Node
from ._nodepool import NodePool
from ._shell import DEFAULT, ClusterShell, Default
from .discovery import Discovery, Found

__all__ = ("AsyncCluster",)

C = TypeVar("C")

_THREADS = ThreadRuntime()


class AsyncCluster(ClusterShell[C]):
    """As :class:`~poolkit.cluster.Cluster`, for the tasks of one event loop (asyncio or trio).

    ``make`` gives :class:`~poolkit.AsyncConnector` objects or asynchronous pools; ``role_of`` may be a coroutine
    function. May be made outside of a loop: a discovery is asked for the first time by the first caller. ``find`` runs
    in a worker thread; where it is a coroutine function, in a task.
    """

    _pool_kind = AsyncPool

    def __init__(
        self,
        make: Callable[[Node], AsyncConnector[C] | AsyncPool[C] | NodePool],
        nodes: Iterable[Node | str] | Discovery,
        config: ClusterConfig | None = None,
        *,
        pool: PoolConfig | None = None,
        name: str | None = None,
        role_of: Callable[[C], str | Awaitable[str | None] | None] | None = None,
        classify: Callable[[BaseException], Verdict] | None = None,
        listeners: Iterable[ClusterListener] = (),
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: AsyncRuntime | None = None,
        **settings: Any,
    ) -> None:
        self._runtime: AsyncRuntime | None = runtime
        self._leases: dict[int, AsyncClusterLease[C]] = {}
        self._postponed: list[tuple[Do, Member]] = []
        super().__init__(
            make, nodes, config, settings, pool=pool, name=name, role_of=role_of, classify=classify,
            listeners=listeners, clock=clock, random=random,
        )  # fmt: skip
        if not isinstance(nodes, Discovery):
            self._take_found(self._source.find(None))

    def _after_fork(self) -> None:
        self._runtime = None  # the parent's loop does not run here
        super()._after_fork()

    def _here(self) -> AsyncRuntime:
        """The cluster's event loop, which must be the caller's."""
        runtime = self._runtime
        if runtime is not None and runtime.here():
            return runtime
        if runtime is not None and runtime.alive():
            raise self._translated(
                WrongLoop(f"{self.name}: this AsyncCluster lives on another event loop that is still running")
            )
        again = runtime is not None
        self._runtime = current_runtime()
        if again:
            self._after_loop()
        self._scheduled = NEVER
        self._keep_time()
        postponed, self._postponed = self._postponed, []
        for do, member in postponed:
            self._begin_job(do, member)
        return self._runtime

    def _after_loop(self) -> None:
        """The loop of before is gone, and with it all leases, probes and looks of the source."""
        ClusterShell._after_fork(self)

    # -- leases -------------------------------------------------------------------------------------------------------

    def lease(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> ClusterLeaseRequest[C]:
        """``async with cluster.lease() as connection: ...`` or ``lease = await cluster.lease()``.

        Arguments and errors as :meth:`poolkit.cluster.Cluster.lease`.
        """
        return ClusterLeaseRequest(lambda: self._lease_of(timeout, key, role, avoid))

    async def _lease_of(
        self, timeout: float | Default | None, key: Hashable, role: str | None, avoid: Iterable[str]
    ) -> AsyncClusterLease[C]:
        runtime = self._here()
        now = self._clock()
        deadline = self._deadline(timeout, now)
        caller = Caller(role, key, now)
        if role is not None or avoid:
            self._restrict(caller, avoid)
        if self._found is None:
            await self._find_first(deadline)
            now = self._clock()
        parker: AsyncParker | None = None
        try:
            while True:
                self._decide(self._core.acquire, caller, now)
                while caller.outcome is None:
                    if parker is None:
                        parker = caller.parker = runtime.parker()
                        continue  # served before there was somebody to wake?
                    left = deadline - self._clock()
                    if left > 0:
                        await parker.wait(None if deadline == NEVER else left)
                    self._drain()
                    now = self._clock()
                    if now >= deadline:
                        error = self._decide(self._expire, caller, now)
                        if error is not None:
                            raise self._translated(error)
                if not isinstance(caller.outcome, Member):
                    raise self._translated(caller.outcome)
                lease = await self._open(caller, caller.outcome, deadline, now)
                if lease is not None:
                    return lease
                now = self._clock()
        except BaseException:
            self._decide(self._core.abandon, caller, self._clock())
            raise

    async def _open(self, caller: Caller, member: Member, deadline: float, now: float) -> AsyncClusterLease[C] | None:
        """A lease out of the node's pool; None if another node is to be tried."""
        left = None if deadline == NEVER else max(0.0, deadline - now)
        try:
            inner = await member.pool.lease(left)
        except BaseException as error:
            later = self._clock()
            if self._not_opened(caller, member, error, later - now, late=later >= deadline):
                return None
            raise
        lease = AsyncClusterLease(self, member, now)
        lease.connection = inner.connection
        lease._inner = inner
        lease._ticket = caller.ticket  # the place is the lease's from here on (and for a moment also the caller's)
        caller.outcome = None
        return lease

    async def acquire(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> C:
        """A connection, to be given back with :meth:`release`. Arguments and errors as :meth:`lease`."""
        lease = await self.lease(timeout, key=key, role=role, avoid=avoid)
        self._leases[id(lease.connection)] = lease
        return lease.connection

    async def release(self, connection: C, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Give back what :meth:`acquire` gave. Raises :class:`~poolkit.NotLeased` for any other object, or twice."""
        await self._on_lease(connection).close(discard=discard, error=error)

    # -- background work ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._runtime is not None:  # else on the first use
            self._scheduled = min(self._core.due, self._find_at)
            self._runtime.schedule(self, max(0.0, self._scheduled - self._clock()))

    def _begin_job(self, do: Do, member: Member) -> None:
        if do is Do.DROP:
            self._drop(member)
            return
        if self._runtime is None:
            self._postponed.append((do, member))  # until there is a loop: on the first use
            return
        job = {Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain_node}[do]
        self._runtime.spawn(job, member)

    async def _probe(self, member: Member) -> None:
        """Open connections one after another, ask for the role."""
        error: BaseException | None = None
        role = member.known_role
        leases: list[Any] = []
        try:
            if hasattr(member.pool, "probe"):
                await member.pool.probe(self._config.probe_timeout)
            for _ in range(max(1, min(self._config.warm_up, int(min(member.places(), 1e9))))):
                leases.append(await member.pool.lease(self._config.probe_timeout))  # noqa: PERF401  kept if one fails
            if self._role_of is not None:
                role = await self._bounded_role(leases[0].connection)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            for lease in leases:
                await lease.close(error=error)
            self._decide(self._core.probed, member, error, role, self._clock())

    async def _role(self, connection: C) -> str | None:
        assert self._role_of is not None
        role = self._role_of(connection)
        return await role if inspect.isawaitable(role) else cast("str | None", role)

    async def _look_up_role(self, member: Member) -> None:
        error: BaseException | None = None
        role: str | None = None
        try:
            lease = await member.pool.lease(self._config.probe_timeout)
            try:
                role = await self._bounded_role(lease.connection)
            except BaseException as failure:
                error = failure
                raise
            finally:
                await lease.close(error=error)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            self._role_after(member, error, role)

    async def _bounded_role(self, connection: C) -> str | None:
        runtime: Any = self._runtime
        role: str | None = await runtime.bounded(self._config.probe_timeout, self._role, connection)
        return role

    async def _drain_node(self, member: Member) -> None:
        try:
            await member.pool.drain(self._config.drain_timeout)
        finally:
            self._decide(self._core.drained, member)

    # -- discovery ----------------------------------------------------------------------------------------------------

    async def _find_first(self, deadline: float) -> None:
        """The first answer, for which the first callers wait."""
        answers: list[tuple[Found | None, BaseException | None]] = []
        runtime = self._here()
        parker = runtime.parker()
        if inspect.iscoroutinefunction(self._source.find):
            answers.append((await self._source.find(None), None))
        else:
            _THREADS.spawn(_look, self._source, None, answers, parker)
            while not answers:
                left = deadline - self._clock()
                if left <= 0:
                    raise TimeoutError(f"{self.name}: the discovery has not answered in time")
                await parker.wait(None if deadline == NEVER else left)
        found, error = answers[0]
        if error is not None:
            raise error
        assert found is not None
        if self._found is None:  # else another caller was faster
            self._take_found(found)
            self._keep_time()

    def _begin_find(self) -> None:
        cast("AsyncRuntime", self._runtime).spawn(_find, weakref.ref(self), self._source, self._found)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = 30.0) -> bool:
        """Admit nobody, let the leases end within ``timeout`` seconds, cut the rest, close. True if none was cut."""
        whole = True
        for pool, left in self._ending(timeout):
            whole = bool(await pool.drain(left)) and whole
        return whole

    async def close(self, timeout: float | None = 5.0) -> None:
        """Wake all who wait with :class:`~poolkit.PoolClosed` and close every node's pool. Idempotent."""
        for pool, left in self._ending(timeout):
            await pool.close(left)

    async def __aenter__(self) -> AsyncCluster[C]:
        if self.closed:
            raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
        self._here()
        if self._found is None:
            await self._find_first(NEVER)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _look(
    source: Discovery,
    last: Found | None,
    answers: list[tuple[Found | None, BaseException | None]],
    parker: AsyncParker,
) -> None:
    """One look of the source, in a worker thread."""
    try:
        answers.append((source.find(last), None))
    except Exception as error:  # noqa: BLE001  the cluster tells it
        answers.append((None, error))
    parker.wake()


async def _find(ref: weakref.ref[AsyncCluster[Any]], source: Discovery, last: Found | None) -> None:
    """One look of the source that keeps no cluster alive: in a worker thread, or here if it is a coroutine."""
    answers: list[tuple[Found | None, BaseException | None]] = []
    if inspect.iscoroutinefunction(source.find):
        try:
            answers.append((await source.find(last), None))
        except Exception as error:  # noqa: BLE001  the cluster tells it
            answers.append((None, error))
    else:
        parker = current_runtime().parker()
        _THREADS.spawn(_look, source, last, answers, parker)
        while not answers:
            await parker.wait(None)
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._after_find(*answers[0])
