"""A logical host: one name in the URLs, several servers behind it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from poolkit import BackoffConfig, ConfigError, Verdict
from poolkit.cluster import (
    AsyncCluster,
    AsyncClusterLease,
    AsyncNodeLease,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterLease,
    ClusterSettings,
    Discovery,
    Node,
    NodeLease,
    NodePool,
    NoNodeAvailable,
)
from poolkit.config import NodePoolSettings, Source, is_whole, whole
from poolkit.errors import without_quotes
from poolkit.settings import combine, layer_of

from .._cluster_options import parameters_of, split_cluster_options
from .._errors import Row
from ._client import TransportKeywords
from ._driver import DRIVER, Reopening, httpx
from ._errors import ERRORS, RequestError, refuse_foreign
from ._transport import AsyncPoolkitTransport, PoolkitTransport

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncPoolkitClusterTransport", "NoServerAvailable", "PoolkitClusterTransport")

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PUT", "DELETE"))
"""RFC 9110, 9.2.2: sending these twice has the same effect as sending them once."""
BAD = frozenset((502, 503, 504))
"""Responses with which a server reports that it cannot do its work."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError)


class NoServerAvailable(RequestError, NoNodeAvailable, httpx.ConnectError):
    """No server of the logical host is available. ``errors`` holds the last error of each server."""

    def __init__(self, message: str, errors: dict[str, BaseException | None] | None = None) -> None:
        httpx.RequestError.__init__(self, message)
        self.args = (message, errors)
        self.errors = errors or {}


class _BadAnswer(Exception):
    """Tells the cluster that the response counts as a failure of the server."""


CLUSTER_ERRORS = ERRORS.with_rows(
    Row("logical hosts: no server is available; `errors` holds the last error of each server", NoServerAvailable,
        (NoNodeAvailable, httpx.ConnectError)),
)  # fmt: skip
"""Every error that a logical host raises."""


def _judge(error: BaseException) -> Verdict:
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ReadTimeout, _BadAnswer)):
        return Verdict.SUSPECT
    return Verdict.KEEP


def _origin(node: Node) -> httpx.URL:
    try:
        url = httpx.URL(node.address if "://" in node.address else f"//{node.address}")
    except httpx.InvalidURL as error:
        raise ConfigError(f"node {node.name!r}: address={node.address!r}: {without_quotes(error)}", "address") from None
    if url.scheme not in ("", "http", "https") or not url.host or url.path not in ("", "/"):
        raise ConfigError(f"node {node.name!r}: address={node.address!r}: must be host:port or http(s)://host:port",
                          "address")  # fmt: skip
    return url


def _readdressed(request: httpx.Request, origin: httpx.URL, keep_host: bool) -> httpx.Request:
    """Return the request for one server. With ``keep_host`` the Host header and TLS keep the logical name."""
    url = request.url.copy_with(scheme=origin.scheme or request.url.scheme, host=origin.host, port=origin.port)
    extensions = dict(request.extensions)
    headers = request.headers
    if keep_host:
        extensions.setdefault("sni_hostname", request.url.host)
    else:
        headers = httpx.Headers([(k, v) for k, v in request.headers.raw if k.lower() != b"host"])
        headers["Host"] = url.netloc.decode("ascii")
    return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)


def _again(request: httpx.Request, error: BaseException | None) -> bool:
    """Return whether the request may be sent to another server: it was never sent, or repeating it is safe."""
    if isinstance(error, _NEVER_SENT):
        return True
    repeatable = request.method in IDEMPOTENT and isinstance(request.stream, httpx.ByteStream)
    return repeatable and (error is None or isinstance(error, _LOST))


def _pool_timeout(request: httpx.Request) -> dict[str, Any]:
    timeout = request.extensions.get("timeout", {})
    return {"timeout": timeout["pool"]} if "pool" in timeout else {}


class _Held(httpx.SyncByteStream):
    """The body of a response. Its close ends the lease."""

    def __init__(self, stream: Any, lease: ClusterLease[Any], error: BaseException | None) -> None:
        self._stream = stream
        self._lease = lease
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except BaseException as error:
            self._error = error
            raise

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._lease.close(error=self._error)


class _AsyncHeld(httpx.AsyncByteStream):
    def __init__(self, stream: Any, lease: AsyncClusterLease[Any], error: BaseException | None) -> None:
        self._stream = stream
        self._lease = lease
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._stream:
                yield part
        except BaseException as error:
            self._error = error
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._lease.close(error=self._error)


