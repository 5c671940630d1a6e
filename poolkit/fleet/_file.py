"""Processes of one host: a state file under a lock, and one locked file for each live process.

Files can be damaged, or deleted while the fleet runs (by a cleaner of ``/tmp``). A missing file does not prove that
its process is dead. So a process whose locked file is missing keeps its permits until one ``ttl`` has passed since it
was last seen, and creates the file again in its next exchange. A missing or damaged state file is replaced; for one
``ttl`` all processes report what they hold, and nothing new is granted.

A deleted file may still be locked and read by the process that opened it. So a grant counts only if the state file is
still at its path after the grant was written to it. Otherwise two processes could grant the same permits, one from the
deleted file and one from the new file.

On Linux each member also has a socket with an abstract name, which is not in the file system and is closed when the
process ends. These sockets show what deleted files no longer show:

- While one exists, a missing state file was lost, and does not belong to a new fleet.
- A member whose socket exists is alive, also without its locked file.
- After a loss nothing new is granted until each of them has reported, however long a busy or stopped process takes.

Elsewhere, and between containers (each has sockets of its own), a process that reports nothing for one ``ttl`` after
its files were deleted counts as dead.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .._log import logger
from .._numbers import is_seconds, is_whole, seconds
from ..errors import ConfigError, said, shown
from ._ledger import Ask, Grant, Row, decide
from ._store import StoreError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]
from ..runtimes.fork import Stage, after_fork

__all__ = ("FileStore",)

_LONGEST = 1 << 20  # maximum bytes of the state file; a fleet of a thousand processes needs a tenth of it
_LONGEST_PAUSE = 0.02  # seconds between two attempts to get the lock of a fleet
_thread_lock = threading.Lock()  # file locks belong to the process: they do not exclude its other threads
_own_files: dict[str, int] = {}  # members of this process and their files; its own locks never conflict
_life_sockets: dict[str, socket.socket] = {}  # members of this process and the sockets that show that they are alive
_pid = os.getpid()


def _close_life_sockets() -> None:
    """Close the sockets of the parent's members. Runs in a forked child."""
    while _life_sockets:
        _life_sockets.popitem()[1].close()


after_fork(Stage.RUNTIME, _close_life_sockets)


@dataclass
class _State:
    """The state of one fleet. ``grace``: the earliest time of a new grant; 0.0 if no state was lost."""

    rows: dict[str, Row] = field(default_factory=dict)
    token: int = 0
    grace: float = 0.0
    kept: bool = False
    """Whether its file was still at its path after it was written."""


class _LiveMembers:
    """The members of a fleet whose sockets exist. Read once, and only if something depends on them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"@{prefix}"

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The names of the members whose sockets exist. Empty if the system does not list sockets."""
        try:
            text = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
        except OSError:  # not Linux
            return frozenset()
        return frozenset(line.rpartition(self._prefix)[2] for line in text.splitlines() if self._prefix in line)


