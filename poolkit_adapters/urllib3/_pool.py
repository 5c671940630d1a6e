"""The pool of one host: urllib3's interface on poolkit's engine."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3 import exceptions

from poolkit import Lease, Pool, PoolConfig, PoolError, errors
from poolkit.errors import AcquireTimeout, LeaseOverdue
from poolkit.events import Listener

from .._options import split_options
from ._connector import URLLib3Connector, lost
from ._errors import ERRORS, PoolClosed, told
from ._limits import limit_connect, limited, time_left
from ._link import Link, ambiguous
from ._response import give_back_at_end
from ._settings import MAXSIZE, check_words, order_of, words_of
from ._share import Share
from ._timeout import Timeout

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._keywords import PoolKeywords

__all__ = ("LIBRARIES", "Pooled", "PoolkitHTTPConnectionPool", "PoolkitHTTPSConnectionPool", "pooled")

_DEFAULT: Any = urllib3.Timeout.DEFAULT_TIMEOUT
_AFTER_URL = ("body", "headers", "retries", "timeout", "chunked", "response_conn")
"""Arguments of ``_make_request`` after the URL, up to the last one that is read here."""
_BEFORE_TIMEOUT = 6
"""Arguments of ``urlopen`` after the URL, up to ``timeout``."""
LIBRARIES = frozenset({"poolkit_adapters", "urllib3", "builtins"})
"""Packages whose classes take only the arguments that their signatures list."""
_REPLAYS = 3
"""How often a request is sent again, at most, because its connection was closed."""

# RFC 9110, 9.2.2: these may be sent again if the connection died and it is unknown whether they arrived
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PUT", "DELETE"})


class _Again(Exception):
    """Signals that a request must be sent again on another connection. urllib3 does not catch it."""


class _TooLate(Exception):
    """Carries the error of a request whose connection did not open in time. urllib3 does not catch it.

    urllib3 would take poolkit's error, a TimeoutError, for a failed connect of a proxy and try again.
    """

    def __init__(self, error: PoolError) -> None:
        super().__init__(error)
        self.error = error


class _Attempt:
    """One call of ``urlopen``, with its connection until a response or the pool has taken it over."""

    __slots__ = ("conn", "failure", "pool", "replays", "wait")

    def __init__(self, pool: Any, wait: Any) -> None:
        self.pool = pool
        self.wait = wait  # seconds for a connection, unless ``pool_timeout`` says otherwise; or urllib3's default
        self.conn: Any = None
        self.failure: type[PoolError] | None = None  # poolkit's type of the last failure, if a connect failed
        self.replays = 0


_attempt: ContextVar[_Attempt | None] = ContextVar("poolkit_urllib3_attempt", default=None)


class _Places:
    """A replacement for the queue of a pool, for programs that read it."""

    def __init__(self, pool: Any, maxsize: int) -> None:
        self._pool = weakref.ref(pool)
        self.maxsize = maxsize

    @property
    def queue(self) -> list[Any]:
        """The idle connections."""
        pool = self._pool()
        if pool is None:
            return []
        out = set(pool._leases)
        return [link.connection for link in list(pool._links.values()) if id(link.connection) not in out]

    def qsize(self) -> int:
        """Return how many requests would get a connection without waiting; without a limit, up to ``maxsize``."""
        pool = self._pool()
        if pool is None:
            return 0
        limit = pool._engine.config.max_size
        return max(0, (self.maxsize if limit is None else limit) - len(pool._leases))


def _close_all(links: dict[int, Link]) -> None:
    for link in list(links.values()):
        link.close()


class Pooled:
    """Base class that puts a pool of urllib3 on poolkit's engine. Must come before urllib3's class among the bases."""

    host: str
    key: Any = None
    """The pool key, if a manager has made the pool."""
    pool: Any
    port: int | None
    scheme: str
    timeout: Any

    def __init__(
        self,
        host: str,
        port: int | None = None,
        timeout: Any = _DEFAULT,
        maxsize: int = MAXSIZE,
        block: bool | None = None,
        *args: Any,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        _share: Share | None = None,
        **options: Unpack[PoolKeywords],
    ) -> None:
        settings, driver = split_options(options)
        if _share is None:
            self._check(driver)
            _share = Share(config, settings, name=name, listeners=listeners, debug=debug)
        self._leases: dict[int, Lease[Link]] = {}  # by the id of the connection
        base: Any = super()
        chosen = _share.config(maxsize, block, order_of(getattr(self, "QueueCls", None)))
        given = {"timeout": timeout, "maxsize": int(maxsize), "block": chosen.max_size is not None}
        if args:
            base.__init__(host, port, *given.values(), *args, **driver)
        else:  # by name: a class of the application may have other parameters at these positions
            base.__init__(host, port, **given, **driver)
        self.pool = _Places(self, int(maxsize))  # urllib3's own queue stays empty
        where = f"[{self.host}]" if ":" in self.host else self.host
        label = f"{self.scheme}://{where}" + ("" if self.port is None else f":{self.port}")
        connector = URLLib3Connector(self, _share.errors.of(LeaseOverdue))
        self._links = connector.links
        self._engine: Pool[Link] = _share.engine(connector, label, chosen)
        weakref.finalize(self, _close_all, self._links)

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ConfigError for an argument that neither urllib3's class nor its connection class takes.

        A class of the application may take further arguments, for example in its ``_new_conn()``.
        """
        kind: Any = getattr(self, "ConnectionCls", None)
        of_pool = words_of(type(self))[0] | words_of(type(self), after=Pooled)[0]
        of_connections, complete = words_of(kind) if isinstance(kind, type) else (set(), False)
        known = complete and all(one.__module__.partition(".")[0] in LIBRARIES for one in type(self).__mro__)
        check_words(options, of_pool | of_connections, all_known=known)

    @property
    def poolkit(self) -> Pool[Link]:
        """The engine of this host: ``stats()``, ``explain()``, ``reconfigure()``, ``clear()``, ``suspend()``, ..."""
        return self._engine

    def close(self) -> None:
        """Close idle connections, and those in use when their responses end. Later requests fail."""
        self.pool = None
        self._engine.close()

    # -- a request ------------------------------------------------------------------------------------------------

    def urlopen(self, method: str, url: str, *args: Any, **given: Any) -> Any:
        """Get a connection and send a request. Arguments and result as with urllib3.

        ``pool_timeout``: seconds to wait for a connection (None: ``Timeout(pool=)``, else ``acquire_timeout``). Raises
        urllib3's errors; those about connections are also poolkit's. Thread-safe.
        """
        limits = given.get("timeout", _DEFAULT) if len(args) < _BEFORE_TIMEOUT else args[_BEFORE_TIMEOUT - 1]
        if limits is _DEFAULT:
            limits = self.timeout
        outer = _attempt.get()
        if outer is not None and outer.pool is self:
            outer.failure = None  # this call is the next attempt of the outer one, so the earlier failure is obsolete
        attempt = _Attempt(self, limits.wait(_DEFAULT) if isinstance(limits, Timeout) else _DEFAULT)
        token = _attempt.set(attempt)
        base: Any = super()
        try:
            while True:
                try:
                    # pass the arguments unchanged: programs that wrap or override urlopen look for them in the keywords
                    response = base.urlopen(method, url, *args, **given)
                    attempt.conn = None  # the response owns the connection now
                    return response
                except _Again:
                    attempt.replays += 1
                except _TooLate as late:
                    raise late.error from late.__cause__
                except Exception as error:
                    if attempt.failure is None or isinstance(error, PoolError):
                        raise
                    raised = told(error, attempt.failure)
                    raise raised from raised.__cause__
        finally:
            _attempt.reset(token)
            if attempt.conn is not None:  # interrupted before urllib3 could return the connection
                lease = self._leases.pop(id(attempt.conn), None)
                if lease is not None:
                    lease.close(discard=True)

    def _mine(self) -> _Attempt | None:
        attempt = _attempt.get()
        return attempt if attempt is not None and attempt.pool is self else None

    def _get_conn(self, timeout: float | None = None) -> Any:
        """Lease a connection on which a request may be sent, within ``timeout`` seconds (None: the request's, else
        ``acquire_timeout``).
        """
        engine = self._engine
        if self.pool is None:
            raise PoolClosed(f"{engine.name}: the pool is closed")
        attempt = _attempt.get()
        if attempt is not None and attempt.pool is not self:
            attempt = None
        limit: Any = _DEFAULT if attempt is None else attempt.wait
        if timeout is not None:
            limit = timeout
        wait, asked = limit, time.monotonic()
        while True:
            try:
                lease = engine.lease() if wait is _DEFAULT else engine.lease(wait)
            except PoolError as error:
                raise self._refused(error, attempt) from error.__cause__
            link = lease.connection
            if link.ready():
                break
            lease.close(discard=True)  # meanwhile the server has closed it, or sent data without a request
            most = engine.config.acquire_timeout if limit is _DEFAULT else limit
            wait = None if most is None else max(0.0, asked + most - time.monotonic())
        if limit is _DEFAULT and not link.opened:
            link.asked = asked
        conn = link.connection
        self._leases[id(conn)] = lease
        if attempt is not None:
            attempt.conn = conn
        return conn

    def _refused(self, error: PoolError, attempt: _Attempt | None) -> PoolError:
        raised: Any = ERRORS.adapted(error)
        if isinstance(raised, exceptions.PoolError):
            raised.pool = self
        if attempt is not None and isinstance(raised, errors.CircuitOpen):
            attempt.failure = errors.CircuitOpen  # urllib3 treats it as a failed connect
        return raised  # type: ignore[no-any-return]

    def _put_conn(self, conn: Any) -> None:
        """Return a connection to the pool. Close one that does not belong to it.

        None: the connection of the running request, which urllib3 has closed.
        """
        attempt = self._mine()
        if conn is None:
            conn = None if attempt is None else attempt.conn
            if conn is None:
                return
        if attempt is not None and attempt.conn is conn:
            attempt.conn = None
        lease = self._leases.pop(id(conn), None)
        if lease is None:
            conn.close()
            return
        try:
            lease.close(discard=not lease.connection.reusable())
        except LeaseOverdue as overdue:
            if overdue.__context__ is None:  # it must not replace another error
                raise

    def _opened(self, conn: Any) -> None:
        """Tell the engine that the connection is open."""
        lease = self._leases.get(id(conn))
        if lease is not None and not lease.connection.opened:
            lease.connection.opened = True
            lease.set_capacity(1)

    def _prepare_proxy(self, conn: Any) -> None:
        base: Any = super()
        if conn.timeout in (None, _DEFAULT):
            conn.timeout = self._engine.config.connect_timeout or conn.timeout
        lease = self._leases.get(id(conn))
        try:
            with limited(conn, None if lease is None else lease.connection, self._engine.config):
                base._prepare_proxy(conn)
        except BaseException as error:
            self._failed(conn, "CONNECT", None, error)
            raise
        self._opened(conn)

    def _validate_conn(self, conn: Any) -> None:
        base: Any = super()
        lease = self._leases.get(id(conn))
        if lease is None or lease.connection.opened:
            base._validate_conn(conn)
            return
        with limited(conn, lease.connection, self._engine.config):
            base._validate_conn(conn)
            if conn.is_closed:  # connect here: while sending, a failed connect would look like a failed request
                conn.connect()
        self._opened(conn)

    def _make_request(self, conn: Any, method: str, url: str, *args: Any, **given: Any) -> Any:
        base: Any = super()
        read = {**dict(zip(_AFTER_URL, args, strict=False)), **given} if args else given
        lease = self._leases.get(id(conn))
        if lease is not None and not lease.connection.opened:
            limit_connect(read.get("timeout"), self._engine.config)
        try:
            response = base._make_request(conn, method, url, *args, **given)
        except BaseException as error:
            self._failed(conn, method, read.get("body"), error)
            raise
        if lease is not None:
            link = lease.connection
            link.answered = True
            link.response = getattr(response, "_original_response", None)
            link.spent = response.status < 200 or (response.chunked and ambiguous(response))
            if read.get("response_conn") is not None:
                attempt = self._mine()
                if attempt is not None and attempt.conn is conn:
                    attempt.conn = None  # the response owns the connection from now on
                give_back_at_end(response)
        return response

    def _failed(self, conn: Any, method: str, body: Any, error: BaseException) -> None:
        """End the lease before urllib3 sleeps until the next attempt. Raises _Again to have the request sent again, and
        _TooLate to end the request if its connection did not open within ``acquire_timeout``.
        """
        lease = self._leases.pop(id(conn), None)
        if lease is None:
            return
        link, attempt = lease.connection, self._mine()
        through_proxy = conn.has_connected_to_proxy
        link.close()
        conn._has_connected_to_proxy = through_proxy  # urllib3 reads it to decide whether to raise a ProxyError
        late = isinstance(error, (TimeoutError, exceptions.TimeoutError))
        late = late and not link.opened and not isinstance(error, exceptions.NewConnectionError)
        if attempt is not None:
            attempt.conn = None
            if not link.opened and isinstance(error, Exception):
                attempt.failure = errors.ConnectTimeout if late else errors.ConnectFailed
        try:
            lease.close(error=error)
        except LeaseOverdue:
            pass  # it must not replace ``error``
        left = time_left(link, self._engine.config) if late else None
        if left is not None and left <= 0:
            waited = time.monotonic() - (link.asked or 0.0)
            words = f"{self._engine.name}: no connection in {waited:.2f} s; the connect took too long and was ended"
            refused = self._refused(AcquireTimeout(words), attempt)
            raise (refused if attempt is None else _TooLate(refused)) from error
        vanished = lost(error) or isinstance(error, exceptions.ReadTimeoutError)
        if link.answered and vanished:
            # A socket does not show that the peer has forgotten the connection. Each idle connection that has not
            # delivered a response since would make another request fail.
            self._engine.discard_idle(unused_since=lease.since)
        if attempt is None or not link.answered or not lost(error) or attempt.replays >= _REPLAYS:
            return
        if method.upper() in _IDEMPOTENT and (body is None or isinstance(body, (bytes, str))):
            raise _Again from None


