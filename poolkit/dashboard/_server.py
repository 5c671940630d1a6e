"""The dashboard in a service without an ASGI application: a thread with a small HTTP server on a socket."""

from __future__ import annotations

import atexit
import contextlib
import io
import ipaddress
import os
import socket
import socketserver
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from .._log import logger
from ..errors import ConfigError, UsageError
from ..runtimes.fork import Stage, after_fork
from ..telemetry.families import require
from ._desk import BODY, Desk, Request, checked_token
from ._local import Local
from ._places import directory, sweep

__all__ = ("Dashboard", "Places", "address_of", "bind_tcp", "start")

CLIENTS = 16  # concurrent requests; further ones get status 503, so that monitoring cannot overload the service
CLIENTS_OF_ONE = 8  # concurrent requests from one address; the rest is left to other addresses
PATIENCE = 5.0  # seconds for a whole request, and for its whole answer
_LOOK = 0.5  # seconds between two checks whether to end


class _Timed(io.RawIOBase):
    """Reads from a socket until ``deadline``. The socket's own timeout would restart with each byte."""

    def __init__(self, connection: socket.socket, deadline: float, clock: Callable[[], float]) -> None:
        self._connection, self._deadline, self._clock = connection, deadline, clock

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        """Read what arrives before the deadline. Raises TimeoutError after it."""
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(into)


class Places:
    """The requests in progress: at most ``CLIENTS``, and ``CLIENTS_OF_ONE`` of one address. Clients of a Unix socket
    (``""``, only this user) and of a proxy may use all. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Take a place for a request from ``address``; False if there is none."""
        with self._lock:
            if self._taken.total() >= CLIENTS or (address and self._taken[address] >= CLIENTS_OF_ONE):
                return False
            self._taken[address] += 1
            return True

    def leave(self, address: str) -> None:
        """Free the place of a request that is over."""
        with self._lock:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0 with one request per connection, so that no connection stays open."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Timed(self.connection, time.monotonic() + PATIENCE, time.monotonic))

    def _serve(self) -> None:
        length = self.headers.get("content-length", "0")
        if not length.isdigit():
            self.send_error(400)
            return
        body = self.rfile.read(min(int(length), BODY + 1))
        headers = {name.lower(): value for name, value in self.headers.items()}
        response = self.server.desk.respond(Request(self.command, self.path.partition("?")[0], headers, body))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.connection.settimeout(PATIENCE)  # of all that follows together
        self.end_headers()
        self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815

    def version_string(self) -> str:
        return "poolkit"

    def log_message(self, *args: Any) -> None:
        """Write nothing: requests to the dashboard do not belong in the service's log."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, bound: socket.socket, desk: Desk) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.desk = desk
        self._places = Places()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.take(address_of(client_address)):
            _refuse(request)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.leave(address_of(client_address))
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.leave(address_of(client_address))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect in the middle of a request."""


def address_of(client: Any) -> str:
    """Return the host; for IPv6 its /64 network, in which one host may have any number of addresses."""
    host = client[0] if isinstance(client, tuple) else ""
    return host if ":" not in host else str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


def _refuse(request: socket.socket) -> None:
    """Send the refusal without waiting: this thread accepts all connections."""
    response = Desk.busy()
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    with contextlib.suppress(OSError):
        request.setblocking(False)
        request.send(f"HTTP/1.0 {response.status} Service Unavailable\r\n{head}\r\n".encode() + response.body)
        request.recv(65_536)  # closing a socket with unread data may discard the answer