class FileStore:
    """Permits of the processes of one host (gunicorn's workers), in a directory that all of them can write to.

    Each process holds a lock on its own file, which the kernel releases when the process ends in any way. So the
    permits of a killed process are free at once, and a process that is only slow or stopped keeps its permits. The
    locks are POSIX record locks: they are not inherited over ``fork()``, and network file systems may not support
    them.

    Files that are deleted or damaged while the fleet runs are created again. Nothing new is granted for one ``ttl``
    then, and on Linux not before each live process has reported what it holds.

    ``timeout``: seconds for which one exchange waits for the other processes. A process that is stopped in the middle
    of its exchange keeps the lock of the fleet. Until it continues or ends, the others keep the permits that they
    have.

    Raises :class:`~poolkit.ConfigError` if the system has no such locks or the directory cannot be created.
    """

    expires = False
    """True only while this process's locked file is missing and cannot be created: then others cannot see it alive."""

    def __init__(self, directory: str | os.PathLike[str], *, timeout: float = 1.0) -> None:
        if fcntl is None:
            raise ConfigError("FileStore needs POSIX file locks, which this system does not have", "store")
        seconds("timeout", timeout, above=True)
        self._timeout = float(timeout)
        self._directory = Path(directory)
        self._clock = time.time  # the same in all processes
        self._token = 0  # the highest token so far: a state file with a lower one was replaced
        self._logged = ""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"FileStore({str(directory)!r}): not a usable directory: {error.strerror}", "store"
            ) from error

    def exchange(self, ask: Ask) -> Grant:
        """See :meth:`poolkit.fleet.Store.exchange`; waits at most ``timeout`` seconds for the other processes."""
        deadline = time.monotonic() + self._timeout
        try:
            while True:
                with self._locked(ask.fleet, ask.ttl) as state:
                    grant, token = self._decide(ask, state)
                    state.token = token
                if state.kept:
                    break
                if time.monotonic() >= deadline:
                    raise FileNotFoundError(f"{ask.fleet}.fleet: was deleted again in each exchange")
            self.expires = False
            self._token = max(self._token, token)
            return grant
        except OSError as error:
            self.expires = not _is_at(_own_files.get(ask.member), self._path(ask.fleet, ask.member))
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def _decide(self, ask: Ask, state: _State) -> tuple[Grant, int]:
        """Answer ``ask`` and update ``state``. Return the answer, and the highest token so far."""
        self._show_life(ask.fleet, ask.member)
        now = self._clock()
        live = _LiveMembers(self._socket_prefix(ask.fleet))
        self._update_liveness(ask, state, now, live)
        if state.grace and now >= state.grace and live.names <= {*state.rows, ask.member}:
            state.grace = 0.0
        token = state.token + (ask.member not in state.rows)
        return decide(state.rows, ask, now, token=token, grace=state.grace > 0), token

    def leave(self, fleet: str, member: str) -> None:
        """See :meth:`poolkit.fleet.Store.leave`."""
        try:
            try:
                with self._locked(fleet, 0.0) as state:
                    state.rows.pop(member, None)
                    self._path(fleet, member).unlink(missing_ok=True)
            finally:  # also without the lock: the others see that the member has ended, and remove its record
                file = _own_files.pop(member, None)
                if file is not None:
                    os.close(file)
                if member in _life_sockets:
                    _life_sockets.pop(member).close()
        except OSError as error:
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def forget(self) -> None:
        """See :meth:`poolkit.fleet.Store.forget`; nothing to do, because locks are not inherited."""

    def close(self) -> None:
        """See :meth:`poolkit.fleet.Store.close`; the locked file stays open until :meth:`leave` or the process ends."""

    def _path(self, fleet: str, member: str) -> Path:
        return self._directory / f"{_safe(fleet)}.{member}"

    # -- liveness: under the lock of the fleet -----------------------------------------------------------------------

    def _show_life(self, fleet: str, member: str) -> None:
        """Hold the locked file of this process, create it if it is missing, and update its modification time.

        The current time keeps it from cleaners of old files.
        """
        path = self._path(fleet, member)
        file = _own_files.get(member)
        if file is not None and not _is_at(file, path):
            os.close(_own_files.pop(member))
            file = None
        if file is None:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(file)
                raise
            _own_files[member] = file
        os.utime(file)
        if member not in _life_sockets and sys.platform == "linux":
            life_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                life_socket.bind(f"\0{self._socket_prefix(fleet)}{member}")
            except OSError:  # the name is too long, or abstract sockets are not supported: use the files only
                life_socket.close()
            else:
                _life_sockets[member] = life_socket

    def _socket_prefix(self, fleet: str) -> str:
        """Return the prefix of the members' socket names. It depends on the path only: the directory may change."""
        place = f"{os.path.realpath(self._directory)}/{fleet}"
        return f"poolkit-fleet-{hashlib.sha256(place.encode()).hexdigest()[:24]}-"

    def _update_liveness(self, ask: Ask, state: _State, now: float, live: _LiveMembers) -> None:
        """Remove dead processes and renew live ones; a process of unknown state stays until its time has passed."""
        for name, row in list(state.rows.items()):
            alive = self._is_alive(self._path(ask.fleet, name), name)
            if alive or (alive is None and name in live.names):
                row.until = now + ask.ttl
            elif alive is None:
                row.until = min(row.until, now + ask.ttl)
            else:
                del state.rows[name]
                self._path(ask.fleet, name).unlink(missing_ok=True)

    def _is_alive(self, path: Path, member: str) -> bool | None:
        """Return whether the file is locked; None if it does not exist or cannot be opened."""
        if member in _own_files:
            return True
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(file)

    # -- the state file -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, fleet: str, ttl: float) -> Iterator[_State]:
        """Read the state and write it back under the lock of the fleet. ``ttl``: seconds of grace if it was lost."""
        global _pid, _thread_lock
        if _pid != os.getpid():  # a forked child does not have the parent's locks
            _own_files.clear()
            _thread_lock = threading.Lock()
            _pid = os.getpid()
        deadline = time.monotonic() + self._timeout
        path = self._path(fleet, "fleet")
        thread_lock = _thread_lock
        if not thread_lock.acquire(timeout=self._timeout):
            raise self._kept(path, "another thread")
        try:
            file = self._open(path, deadline)
            try:
                state, size = self._read(file, fleet, ttl)
                yield state
                # one write of at least the old length: a process killed here leaves either the old or the new state
                rows = {name: [row.permits, row.want, row.until, row.token] for name, row in state.rows.items()}
                written = json.dumps({"token": state.token, "grace": state.grace, "rows": rows}).encode()
                if os.pwrite(file, written.ljust(size), 0) < len(written):
                    raise OSError(f"{fleet}.fleet: could not be written completely")
                state.kept = _is_at(file, path)
            finally:
                os.close(file)
        finally:
            thread_lock.release()

    def _open(self, path: Path, deadline: float) -> int:
        """Open and lock the file at ``path``; try again if it was deleted while this waited for its lock."""
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                self._directory.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._lock(file, path, deadline)
                if _is_at(file, path):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _lock(self, file: int, path: Path, deadline: float) -> None:
        """Lock ``file``. Raises TimeoutError at the deadline. Tries again and again: ``lockf`` itself has no limit."""
        pause = 0.0005
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._kept(path, "another process, perhaps a stopped one,")
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _kept(self, path: Path, who: str) -> TimeoutError:
        return TimeoutError(f"{path.name}: {who} has kept the lock for {self._timeout:g} s")

    def _read(self, file: int, fleet: str, ttl: float) -> tuple[_State, int]:
        """Return the state and its size in bytes; a lost or damaged state is replaced by an empty one with a grace."""
        text = os.pread(file, _LONGEST, 0)
        state = _parsed(text)
        why = ""
        if state is None:
            why = "is damaged"
        elif state.token < self._token or (not text.strip() and self._others(fleet)):
            why = "was deleted"
        if not why and state is not None:
            self._logged = ""
            state.token = state.token or int(time.time() * 1000)  # higher than the tokens of an earlier file
            return state, len(text)
        if self._logged != why:
            self._logged = why
            logger.warning(
                "%s: the state of the fleet %s %s; a new one is started, and nothing new is granted for %g s",
                shown(self._directory), shown(fleet), why, ttl,
            )  # fmt: skip
        os.ftruncate(file, 0)
        return _State(token=max(self._token, int(time.time() * 1000)), grace=self._clock() + ttl), 0

    def _others(self, fleet: str) -> bool:
        """Return whether a live process may hold permits."""
        if _LiveMembers(self._socket_prefix(fleet)).names:
            return True
        prefix = f"{_safe(fleet)}."
        names = (name for name in os.listdir(self._directory) if name.startswith(prefix))
        return any(
            self._is_alive(self._directory / name, name.removeprefix(prefix))
            for name in names
            if name != f"{prefix}fleet"
        )


def _safe(fleet: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in fleet)


def _is_at(file: int | None, path: Path) -> bool:
    """Return whether ``file`` is the file at ``path``."""
    try:
        return file is not None and os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _parsed(text: bytes) -> _State | None:
    """Return the state in a state file; an empty file is an empty state. None if the file is invalid."""
    if not text.strip():
        return _State()
    try:
        found = json.loads(text)
        rows = {
            name: Row(_count(permits), _count(want), _time(until), _count(token))
            for name, (permits, want, until, token) in found["rows"].items()
        }
        return _State(rows, _count(found["token"]), _time(found.get("grace", 0.0)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _count(value: object) -> int:
    if not is_whole(value) or value >= 1 << 62:
        raise ValueError(value)
    return value


def _time(value: object) -> float:
    if not is_seconds(value):
        raise ValueError(value)
    return float(value)
