"""Other processes as a source for the dashboard, read over their sockets or by URL."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import ConfigError, PoolError, said, shown
from ._desk import MARK, Refused
from ._places import live_sockets, socket_of
from ._state import merged

__all__ = ("Everybody", "Remote", "attach")

TIMEOUT = 3.0  # seconds: a healthy process answers in milliseconds
LONGEST = 50_000_000  # bytes of an answer

T = TypeVar("T")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Remote:
    """The dashboard of another process. Thread-safe; each request has its own connection and ``timeout`` in seconds.

    ``target``: a URL (``https://user:password@...`` sends a Basic authorization), the number of a process of this
    machine, or the path of a socket. Raises ConfigError if it is none of these, or there is no such process.
    """

    def __init__(self, target: str, *, timeout: float = TIMEOUT, name: str | None = None) -> None:
        self.target = name or shown(target)
        self._timeout = timeout
        self._url: SplitResult | None = None
        self._path = ""
        if "://" in target and not target.startswith("unix://"):
            self._url = _checked_url(target)
            return
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError(f"{target}: this system has no Unix sockets: give a URL", "target")
        if target.isdigit():
            self._path = str(_socket_of_process(int(target)))
            self.target = f"process {target}"
        else:
            self._path = os.path.abspath(target.removeprefix("unix://"))

    @property
    def is_url(self) -> bool:
        """Whether it is read over a network."""
        return self._url is not None

    def state(self) -> dict[str, Any]:
        """Return its snapshot. Raises Refused if nothing listens, another server answers, or the answer is too late."""
        return self._ask("GET", "/api/state")

    def history(self) -> dict[str, Any]:
        """Return the history of its pools."""
        return self._ask("GET", "/api/history")

    def detail(self, pool: str) -> dict[str, Any]:
        """Return the details of one of its pools."""
        return self._ask("GET", f"/api/pools/{quote(pool, safe='')}")

    def act(self, pool: str, action: str, options: dict[str, Any]) -> str:
        """Perform the action there and return a description of it."""
        return str(self._ask("POST", f"/api/pools/{quote(pool, safe='')}/{action}", options).get("done", ""))

    def _ask(self, method: str, path: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        body = None
        if options is not None:
            body = json.dumps(options)
            headers["Content-Type"] = "application/json"
        if self._url is not None:
            path = self._url.path.rstrip("/") + path
            if self._url.username is not None:
                pair = f"{unquote(self._url.username)}:{unquote(self._url.password or '')}"
                headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        connection = self._connection()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            status, text = response.status, response.read(LONGEST)
            known = response.getheader(MARK) is not None
        except (FileNotFoundError, ConnectionRefusedError):
            raise Refused(502, f"{self.target}: nothing listens there") from None
        except TimeoutError:
            raise Refused(504, f"{self.target}: no answer in {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Refused(502, f"{self.target}: {said(error) or type(error).__name__}") from None
        finally:
            connection.close()
        return self._read(status, text if known else b"")

    def _connection(self) -> http.client.HTTPConnection:
        if self._url is None:
            return _UnixConnection(self._path, self._timeout)
        host = self._url.hostname or ""
        if self._url.scheme == "https":
            return http.client.HTTPSConnection(
                host, self._url.port, timeout=self._timeout, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(host, self._url.port, timeout=self._timeout)

    def _read(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            found: dict[str, Any] = _clean(json.loads(text))
        except (ValueError, RecursionError):
            raise Refused(502, f"{self.target}: answers with status {status}, but is not a poolkit dashboard") from None
        if status != 200:
            raise Refused(status if status < 500 else 502, found["error"])
        return found


class Everybody:
    """Several processes as one: the named ones, or, if none is named, all listening ones of this user. Thread-safe."""

    def __init__(self, remotes: Sequence[Remote] = ()) -> None:
        self._named = list(remotes)
        self._homes: dict[str, Remote] = {}  # of each pool in the last state, by its id

    def remotes(self) -> list[Remote]:
        """Return the processes that are read. Raises ConfigError for a directory that does not belong to this user."""
        return self._named or [Remote(str(path), name=f"process {path.stem}") for path in live_sockets()]

    def state(self) -> dict[str, Any]:
        """Return their combined snapshot, which names processes that do not answer. Raises Refused if none answers."""
        remotes = self.remotes()
        found = _all(Remote.state, remotes)
        states = [one for one in found if not isinstance(one, PoolError)]
        failed = [(remote, one) for remote, one in zip(remotes, found, strict=True) if isinstance(one, PoolError)]
        if failed and not states:
            raise failed[0][1]
        self._homes = {
            pool["id"]: remote
            for remote, one in zip(remotes, found, strict=True)
            if not isinstance(one, PoolError)
            for pool in one["pools"]
        }
        total = merged(states)
        total["processes"] += [{"program": remote.target, "error": str(error)} for remote, error in failed]
        return total

    def history(self) -> dict[str, Any]:
        """Return the history of all their pools."""
        found = [one for one in _all(Remote.history, self.remotes()) if not isinstance(one, PoolError)]
        pools = {name: points for one in found for name, points in one["pools"].items()}
        return {"interval": max((one["interval"] for one in found), default=0), "pools": pools}

    def detail(self, pool: str) -> dict[str, Any]:
        """Return the details of one pool, from the process that owns it. Raises Refused if no process has it."""
        if pool not in self._homes:
            self.state()
        home = self._homes.get(pool)
        if home is None:
            raise Refused(404, f"there is no pool {pool!r}, or it was closed")
        return home.detail(pool)

    def mark(self) -> object:
        """Return None: each process shares its own snapshot, and only a request shows whether it still exists."""
        return None

    def act(self, pool: str, action: str, options: dict[str, Any]) -> str:
        """Perform the action in the process that owns the pool."""
        refused = Refused(404, f"there is no pool {pool!r}, or it was closed")
        for remote in self.remotes():
            try:
                return remote.act(pool, action, options)
            except Refused as error:  # a process without actions refuses any pool; another process may own it
                if error.status not in (403, 404):
                    raise
                if error.status == 403:
                    refused = error
        raise refused


def attach(targets: Iterable[str] = (), *, timeout: float = TIMEOUT) -> Everybody:
    """Return the dashboards at ``targets`` (URLs, process ids, sockets); without targets, those of all processes of the
    user that have called :func:`start`. Raises ConfigError for an invalid target.
    """
    return Everybody([Remote(target, timeout=timeout) for target in targets])


def _all(ask: Callable[[Remote], T], remotes: list[Remote]) -> list[T | PoolError]:
    """Return the answer or error of each process, requested in parallel: a stopped one must not delay the others."""

    def one(remote: Remote) -> T | PoolError:
        try:
            return ask(remote)
        except PoolError as error:
            return error

    if len(remotes) < 2:
        return [one(remote) for remote in remotes]
    with ThreadPoolExecutor(min(16, len(remotes))) as workers:
        return list(workers.map(one, remotes))


def _clean(value: Any) -> Any:
    """Return the answer of another process, safe for a terminal: it may have another version, or not be poolkit's."""
    if isinstance(value, str):
        return shown(value, 2000)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {shown(name): _clean(one) for name, one in value.items()}
    return value


def _checked_url(target: str) -> SplitResult:
    try:
        url = urlsplit(target)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{target}: must be http://HOST:PORT/PATH (or https), a process id, or a socket", "target")
    return url


def _socket_of_process(pid: int) -> Path:
    path = socket_of(pid)
    if not path.exists():
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            raise ConfigError(f"process {pid}: no such process", "target") from None
        except PermissionError:
            pass
        raise ConfigError(f"process {pid}: has no dashboard; call poolkit.dashboard.start() in it", "target")
    return path