class _Certificates:
    """The TLS context of all servers of a logical host, created when the first request needs it.

    Reading the certificates takes 20 to 70 ms. With one context for each new server, an update of the nodes would
    block an event loop for that time multiplied by their number, even for plain HTTP.
    """

    def __init__(self, verify: Any = True, cert: Any = None, trust_env: bool = True) -> None:
        self._make = partial(httpx.create_ssl_context, verify=verify, cert=cert, trust_env=trust_env)
        self._lock = threading.Lock()
        self.none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        """A context without trusted certificates. httpcore's pools need one at once, and would otherwise create one."""
        self.context: ssl.SSLContext | None = None
        if cert is not None or not isinstance(verify, bool):  # the user's files or objects: raise errors now
            self.load()

    def load(self) -> None:
        """Create the context once. Thread-safe. Blocks while it reads the certificates."""
        held = self._lock.acquire(timeout=5.0)  # with a limit, because another thread may have held it during a fork
        try:
            if self.context is None:
                self.context = self._make()
        finally:
            if held:
                self._lock.release()


class _ServerBase(NodePool):
    classify = staticmethod(_judge)

    def __init__(
        self, node: Node, transport: Any, places: int | None, health: str | None, certificates: _Certificates
    ) -> None:
        self.origin = _origin(node)
        self.transport = transport
        self._certificates = certificates
        self.poolkit = transport.poolkit
        self.health = health
        if places is not None:
            self.places = lambda: places

    def _where(self) -> tuple[str, int]:
        return self.origin.host, self.origin.port or (443 if self.origin.scheme == "https" else 80)

    def _lacks_context(self, request: httpx.Request) -> bool:
        """Return whether the request needs the TLS context and there is none yet."""
        if request.url.scheme != "https":
            return False
        pool = self.transport._pool
        if pool._ssl_context is self._certificates.none and self._certificates.context is not None:
            pool._ssl_context = self._certificates.context
        return pool._ssl_context is self._certificates.none

    def _health_request(self, timeout: float) -> httpx.Request:
        url = self.origin.copy_with(scheme=self.origin.scheme or "http").join(self.health or "/")
        times = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
        return httpx.Request("GET", url, extensions={"timeout": times})


class _Server(_ServerBase):
    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request to this server."""
        if self._lacks_context(request):
            self._certificates.load()
            self._lacks_context(request)
        response: httpx.Response = self.transport.handle_request(request)
        return response

    def lease(self, timeout: float | None) -> NodeLease[_Server]:
        return NodeLease(self)  # permits one request; the transport manages its connections itself

    def probe(self, timeout: float) -> None:
        """Connect to the server, or request its health path, which must return a status below 500."""
        if self.health is None:
            socket.create_connection(self._where(), timeout).close()
            return
        answer = self.send(self._health_request(timeout))
        answer.close()
        if answer.status_code >= 500:
            raise _BadAnswer(f"health check of {self.health} returned status {answer.status_code}")


class _AsyncServer(_ServerBase):
    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request to this server."""
        if self._lacks_context(request):
            await anyio.to_thread.run_sync(self._certificates.load)
            self._lacks_context(request)
        response: httpx.Response = await self.transport.handle_async_request(request)
        return response

    async def lease(self, timeout: float | None) -> AsyncNodeLease[_AsyncServer]:
        return AsyncNodeLease(self)

    async def probe(self, timeout: float) -> None:
        """Connect to the server, or request its health path, which must return a status below 500."""
        if self.health is None:
            with anyio.fail_after(timeout):
                stream = await anyio.connect_tcp(*self._where())
            await stream.aclose()
            return
        answer = await self.send(self._health_request(timeout))
        await answer.aclose()
        if answer.status_code >= 500:
            raise _BadAnswer(f"health check of {self.health} returned status {answer.status_code}")


class _ServerCluster(Cluster[Any]):
    _translated = staticmethod(CLUSTER_ERRORS.translated)


class _AsyncServerCluster(AsyncCluster[Any]):
    _translated = staticmethod(CLUSTER_ERRORS.translated)


K = TypeVar("K", Cluster[Any], AsyncCluster[Any])


class _HostKeywords(ClusterSettings, NodePoolSettings, TransportKeywords, total=False):
    """The settings of the cluster and of its pools, and the arguments of its transports, as keywords."""


