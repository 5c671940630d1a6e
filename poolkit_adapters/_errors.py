"""What adapters do with errors: give them the driver's type beside poolkit's, name the missing extra."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Mapping

from poolkit.errors import MissingExtra, PoolError

__all__ = ("adapted", "missing_extra", "name_missing_descriptor", "release_locals")


def adapted(error: PoolError, kinds: Mapping[type[PoolError], type[PoolError]]) -> PoolError:
    """``error`` as the adapter's own type, which is the driver's too; cause, text and attributes stay.

    ``kinds`` maps poolkit's types to the adapter's; the nearest base class counts. An error without an entry is
    returned as it is.
    """
    for base in type(error).__mro__:
        kind = kinds.get(base)
        if kind is not None:
            new = kind(*error.args)
            new.__dict__.update(error.__dict__)
            new.__cause__ = error.__cause__
            new.__suppress_context__ = True
            return new
    return error


def release_locals(error: BaseException) -> None:
    """Drop the local variables of the functions that have ended with ``error`` (also those behind its causes).

    A driver's connect that fails, is cancelled or is interrupted may leave its half-open connection in a local
    variable. The traceback would keep it, and with it a session of the server, for as long as anybody keeps the error:
    the pool as its last error, a caller, a log handler.
    """
    errors: list[BaseException | None] = [error]
    seen: set[int] = set()
    while errors:
        one = errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)  # leaves alone what is still running
            errors += (one.__cause__, one.__context__)


def name_missing_descriptor(error: BaseException) -> None:
    """Add the reason to the text of a failed connect whose driver does not tell it: "Too many open files".

    libpq says nothing, anyio and trio say "all attempts to connect failed". So it is tried whether this process, or the
    machine, has a descriptor left; errors that name a reason of the operating system are left alone.
    """
    if not isinstance(error, Exception) or isinstance(error, OSError) or "[Errno" in str(error):
        return
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as reason:
        if reason.errno in (errno.EMFILE, errno.ENFILE):
            text = f"[Errno {reason.errno}] {os.strerror(reason.errno)}"
            error.args = (f"{str(error).strip()}: {text}".removeprefix(": "), *error.args[1:])


def missing_extra(adapter: str, needs: str, extra: str) -> MissingExtra:
    """The error for a driver that is not installed, with the line that installs it."""
    return MissingExtra(f"{adapter} needs {needs}: pip install 'poolkit[{extra}]'")
