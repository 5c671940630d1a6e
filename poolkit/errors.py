"""Every error that poolkit itself raises. The exception tree::

    PoolError
    ├── ConfigError (ValueError)            an invalid setting, argument or URL
    ├── MissingExtra (ImportError)          an optional driver is not installed
    ├── UsageError (RuntimeError)           a call that is not allowed in this state or place
    │   ├── NotLeased                       release of a foreign or already released connection
    │   ├── LeaseOverdue                    a lease came back after leak_after, with on_leak="raise"
    │   └── WrongLoop                       an AsyncPool used from a second event loop
    ├── PoolClosed                          the pool is closed or draining
    ├── PoolSuspended                       suspended with fail_fast=True
    ├── PoolBusy                            the queue is full: max_waiting callers are waiting
    ├── AcquireTimeout (TimeoutError)       acquire_timeout ran out
    │   └── ServerUnavailable               ... and no connection can be opened (also a ConnectFailed)
    └── ConnectFailed                       opening a connection failed; __cause__ is the driver's error
        ├── ConnectTimeout (TimeoutError)   connect_timeout ran out
        ├── CircuitOpen                     the breaker is open
        └── ServerUnavailable

Exhaustion (:class:`AcquireTimeout`) and "server down" (:class:`ConnectFailed`) are different types. A caller that timed
out *because* the server is down gets :class:`ServerUnavailable`, which is both.
All errors can be pickled. An adapter's errors inherit from one of these and from the driver's own class.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType

from ._text import describe as describe
from ._text import masked as masked
from ._text import raw_text as raw_text
from ._text import said as said
from ._text import shown as shown
from ._text import shown_again as shown_again
from ._text import shown_key as shown_key
from ._text import without_quotes as without_quotes

__all__ = (
    "AcquireTimeout",
    "CircuitOpen",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "MissingExtra",
    "NotLeased",
    "PoolBusy",
    "PoolClosed",
    "PoolError",
    "PoolSuspended",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
)

_RAISED = "raised at "
_MOST = 30  # errors of a chain that are kept; a chain that grew over a thousand retries would only cost memory


def remembered(error: BaseException) -> BaseException:
    """Copy ``error`` for keeping: its class, arguments, attributes, causes and contexts, without tracebacks.

    A traceback keeps all calling frames and their variables alive. One of these variables may be a dropped lease, which
    would not be detected as long as the error is kept. The place where the error was raised becomes a note (PEP 678).
    An exception whose class cannot be created from its arguments is returned unchanged.
    """
    return _twin(error, {})


def name_missing_descriptor(error: BaseException) -> None:
    """Add "Too many open files" to the message of a failed connect whose driver does not report that reason.

    libpq reports nothing, anyio and trio report "all attempts to connect failed". So test whether this process and the
    machine have a descriptor left. Errors that name a reason of the operating system stay unchanged.
    """
    if not isinstance(error, Exception) or isinstance(error, OSError) or "[Errno" in raw_text(error):
        return
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as reason:
        if reason.errno in (errno.EMFILE, errno.ENFILE):
            text = f"[Errno {reason.errno}] {os.strerror(reason.errno)}"
            error.args = (f"{raw_text(error).strip()}: {text}".removeprefix(": "), *error.args[1:])


_NEEDS_THREAD = (
    "same thread", "main thread", "different thread", "current event loop", "running event loop", "different loop",
)  # fmt: skip
"""What drivers, asyncio and the standard library say about a call in the wrong thread."""
_OWN_THREAD = "the pool connects in threads of its own; set connect_in_caller=True to connect in the caller's thread"


def name_own_thread(error: BaseException) -> bool:
    """Name ``connect_in_caller`` in the error of a connect that had to run in another thread; whether it is one."""
    text = raw_text(error)
    if (isinstance(error, OSError) and error.errno is not None) or not any(words in text for words in _NEEDS_THREAD):
        return False
    if _OWN_THREAD not in text:
        error.args = (f"{text}; {_OWN_THREAD}", *error.args[1:])
    return True


def _twin(error: BaseException, known: dict[int, BaseException]) -> BaseException:
    found = known.get(id(error))
    if found is not None:
        return found
    kind = type(error)
    # OSError keeps the name of a file outside of its arguments
    args = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
    args = tuple(_twin(one, known) if isinstance(one, BaseException) else one for one in args)  # httpcore has these
    try:
        if hasattr(error, "derive"):  # a group: the errors in it have tracebacks as well
            twin: BaseException = error.derive([_twin(one, known) for one in error.exceptions])  # type: ignore[attr-defined]
        else:
            twin = kind.__new__(kind, *args)
            twin.args = args[: len(error.args)]
    except Exception:  # noqa: BLE001  the constructor is a library's or the application's
        return error
    known[id(error)] = twin
    for name, value in error.__dict__.items():  # SQLAlchemy keeps the driver's error as an attribute
        twin.__dict__[name] = _twin(value, known) if isinstance(value, BaseException) else value
    if error.__cause__ is not None and len(known) < _MOST:
        twin.__cause__ = _twin(error.__cause__, known)
    if error.__context__ is not None and len(known) < _MOST:
        twin.__context__ = _twin(error.__context__, known)
    twin.__suppress_context__ = error.__suppress_context__
    if error.__traceback__ is not None:
        _note_place(twin, error.__traceback__)
    return twin


def _note_place(error: BaseException, traceback: TracebackType) -> None:
    """Add the place where the error was raised as a note, without source lines: reading files would take time here."""
    places = []
    at: TracebackType | None = traceback
    while at is not None:
        code = at.tb_frame.f_code
        places.append(f"{code.co_filename}:{at.tb_lineno} in {code.co_name}")
        at = at.tb_next
    notes = getattr(error, "__notes__", None)
    notes = [note for note in notes if not raw_text(note).startswith(_RAISED)] if isinstance(notes, list) else []
    error.__notes__ = [*notes, _RAISED + "\n          ".join(places)]  # type: ignore[attr-defined]


class PoolError(Exception):
    """Base class of all errors that poolkit raises."""


class ConfigError(PoolError, ValueError):
    """A setting, argument or URL is invalid.

    The message names the setting, its value, its source and what would be valid. It is one line of at most 2000
    characters, in which passwords and tokens are masked and control characters escaped.
    ``setting`` is the bare name of the setting ("" if the error is not about a setting).
    """

    def __init__(self, message: str, setting: str = "") -> None:
        message, setting = shown(message, 2000), shown(setting)
        super().__init__(message, setting)
        self.setting = setting

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtra(PoolError, ImportError):
    """An optional dependency is missing. The message contains the pip command that installs it."""


class UsageError(PoolError, RuntimeError):
    """A call is not allowed in this state or at this place. The pool is unchanged."""


class NotLeased(UsageError):
    """The released connection is not leased from this pool: it is foreign or was already released."""


class LeaseOverdue(UsageError):
    """The lease that was just returned had been held longer than ``leak_after`` (``on_leak="raise"``).

    The connection is back in the pool. A block that ends with its own error does not raise this one.
    """


class WrongLoop(UsageError):
    """An :class:`~poolkit.AsyncPool` was used from another event loop than the one it belongs to.

    The pool is unchanged. Create one pool for each loop, or use one loop. When the first loop is closed, the pool may
    be used on another one.
    """


class PoolClosed(PoolError):
    """The pool is closed, or is draining and accepts no callers. A closed :class:`~poolkit.Pool` cannot be opened
    again.
    """


class PoolSuspended(PoolError):
    """The pool was suspended with ``fail_fast=True``. It serves callers again after ``resume()``.

    Also raised by ``warm_up()`` of any suspended pool, and to callers of the suspended pool of a cluster's node.
    """


class PoolBusy(PoolError):
    """The queue is full: ``max_waiting`` callers are already waiting.

    Also raised for a caller that waited longer than ``OverloadConfig.max_wait`` in an overloaded queue.
    """


class AcquireTimeout(PoolError, TimeoutError):
    """No connection became usable within ``acquire_timeout`` seconds, or the ``timeout`` of the call.

    The message states the state of the pool and why the caller waited. ``__cause__`` is the last error of a connect, if
    there was one. ``caller_class`` is the class of the caller if the pool has classes, else None.
    """

    caller_class: str | None = None


class ConnectFailed(PoolError):
    """Opening a connection failed. ``__cause__`` is the driver's error.

    ``fatal`` is true if a retry cannot help (authentication, unknown database, TLS). ``errors`` contains the driver's
    errors if several connects failed (``warm_up``).
    """

    fatal: bool = False
    errors: tuple[BaseException, ...] = ()


class ConnectTimeout(ConnectFailed, TimeoutError):
    """One attempt to open a connection took longer than ``connect_timeout`` seconds."""


class CircuitOpen(ConnectFailed):
    """The circuit breaker is open: several connects in a row failed, so callers fail at once without a connect.

    ``retry_after`` is the time in seconds until the next probe.
    """

    retry_after: float = 0.0


def cannot_connect(pool: str, cause: BaseException | None, *, fatal: bool, when: str = "") -> ConnectFailed:
    """Return the error for one caller of a failed connect of the pool with this name.

    ``when``: the age of the failure, where the caller came later.
    """
    kind = ConnectTimeout if isinstance(cause, ConnectTimeout) else ConnectFailed
    error = kind(f"{pool}: cannot connect{f' ({when})' if when else ''}: {describe(cause)}")
    error.__cause__ = cause
    error.fatal = fatal
    return error


class ServerUnavailable(AcquireTimeout, ConnectFailed):
    """``acquire_timeout`` ran out while no connection could be opened at all."""
