"""Processes of one host: a file of numbers under a lock, and one locked file for each process that lives.

Files can be deleted under a running fleet (a cleaner of ``/tmp``), or damaged. The kernel's word is worth more than a
name in a directory: a process whose locked file is missing keeps its permits until one ``ttl`` has passed since it was
last seen, and makes the file anew at its next exchange. Numbers that are missing or damaged begin anew, with one
``ttl`` in which all processes say what they hold and nothing new is granted.

A process that joins right after all files were deleted knows of nobody, and there is no file to tell it. So on Linux
each member also has a socket with an abstract name, which no cleaner of files reaches: while there is one, numbers that
are missing were lost, and are not those of a fleet that begins.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .._log import logger
from ..errors import ConfigError, said, shown
from ._ledger import Ask, Grant, Row, decide
from ._store import StoreError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ("FileStore",)

_LONGEST = 1 << 20  # bytes of the file of numbers; a fleet of a thousand processes needs a tenth of it
_LONGEST_PAUSE = 0.02  # seconds between two attempts to get the lock of a fleet
_turn = threading.Lock()  # the locks of files are the process's: its threads do not wait for each other there
_mine: dict[str, int] = {}  # members of this very process, to which its own locks are no obstacle, and their files
_signs: dict[str, socket.socket] = {}  # members of this very process, and the sockets that show that they live
_pid = os.getpid()


def _drop_signs() -> None:
    """In a forked child: the parent's members are not here."""
    while _signs:
        _signs.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_signs)


@dataclass
class _State:
    """What is written down of one fleet. ``grace``: until then nothing new is granted."""

    rows: dict[str, Row] = field(default_factory=dict)
    token: int = 0
    grace: float = 0.0