class _LogicalHost(Generic[K]):
    """What both transports share: their arguments, and the cluster created from them."""

    _parts: tuple[Any, Any, Any]  # the classes of the transports, the servers and the cluster

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        *,
        retries: int = 1,
        keep_host: bool = True,
        health: str | None = None,
        max_requests: int | None = None,
        cluster: ClusterConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **transport_options: Unpack[_HostKeywords],
    ) -> None:
        self._retries, self._keep_host = _checked(retries, max_requests), keep_host
        own, options = _split(_without_pauses({**transport_options}))
        certificates = _Certificates(**_take(options, "verify", "cert", "trust_env"))

        transport_kind, server_kind, cluster_kind = self._parts

        def make(node: Node) -> Any:
            transport = transport_kind(verify=certificates.none, name=f"{name or DRIVER}/{node.name}", **options)
            return server_kind(node, transport, max_requests, health, certificates)

        heard = tuple(listeners)
        self._nodes = nodes
        self._reopening: Reopening[K] = Reopening(
            lambda: cluster_kind(make, self._nodes, cluster, name=name, listeners=heard, **own)
        )

    @property
    def cluster(self) -> K:
        """The cluster: ``stats()``, ``explain()``, ``update()``, ..."""
        return self._reopening.get()

    def _take_cluster(self) -> K | None:
        """Remove and return the cluster, which the caller must close. The next one starts with its current nodes."""
        cluster = self._reopening.take()
        if cluster is not None and not isinstance(self._nodes, Discovery):
            self._nodes = cluster.nodes
        return cluster


class PoolkitClusterTransport(_LogicalHost[Cluster[Any]], httpx.BaseTransport):
    """A logical host for several servers, each with a :class:`PoolkitTransport`. Mount it under its name::

        users = PoolkitClusterTransport(["10.0.0.1:8000", "10.0.0.2:8000"])
        client = httpx.Client(mounts={"all://users": users})
        client.get("http://users/1")

    Each request goes to a server that the cluster chooses. A request that was never sent (the connect failed) goes to
    another server, up to ``retries`` times. So does a repeatable request (an idempotent method, a body in memory) if
    the connection breaks before the response, or the response is 502, 503 or 504. Failures of a server (failed
    connects and connections, read timeouts, those responses) eject it as in any cluster. It returns when it accepts a
    connection, or returns a status below 500 for the path ``health``.

    The wait for a free slot is limited by ``httpx.Timeout(pool=)``. ``request.extensions["poolkit_key"]`` is the
    ``key`` of the lease. Thread-safe.

    Args:
        nodes: ``host:port`` or ``http(s)://host:port``, :class:`~poolkit.cluster.Node` objects, or a discovery.
        retries: number of further servers to try.
        keep_host: whether the Host header and the TLS certificate use the name in the URL. If False, they use the
            server's.
        health: path for health checks. None: a connect is enough.
        max_requests: requests to one server at the same time. None: as many as its connections allow.
        cluster: settings of the cluster. Single ones may be given as keywords, which override it.
        name: name of the cluster, for messages, statistics and events.
        listeners: functions called for each :class:`~poolkit.cluster.ClusterEvent`.
        transport_options: all other keywords are those of :class:`PoolkitTransport`.

    Raises:
        ConfigError: a wrong setting, or a keyword that neither knows.
    """

    _parts = (PoolkitTransport, _Server, _ServerCluster)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to one of the servers. Raises httpx's errors and :class:`NoServerAvailable`."""
        refuse_foreign(self, request)
        tried: list[str] = []
        cluster = self._reopening.get()
        while True:
            started = time.monotonic()
            lease = cluster.lease(key=request.extensions.get("poolkit_key"), avoid=tried, **_pool_timeout(request))
            try:
                server: _Server = lease.connection
                readdressed = _readdressed(request, server.origin, self._keep_host)
                response = server.send(readdressed)
            except BaseException as error:
                lease.close(error=error)
                if not _again(request, error) or _is_last_try(cluster, lease, tried, self._retries):
                    if isinstance(error, httpx.RequestError):
                        error.request = request
                    raise
            else:
                bad = _BadAnswer(f"returned status {response.status_code}") if response.status_code in BAD else None
                if bad is None or not _again(request, None) or _is_last_try(cluster, lease, tried, self._retries):
                    response.stream = _Held(response.stream, lease, bad)
                    return response
                try:
                    response.close()
                finally:  # it may raise LeaseOverdue, and an interruption may strike in it
                    lease.close(error=bad)
            tried.append(lease.node.name)
            _shorten(request, time.monotonic() - started)

    def close(self) -> None:
        """Close all connections, including those in use, as :class:`PoolkitTransport` does. Waiting requests fail.

        A later request opens the transport again, with the current nodes.
        """
        cluster = self._take_cluster()
        if cluster is not None:
            cluster.drain(0)
            cluster.close()


