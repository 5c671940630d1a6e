"""Error classes of the adapters, which combine poolkit's and the driver's types. Each adapter has one table of them."""

from __future__ import annotations

import traceback
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from poolkit.errors import (
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    MissingExtra,
    PoolError,
    name_missing_descriptor,
)

__all__ = (
    "BAD_SETTING", "MISSING", "Row", "Table", "both", "copied", "missing_extra", "of_connect", "release_locals",
)  # fmt: skip


class Row(NamedTuple):
    """One line of an adapter's table of errors."""

    what: str
    """What happened, for the documentation."""
    error: type[BaseException]
    """The class that is raised. For an error of the driver itself: a base class of the raised one."""
    bases: tuple[type[BaseException], ...]
    """The classes that catch it: poolkit's class first, then the driver's."""


BAD_SETTING = Row("a setting, an argument or a URL is wrong", ConfigError, (ConfigError, ValueError))
MISSING = Row("the driver, or an optional part of it, is not installed", MissingExtra, (MissingExtra, ImportError))


class Table:
    """The errors that one adapter raises. The documentation is generated from it, and a test checks every row."""

    def __init__(self, *rows: Row) -> None:
        self.rows = rows
        self._row_of: dict[type[BaseException], Row] = {}
        for row in rows:
            self._row_of.setdefault(row.bases[0], row)  # the first row for a class applies
        self._own = tuple(row.error for row in rows if row.error is not row.bases[0])

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def with_rows(self, *rows: Row) -> Table:
        """Return a table with these rows added."""
        return Table(*self.rows, *rows)

    def of(self, base: type[PoolError]) -> Any:
        """Return the adapter's class for one of poolkit's classes."""
        return self._row_of[base].error

    def adapted(self, error: PoolError) -> PoolError:
        """Return an error of the engine as the adapter's own type, which is also the driver's.

        Keeps cause, message, notes and attributes. The row of the nearest base class applies; an error without a row
        is returned unchanged.
        """
        if isinstance(error, self._own) or hasattr(error, "_poolkit_joined"):
            return error
        for base in type(error).__mro__:
            row = self._row_of.get(base)
            if row is not None:
                if row.error is base:
                    return error
                new: Any = row.error(*error.args)
                new.__dict__.update(error.__dict__)
                new.__cause__ = error.__cause__
                new.__suppress_context__ = True
                return new  # type: ignore[no-any-return]
        return error

    def translated(self, error: BaseException) -> BaseException:
        """Return :meth:`adapted` for an error of the engine. Any other error is returned unchanged."""
        return self.adapted(error) if isinstance(error, PoolError) else error

    def joined(self, base: type[PoolError], error: BaseException) -> BaseException:
        """Return an error of the driver that is also of poolkit's type ``base``. See :func:`both`.

        Uses the adapter's own class for ``base`` only if that adds no driver class that ``error`` lacks, because each
        ``except`` clause must catch the same errors as before.
        """
        row = next(self._row_of[kind] for kind in base.__mro__ if kind in self._row_of)
        fits = issubclass(row.error, PoolError) and all(isinstance(error, driver) for driver in row.bases[1:])
        return both(row.error if fits else row.bases[0], error)


_classes: dict[tuple[type[BaseException], type[BaseException]], type[BaseException] | None] = {}


def both(kind: type[BaseException], error: BaseException) -> BaseException:
    """Return a copy of ``error``, an exception of a driver, that is an instance of its own class and of ``kind``.

    The copy keeps arguments, attributes, notes, traceback, cause and context. Its class has the same name, because
    logs and other libraries show and compare names. If ``error`` has no cause, it becomes the cause of the copy. The
    copy can be copied and pickled if ``error`` can. An error of poolkit, or one whose class does not allow a subclass,
    is returned unchanged. The error of a connect also tells if no descriptor is left.
    """
    if issubclass(kind, ConnectFailed):
        name_missing_descriptor(error)
    made = None if isinstance(error, PoolError) else _class_of(kind, type(error))
    new = None if made is None else _instance(made, error)
    if new is None:
        return error
    new.__cause__ = error if error.__cause__ is None else error.__cause__
    new.__context__ = error.__context__
    return new.with_traceback(error.__traceback__)


def copied(error: BaseException) -> BaseException:
    """Return a copy of an error for one of several callers: each raises its own, with a traceback of its own.

    The copy keeps class, arguments, attributes, notes, traceback, cause and context. An error whose constructor
    refuses that is returned unchanged.
    """
    new = _instance(type(error), error)
    if new is None:
        return error
    new.__cause__, new.__context__ = error.__cause__, error.__context__
    new.__suppress_context__ = error.__suppress_context__
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        new.__notes__ = list(notes)  # type: ignore[attr-defined]
    return new.with_traceback(error.__traceback__)


