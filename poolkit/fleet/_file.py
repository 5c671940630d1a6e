"""Processes of one host: a file of numbers under a lock, and one locked file for each process that lives."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, said, shown
from ._ledger import Ask, Grant, Row, decide
from ._store import StoreError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ("FileStore",)

_turn = threading.Lock()  # the locks of files are the process's: its threads do not wait for each other there
_mine: dict[str, int] = {}  # members of this very process, to which its own locks are no obstacle, and their files
_pid = os.getpid()


class FileStore:
    """Permits of the processes of one host (gunicorn's workers), in a directory that all of them can write to.

    The kernel tells who lives: each process holds a lock on a file of its own, which ends with the process, however it
    ends. So the permits of a killed process are free at once, and one that is only slow or stopped keeps its own. The
    locks are POSIX record locks: not inherited over ``fork()``, not for network file systems.

    Raises :class:`~poolkit.ConfigError` where the system has no such locks or the directory cannot be made.
    """

    expires = False

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        if fcntl is None:
            raise ConfigError("FileStore needs POSIX file locks, which this system does not have", "store")
        self._directory = Path(directory)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"FileStore({str(directory)!r}): not a usable directory: {error.strerror}", "store"
            ) from error

    def exchange(self, ask: Ask) -> Grant:
        """See :meth:`poolkit.fleet.Store.exchange`; never waits longer than the others take to write some numbers."""
        try:
            self._live(ask.fleet, ask.member)
            with self._locked(ask.fleet) as state:
                rows = {name: Row(*row) for name, row in state.get("rows", {}).items() if self._lives(ask.fleet, name)}
                token = int(state.get("token", 0)) + (ask.member not in rows)
                grant = decide(rows, ask, time.time(), token=token, grace=False)
                for row in rows.values():
                    row.until = float("inf")
                state.update(token=token, rows={n: [r.permits, r.want, r.until, r.token] for n, r in rows.items()})
                return grant
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def leave(self, fleet: str, member: str) -> None:
        """See :meth:`poolkit.fleet.Store.leave`."""
        try:
            with self._locked(fleet) as state:
                state.get("rows", {}).pop(member, None)
            file = _mine.pop(member, None)
            if file is not None:
                os.close(file)
            self._path(fleet, member).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            raise StoreError(f"{shown(self._directory)}: {said(error)}") from error

    def forget(self) -> None:
        """Locks are not inherited."""

    def close(self) -> None:
        """Nothing is open but the sign of life, which ends with :meth:`leave`, or the process."""

    def _path(self, fleet: str, member: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in fleet)
        return self._directory / f"{safe}.{member}"

    def _live(self, fleet: str, member: str) -> None:
        """Show that this process lives."""
        global _pid, _turn
        if _pid != os.getpid():  # a forked child holds none of the parent's locks
            _mine.clear()
            _turn = threading.Lock()
            _pid = os.getpid()
        if member not in _mine:
            file = os.open(self._path(fleet, member), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mine[member] = file

    def _lives(self, fleet: str, member: str) -> bool:
        if member in _mine:
            return True
        path = self._path(fleet, member)
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _locked(self, fleet: str) -> Iterator[dict[str, Any]]:
        """The numbers, read and written back under the lock of the fleet."""
        with _turn:
            yield from self._changed(fleet)

    def _changed(self, fleet: str) -> Iterator[dict[str, Any]]:
        file = os.open(self._path(fleet, "fleet"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
            text = os.pread(file, 1 << 20, 0).decode()
            state: dict[str, Any] = json.loads(text) if text.strip() else {}
            yield state
            # one write of a fixed length: a process that is killed here leaves the old numbers or the new ones
            written = json.dumps(state).encode()
            os.pwrite(file, written.ljust(max(len(text), len(written))), 0)
        finally:
            os.close(file)
