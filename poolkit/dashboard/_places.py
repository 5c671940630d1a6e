"""Where the sockets are: one for each process, in a directory of the user's own.

The directory is in the system's temporary one, not in XDG_RUNTIME_DIR: a service that is started by init has no such
variable, a terminal has, and both must look in one place.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

from ..errors import ConfigError

__all__ = ("directory", "is_served", "live_sockets", "socket_of", "sweep")


def directory(uid: int | None = None, *, make: bool = False) -> Path:
    """The directory of a user (None: this one), which nobody else can look into or write to.

    Raises ConfigError if another user could: then he has made it, and what is in it is his.
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
        raise ConfigError(f"{path}: must be a directory of user {uid} alone (mode 700); remove it, it is not poolkit's")
    return path


def socket_of(pid: int) -> Path:
    """Where a process listens, if it does; root finds those of other users, too."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:  # there is no such process, or no such file system
        owner = os.getuid()
    return directory(owner) / f"{pid}.sock"


def live_sockets() -> list[Path]:
    """The sockets of this user's processes that listen, by pid. Those that killed processes have left are removed."""
    found = [path for path in directory().glob("*.sock") if path.stem.isdigit()]
    return sorted((path for path in found if not sweep(path)), key=lambda path: int(path.stem))


def sweep(path: Path) -> bool:
    """Remove a socket at which nobody listens any more; whether there is none now."""
    if is_served(path):
        return False
    path.unlink(missing_ok=True)
    return True


def is_served(path: Path) -> bool:
    """Whether somebody listens there. Raises OSError if that cannot be found out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (BlockingIOError, TimeoutError):  # its queue is full: it is busy, or stopped
            return True
    return True