def of_connect(error: PoolError) -> BaseException | None:
    """Return what a connect has raised, as an error for one of the callers that hear of it (see :func:`copied`).

    None if the engine reports something else than a connect that failed, or that it has given up one that did not
    return. An error with poolkit's type also tells whether trying again can help.
    """
    if type(error) not in (ConnectFailed, ConnectTimeout) or type(error.__cause__) in (type(None), ConnectTimeout):
        return None
    assert error.__cause__ is not None
    new = copied(error.__cause__)
    if isinstance(new, ConnectFailed):
        new.fatal = getattr(error, "fatal", False)
    return new


def _instance(made: type[BaseException], error: BaseException) -> BaseException | None:
    """Return an instance of ``made`` with what ``error`` holds, or None if a foreign constructor refuses."""
    try:
        # OSError stores a file name outside of its arguments
        args = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
        new = made.__new__(made, *args)
        new.args = error.args
        new.__dict__.update(error.__dict__)
        _copy_members(error, new)
        if getattr(type(error), "__setstate__", None) is not BaseException.__setstate__:  # written in C: psycopg2's
            new.__setstate__(error.__reduce__()[2])  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  a foreign constructor may raise anything; then keep the driver's error
        return None
    return new


def _copy_members(error: BaseException, new: BaseException) -> None:
    """Copy what an exception stores outside of ``__dict__``: OSError.errno, UnicodeError.reason, slots."""
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType) and not name.startswith("__"):
                try:
                    value = getattr(error, name)
                    if value is not None:  # OSError shows a filename that was set, even to None
                        setattr(new, name, value)
                except (AttributeError, TypeError):  # the member is not set, or is read-only
                    continue


def _class_of(kind: type[BaseException], driver: type[BaseException]) -> type[BaseException] | None:
    """Return the class that combines both types, or None if they cannot be combined."""
    if issubclass(kind, driver):
        return kind
    key = kind, driver
    if key not in _classes:
        _classes[key] = _join(kind, driver)
    return _classes[key]


def _join(kind: type[BaseException], driver: type[BaseException]) -> type[BaseException] | None:
    def reduced(self: BaseException, protocol: Any) -> Any:
        how = driver.__reduce_ex__(self, protocol)
        if isinstance(how, tuple) and how[0] is made:
            return (_again, (kind, driver, how[1]), *how[2:])
        return how

    body = {
        "__doc__": f"{driver.__module__}.{driver.__qualname__} and {kind.__module__}.{kind.__qualname__}.",
        "__qualname__": driver.__qualname__,
        "__reduce_ex__": reduced,
        "_poolkit_joined": True,
    }
    made: Any = None
    # if C types have incompatible layouts (psycopg2's errors, OSError), use the nearest base that can be combined
    for base in kind.__mro__:
        if made is None and issubclass(base, PoolError):
            made = _subclass(driver, base, body)
    return made  # type: ignore[no-any-return]


def _subclass(driver: type[BaseException], base: type[PoolError], body: dict[str, Any]) -> type[BaseException] | None:
    try:
        # the driver's class first, because its methods create, show and reduce the instances
        made = types.new_class(driver.__name__, (driver, base), {}, lambda space: space.update(body))
        # afterwards: asyncpg refuses a second class with the same name in its module
        made.__module__ = driver.__module__
    except Exception:  # noqa: BLE001  incompatible layouts; foreign metaclasses and __init_subclass__
        return None
    return made


def _again(kind: type[BaseException], driver: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Create the error again when it is unpickled."""
    made = _class_of(kind, driver)
    assert made is not None
    return made(*args)


def release_locals(error: BaseException, before: BaseException | None = None) -> None:
    """Clear the local variables of the functions that ended with ``error`` or with one of its causes.

    A driver's connect that fails, is cancelled or is interrupted may leave its half-open connection in a local
    variable. The traceback would keep that connection and its session on the server for as long as the error is
    referenced: by the pool as its last error, by a caller, by a log handler.

    ``before`` is an error that was being handled when the connect started. It and its causes are left unchanged.
    """
    errors: list[BaseException | None] = [error]
    seen = {id(before)}
    while errors:
        one = errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)  # does not touch frames that are still running
            errors += (one.__cause__, one.__context__)


def missing_extra(adapter: str, needs: str, extra: str) -> MissingExtra:
    """Return the error for a driver that is not installed, with the command that installs it."""
    return MissingExtra(f"{adapter} needs {needs}: pip install 'poolkit[{extra}]'")