class PoolkitHTTPConnectionPool(Pooled, urllib3.HTTPConnectionPool):  # type: ignore[misc]
    """Replaces ``urllib3.HTTPConnectionPool``. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``, and ``name``, ``listeners`` and ``debug`` as
    :class:`poolkit.Pool` does. Raises :class:`poolkit.ConfigError` for a wrong value.
    """


class PoolkitHTTPSConnectionPool(Pooled, urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    """Replaces ``urllib3.HTTPSConnectionPool``. See :class:`PoolkitHTTPConnectionPool`."""


_BASE: Any = urllib3.HTTPConnectionPool
_kinds: dict[type, type] = {
    _BASE: PoolkitHTTPConnectionPool,
    urllib3.HTTPSConnectionPool: PoolkitHTTPSConnectionPool,
}


def pooled(kind: Any) -> Any:
    """Return a class of pools, urllib3's or one derived from it, as a class of poolkit's pools.

    A class that is not derived from urllib3's has its own connections and is returned unchanged.
    """
    if not (isinstance(kind, type) and issubclass(kind, _BASE)) or issubclass(kind, Pooled):
        return kind
    if kind not in _kinds:
        _kinds[kind] = type(f"Poolkit{kind.__name__}", (Pooled, kind), {"__doc__": kind.__doc__})
    return _kinds[kind]