class FileStore:
    """Permits of the processes of one host (gunicorn's workers), in a directory that all of them can write to.

    The kernel tells who lives: each process holds a lock on a file of its own, which ends with the process, however it
    ends. So the permits of a killed process are free at once, and one that is only slow or stopped keeps its own. The
    locks are POSIX record locks: not inherited over ``fork()``, not for network file systems.

    Files that are deleted or damaged while the fleet runs are made anew; nothing new is granted for one ``ttl`` then.
    ``timeout``: seconds for which one exchange waits for the other processes. A process that is stopped in the middle
    of its exchange keeps the lock of the fleet; until it goes on or ends, the others keep the permits that they have.

    Raises :class:`~poolkit.ConfigError` where the system has no such locks or the directory cannot be made.
    """

    expires = False
    """True only while this process' locked file is missing and cannot be made anew: then others do not see it live."""

    def __init__(self, directory: str | os.PathLike[str], *, timeout: float = 1.0) -> None:
        if fcntl is None:
            raise ConfigError("FileStore needs POSIX file locks, which this system does not have", "store")
        self._timeout = _seconds(timeout)
        self._directory = Path(directory)
        self._clock = time.time  # the same in all processes
        self._token = 0  # the highest that was seen: numbers below it are not those of this fleet any more
        self._told = ""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"FileStore({str(directory)!r}): not a usable directory: {error.strerror}", "store"
            ) from error

    def exchange(self, ask: Ask) -> Grant:
        """See :meth:`poolkit.fleet.Store.exchange`; waits ``timeout`` seconds at most for the other processes."""
        try:
            with self._locked(ask.fleet, ask.ttl) as state:
                self._live(ask.fleet, ask.member)
                now = self._clock()
                self._look_who_lives(ask, state, now)
                token = state.token + (ask.member not in state.rows)
                grant = decide(state.rows, ask, now, token=token, grace=now < state.grace)
                state.token = token
            self.expires = False
            self._token = max(self._token, token)
            return grant
        except OSError as error:
            self.expires = not _is_at(_mine.get(ask.member), self._path(ask.fleet, ask.member))
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def leave(self, fleet: str, member: str) -> None:
        """See :meth:`poolkit.fleet.Store.leave`."""
        try:
            with self._locked(fleet, 0.0) as state:
                state.rows.pop(member, None)
                file = _mine.pop(member, None)
                if file is not None:
                    os.close(file)
                if member in _signs:
                    _signs.pop(member).close()
                self._path(fleet, member).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def forget(self) -> None:
        """Locks are not inherited."""

    def close(self) -> None:
        """Nothing is open but the sign of life, which ends with :meth:`leave`, or the process."""

    def _path(self, fleet: str, member: str) -> Path:
        return self._directory / f"{_safe(fleet)}.{member}"

    # -- who lives: under the lock of the fleet ----------------------------------------------------------------------

    def _live(self, fleet: str, member: str) -> None:
        """Show that this process lives, in a file that is there, and too fresh for those who clean up old ones."""
        path = self._path(fleet, member)
        file = _mine.get(member)
        if file is not None and not _is_at(file, path):
            os.close(_mine.pop(member))
            file = None
        if file is None:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(file)
                raise
            _mine[member] = file
        os.utime(file)
        if member not in _signs and sys.platform == "linux":
            sign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                sign.bind(f"\0{self._sign(fleet)}{member}")
            except OSError:  # too long a name, or no such sockets here: the files have to do
                sign.close()
            else:
                _signs[member] = sign

    def _sign(self, fleet: str) -> str:
        """What the names of the members' sockets begin with. By the path of the directory, which may be made anew."""
        place = f"{os.path.realpath(self._directory)}/{fleet}"
        return f"poolkit-fleet-{hashlib.sha256(place.encode()).hexdigest()[:24]}-"

    def _look_who_lives(self, ask: Ask, state: _State, now: float) -> None:
        """The dead are removed; those who live are seen now; of whom nothing can be told, time decides."""
        for name, row in list(state.rows.items()):
            lives = self._lives(self._path(ask.fleet, name), name)
            if lives:
                row.until = now + ask.ttl
            elif lives is None:
                row.until = min(row.until, now + ask.ttl)
            else:
                del state.rows[name]
                self._path(ask.fleet, name).unlink(missing_ok=True)

    def _lives(self, path: Path, member: str) -> bool | None:
        """Whether the file is locked; None: there is none, or it cannot be opened."""
        if member in _mine:
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

    # -- the numbers --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, fleet: str, ttl: float) -> Iterator[_State]:
        """The numbers, read and written back under the lock of the fleet. ``ttl``: of the grace, if they are lost."""
        global _pid, _turn
        if _pid != os.getpid():  # a forked child holds none of the parent's locks
            _mine.clear()
            _turn = threading.Lock()
            _pid = os.getpid()
        deadline = time.monotonic() + self._timeout
        path = self._path(fleet, "fleet")
        turn = _turn
        if not turn.acquire(timeout=self._timeout):
            raise self._kept(path, "another thread")
        try:
            file = self._open(path, deadline)
            try:
                state, size = self._read(file, fleet, ttl)
                yield state
                # one write of a fixed length: a process that is killed here leaves the old numbers or the new ones
                rows = {name: [row.permits, row.want, row.until, row.token] for name, row in state.rows.items()}
                written = json.dumps({"token": state.token, "grace": state.grace, "rows": rows}).encode()
                if os.pwrite(file, written.ljust(size), 0) < len(written):
                    raise OSError(f"{fleet}.fleet: not all of it could be written")
            finally:
                os.close(file)
        finally:
            turn.release()

    def _open(self, path: Path, deadline: float) -> int:
        """The file at ``path``, locked: not one that was deleted while its lock was waited for."""
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
        """Lock ``file``. Raises TimeoutError at the deadline: nothing ends a ``lockf`` that blocks in a thread."""
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
        """What is written down, and how many bytes; numbers that were lost begin anew."""
        text = os.pread(file, _LONGEST, 0)
        state = _parsed(text)
        why = ""
        if state is None:
            why = "are damaged"
        elif state.token < self._token or (not text.strip() and self._others(fleet)):
            why = "were deleted"
        if not why and state is not None:
            self._told = ""
            state.token = state.token or int(time.time() * 1000)  # higher than those of a file that was here before
            return state, len(text)
        if self._told != why:
            self._told = why
            logger.warning(
                "%s: the numbers of the fleet %s %s: they begin anew, and nothing new is granted for %g s",
                shown(self._directory), shown(fleet), why, ttl,
            )  # fmt: skip
        os.ftruncate(file, 0)
        return _State(token=max(self._token, int(time.time() * 1000)), grace=self._clock() + ttl), 0

    def _others(self, fleet: str) -> bool:
        """Whether somebody lives who may hold permits."""
        prefix = f"{_safe(fleet)}."
        try:
            if f"@{self._sign(fleet)}" in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace"):
                return True
        except OSError:
            pass  # another system
        names = (name for name in os.listdir(self._directory) if name.startswith(prefix))
        return any(
            self._lives(self._directory / name, name.removeprefix(prefix)) for name in names if name != f"{prefix}fleet"
        )


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"timeout={value!r}: must be a time in seconds, more than 0", "timeout")
    return float(value)


def _safe(fleet: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in fleet)


def _is_at(file: int | None, path: Path) -> bool:
    """Whether ``file`` is what is at ``path``."""
    try:
        return file is not None and os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _parsed(text: bytes) -> _State | None:
    """What a file says (nothing, if it is empty); None where it cannot be meant."""
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
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(value)
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(value)
    return float(value)