class AsyncPoolkitClusterTransport(_LogicalHost[AsyncCluster[Any]], httpx.AsyncBaseTransport):
    """The twin of :class:`PoolkitClusterTransport` for ``httpx.AsyncClient``, on asyncio and trio. Task-safe."""

    _parts = (AsyncPoolkitTransport, _AsyncServer, _AsyncServerCluster)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to one of the servers. Raises httpx's errors and :class:`NoServerAvailable`."""
        refuse_foreign(self, request)
        tried: list[str] = []
        cluster = self._reopening.get()
        while True:
            started = time.monotonic()
            key = request.extensions.get("poolkit_key")
            lease = await cluster.lease(key=key, avoid=tried, **_pool_timeout(request))
            try:
                server: _AsyncServer = lease.connection
                readdressed = _readdressed(request, server.origin, self._keep_host)
                response = await server.send(readdressed)
            except BaseException as error:
                await lease.close(error=error)
                if not _again(request, error) or _is_last_try(cluster, lease, tried, self._retries):
                    if isinstance(error, httpx.RequestError):
                        error.request = request
                    raise
            else:
                bad = _BadAnswer(f"returned status {response.status_code}") if response.status_code in BAD else None
                if bad is None or not _again(request, None) or _is_last_try(cluster, lease, tried, self._retries):
                    response.stream = _AsyncHeld(response.stream, lease, bad)
                    return response
                try:
                    await response.aclose()
                finally:  # also after LeaseOverdue or a cancellation
                    await lease.close(error=bad)
            tried.append(lease.node.name)
            _shorten(request, time.monotonic() - started)

    async def aclose(self) -> None:
        """Close all connections, including those in use. See :meth:`PoolkitClusterTransport.close`."""
        cluster = self._take_cluster()
        if cluster is not None:
            await cluster.drain(0)
            await cluster.close()


_OF_TRANSPORTS = parameters_of(PoolkitTransport) - {"name", "listeners", "settings"}


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into the cluster's and each transport's settings. ``acquire_timeout`` applies to both."""
    own, of_pool, rest = split_cluster_options(options, _OF_TRANSPORTS)
    both = {name: value for name, value in own.items() if name == "acquire_timeout"}
    return own, {**rest, **of_pool, **both}


_NO_PAUSE = BackoffConfig(base=1e-6, cap=1e-6)
_OF_CLUSTERS = Source("the default of logical hosts", written=False)


def _without_pauses(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with a backoff that is over at once, unless one is given.

    The cluster ejects a server after so many failed connects. During a backoff the requests that are sent to the server
    get the error of the last connect, which counts once. So a dead server would stay in use the longer, the shorter the
    time between requests is.
    """
    config = options.get("config")
    given = layer_of(config)
    if "backoff" in options or "backoff" in given:
        return options
    return {**options, "config": combine({**given, "backoff": (_NO_PAUSE, _OF_CLUSTERS)}, base=config)}


def _take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove these names from the options, and return them with their values."""
    return {name: options.pop(name) for name in names if name in options}


def _is_last_try(
    cluster: Cluster[Any] | AsyncCluster[Any],
    lease: ClusterLease[Any] | AsyncClusterLease[Any],
    tried: list[str],
    retries: int,
) -> bool:
    """Return whether the request must not be sent to another server."""
    return len(tried) >= retries or cluster.closed or not _others(cluster, {*tried, lease.node.name})


def _others(cluster: Cluster[Any] | AsyncCluster[Any], gone: set[str]) -> bool:
    """Return whether there is a usable server besides these."""
    return any(node.state == "usable" and node.name not in gone for node in cluster.stats().nodes)


def _checked(retries: Any, max_requests: Any) -> int:
    if not is_whole(retries):
        raise ConfigError(f"retries={retries!r}: must be the number of further servers to try, 0 or more", "retries")
    whole("max_requests", max_requests, 1, none="no limit")
    return retries


def _shorten(request: httpx.Request, spent: float) -> None:
    """Reduce the wait for a slot at the next server by the seconds spent so far."""
    timeout = request.extensions.get("timeout")
    if timeout and timeout.get("pool") is not None:
        left = max(0.0, timeout["pool"] - spent)
        request.extensions = {**request.extensions, "timeout": {**timeout, "pool": left}}