class Dashboard:
    """A dashboard that :func:`start` has opened. A context manager; thread-safe.

    ``address``: the argument for ``poolkit dashboard`` and ``poolkit top``: the path of a socket, or a URL.
    """

    def __init__(self, desk: Desk, path: Path | None, host: str, port: int | None) -> None:
        self._desk = desk
        self._path = path
        self._host = host
        self._port = port
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._bound: Path | None = None
        if self._port is None:
            self._bound = self._path or directory(make=True) / f"{self._pid}.sock"
            bound = _bind_unix(self._bound)
            self.address = str(self._bound)
        else:
            bound = bind_tcp(self._host, self._port)
            host, at = bound.getsockname()[:2]
            self.address = f"http://{f'[{host}]' if ':' in host else host}:{at}"
        self._server = _Server(bound, self._desk)
        threading.Thread(
            target=self._server.serve_forever, args=(_LOOK,), name="poolkit-dashboard-server", daemon=True
        ).start()
        with _lock:
            _open_ones.add(self)

    def close(self) -> None:
        """Stop listening, within half a second. Idempotent."""
        with _lock:
            if self not in _open_ones:
                return
            _open_ones.discard(self)
        self._server.shutdown()
        self._server.server_close()
        self._remove()

    def _remove(self) -> None:
        if self._bound is not None and self._pid == os.getpid():
            self._bound.unlink(missing_ok=True)

    def _after_fork(self) -> None:
        """In a forked child: close the parent's socket. Otherwise clients could connect to it after the parent has
        ended, and would get no answer. If the parent's socket has the default path, the child opens its own.
        """
        self._server.socket.close()
        if self._port is None and self._path is None:
            self._open()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Dashboard at {self.address}>"


def start(
    *,
    path: str | os.PathLike[str] | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    actions: bool = False,
    token: str | None = None,
    allowed_hosts: Iterable[str] = (),
    service: str | None = None,
) -> Dashboard:
    """Show the pools of this process to ``poolkit dashboard`` and ``poolkit top``, from a daemon thread, until
    :meth:`Dashboard.close` or the end of the process.

    Without arguments it listens on a Unix socket named after the process id, in a directory that only this user can
    enter; with ``path`` on another socket (mode 600). There, ``actions=True`` allows every client to clear, suspend,
    resume and resize pools. With ``port`` (0: a free port) it serves a page on ``host``. There, ``token`` (16
    characters or more) enables the actions for clients that send it, and the Host header must be ``localhost``, an IP
    address, ``host`` or one of ``allowed_hosts``. ``service`` is the name in the page's title and in ``poolkit top``
    (None: that of the program). A forked child listens on its own socket in the usual place, otherwise on none.
    Thread-safe.

    Raises ConfigError for invalid arguments and an address that cannot be used, UsageError if this process already
    listens there.
    """
    if path is not None and port is not None:
        raise ConfigError("start(): give path or port, not both", "path")
    if port is None:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError("start(): this system has no Unix sockets: give a port", "port")
        if token is not None:
            raise ConfigError(
                "start(): a token needs a port; access to a socket is controlled by its file mode", "token"
            )
        hosts = None
    else:
        require("port", port, (int,), 0, 65535, "a number from 0 (a free one) to 65535")
        if actions and token is None:
            raise ConfigError("start(): actions over a port need a token", "token")
        actions = checked_token(token) is not None
        hosts = [host, *allowed_hosts]
    desk = Desk(Local(actions=actions, service=service), actions=actions, token=token, hosts=hosts)
    return Dashboard(desk, None if path is None else Path(path), host, port)


def _bind_unix(path: Path) -> socket.socket:
    with _lock:
        if any(one._bound == path for one in _open_ones):
            raise UsageError(f"start(): this process already listens at {path}; close that dashboard first")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"path={str(path)!r}: exists and is not a socket", "path")
            if not sweep(path):
                raise ConfigError(f"path={str(path)!r}: another process already listens there", "path")
        bound.bind(os.fspath(path))
        path.chmod(0o600)  # before listen(), so that no client can connect with the wrong mode
        bound.listen(CLIENTS)
    except OSError as error:
        bound.close()
        raise ConfigError(f"path={str(path)!r}: cannot listen there: {error.strerror or error}", "path") from error
    except BaseException:
        bound.close()
        raise
    return bound


def bind_tcp(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises ConfigError if it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host={host!r}: {error.strerror or error}", "host") from error
    try:
        if os.name == "posix":  # elsewhere it would let two listen at one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(CLIENTS)
    except OSError as error:
        bound.close()
        raise ConfigError(f"port={port}: cannot listen on {host}: {error.strerror or error}", "port") from error
    return bound


_lock = threading.Lock()
_open_ones: set[Dashboard] = set()
"""Keep a reference, so that the caller of start() need not keep one."""


def _at_exit() -> None:
    for one in list(_open_ones):
        one._remove()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    inherited = list(_open_ones)
    _open_ones.clear()
    for one in inherited:
        try:
            one._after_fork()
        except Exception:
            logger.exception("the dashboard could not be opened in a forked child")


atexit.register(_at_exit)
after_fork(Stage.WATCHERS, _after_fork_in_child)
