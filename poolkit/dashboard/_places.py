"""The paths of the sockets: one for each process, in a private directory of the user.

The directory is in the system's temporary directory, not in XDG_RUNTIME_DIR: a service started by init has no such
variable, a terminal has one, and both must use the same directory.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
from pathlib import Path

from ..errors import ConfigError

__all__ = ("directory", "is_served", "live_sockets", "socket_of", "sweep")


def directory(uid: int | None = None, *, make: bool = False) -> Path:
    """Return the directory of a user (None: the current user), which no other user can read or write.

    Raises ConfigError if another user could: that user then created the directory and controls its content.
    """
    if not hasattr(os, "getuid"):
        raise ConfigError("this system has no Unix sockets: give a URL", "target")
    uid = os.getuid() if uid is None else uid
    path = Path(tempfile.gettempdir()) / f"poolkit-{uid}"
    if make:
        path.mkdir(mode=0o700, exist_ok=True)
    try:
        found = path.lstat()
    except FileNotFoundError:
        return path
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise ConfigError(f"{path}: must be a private directory of user {uid} (mode 700), but is not; remove it")
    return path


def socket_of(pid: int) -> Path:
    """Return the socket of a process, if it listens; root also finds the sockets of other users' processes."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:  # there is no such process, or no such file system
        owner = os.getuid()
    return directory(owner) / f"{pid}.sock"


BEGINS = 60.0
"""Seconds for which a socket on which no process listens may belong to a process that is about to listen."""


def live_sockets() -> list[Path]:
    """Return the sockets of this user's listening processes, by pid. Removes those that killed processes have left."""
    found = [path for path in directory().glob("*.sock") if path.stem.isdigit()]
    return sorted((path for path in found if _listening(path)), key=lambda path: int(path.stem))


def _listening(path: Path) -> bool:
    """Return whether a process listens on the socket. If none does, the socket is removed, unless its process may be
    about to listen: it binds the socket before that, and without the file no client would find it.
    """
    return is_served(path) if _begins(path) else not sweep(path)


def _begins(path: Path) -> bool:
    """Return whether the process that a socket is named after exists, and bound it less than ``BEGINS`` seconds ago."""
    try:
        os.kill(int(path.stem), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        return path.lstat().st_mtime > time.time() - BEGINS
    except FileNotFoundError:
        return False


def sweep(path: Path) -> bool:
    """Remove a socket on which no process listens. Return whether the path is free now."""
    if is_served(path):
        return False
    path.unlink(missing_ok=True)
    return True


def is_served(path: Path) -> bool:
    """Return whether a process listens on the socket. Raises OSError if that cannot be determined."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (BlockingIOError, TimeoutError):  # its queue is full: it is busy, or stopped
            return True
    return True
