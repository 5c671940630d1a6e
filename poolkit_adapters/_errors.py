"""What adapters do with errors: the driver's type beside poolkit's, by one table for each adapter."""

from __future__ import annotations

import errno
import os
import traceback
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from poolkit.errors import ConfigError, MissingExtra, PoolError

__all__ = (
    "BAD_SETTING", "MISSING", "Row", "Table", "both", "missing_extra", "name_missing_descriptor", "release_locals",
)  # fmt: skip


class Row(NamedTuple):
    """One line of an adapter's table of errors."""

    what: str
    """What happened, for the documentation."""
    error: type[BaseException]
    """The class that is raised; of a driver's own error: a class that the raised one is a subclass of."""
    bases: tuple[type[BaseException], ...]
    """What it may be caught as: poolkit's class first, then the driver's."""


BAD_SETTING = Row("a setting, an argument or a URL that cannot be meant", ConfigError, (ConfigError, ValueError))
MISSING = Row("the driver, or an optional part of it, is not installed", MissingExtra, (MissingExtra, ImportError))


class Table:
    """The errors that leave one adapter. The documentation is made from it, and a test walks it."""

    def __init__(self, *rows: Row) -> None:
        self.rows = rows
        self._row_of: dict[type[BaseException], Row] = {}
        for row in rows:
            self._row_of.setdefault(row.bases[0], row)  # the first one counts
        self._own = tuple(row.error for row in rows if row.error is not row.bases[0])

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def with_rows(self, *rows: Row) -> Table:
        """A table that has these rows too."""
        return Table(*self.rows, *rows)

    def of(self, base: type[PoolError]) -> Any:
        """The adapter's class for one of poolkit's."""
        return self._row_of[base].error

    def adapted(self, error: PoolError) -> PoolError:
        """An error of the engine as the adapter's own type, which is the driver's too; cause, text, notes and
        attributes stay. The nearest base class counts; an error without an entry is returned as it is.
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

    def joined(self, base: type[PoolError], error: BaseException) -> BaseException:
        """An error of the driver that is of poolkit's type ``base`` as well: see :func:`both`.

        Of the adapter's own class for ``base`` where that adds none of the driver's classes that ``error`` has not,
        because each ``except`` clause must catch it exactly as before.
        """
        row = next(self._row_of[kind] for kind in base.__mro__ if kind in self._row_of)
        fits = issubclass(row.error, PoolError) and all(isinstance(error, driver) for driver in row.bases[1:])
        return both(row.error if fits else row.bases[0], error)


_classes: dict[tuple[type[BaseException], type[BaseException]], type[BaseException] | None] = {}


def both(kind: type[BaseException], error: BaseException) -> BaseException:
    """``error``, an exception of a driver's, as an instance of its own class and of ``kind``.

    Its arguments, attributes and notes, its traceback, cause and context are those of ``error``, and its class has the
    same name, because logs and other libraries show and compare names. One that has no cause gets ``error`` itself as
    its cause. It can be copied and pickled if ``error`` can. Returned as it is: an error of poolkit's, and one whose
    class does not allow a subclass.
    """
    made = None if isinstance(error, PoolError) else _class_of(kind, type(error))
    if made is None:
        return error
    try:
        # OSError keeps the name of a file apart from its arguments
        args = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
        new = made.__new__(made, *args)
        new.args = error.args
        new.__dict__.update(error.__dict__)
        _copy_members(error, new)
        if getattr(type(error), "__setstate__", None) is not BaseException.__setstate__:  # written in C: psycopg2's
            new.__setstate__(error.__reduce__()[2])  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  a constructor of somebody else's: better the driver's error alone than another
        return error
    new.__cause__ = error if error.__cause__ is None else error.__cause__
    new.__context__ = error.__context__
    return new.with_traceback(error.__traceback__)


def _copy_members(error: BaseException, new: BaseException) -> None:
    """What an exception keeps outside of its dictionary: ``errno`` of OSError, ``reason`` of UnicodeError, slots."""
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType) and not name.startswith("__"):
                try:
                    value = getattr(error, name)
                    if value is not None:  # OSError shows a filename that was set, even to None
                        setattr(new, name, value)
                except (AttributeError, TypeError):  # one that is not set, or cannot be
                    continue


def _class_of(kind: type[BaseException], driver: type[BaseException]) -> type[BaseException] | None:
    """The class of an error that is both; None: there can be none."""
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
    for base in kind.__mro__:  # C types whose layouts exclude each other (psycopg2's errors, OSError): a nearest base
        if made is None and issubclass(base, PoolError):
            made = _subclass(driver, base, body)
    return made  # type: ignore[no-any-return]


def _subclass(driver: type[BaseException], base: type[PoolError], body: dict[str, Any]) -> type[BaseException] | None:
    try:
        # the driver's class first: what its instances are made, shown and reduced by
        made = types.new_class(driver.__name__, (driver, base), {}, lambda space: space.update(body))
        made.__module__ = driver.__module__  # last: asyncpg allows no second class of a name in its module
    except Exception:  # noqa: BLE001  two layouts; metaclasses and __init_subclass__ of somebody else's
        return None
    return made


def _again(kind: type[BaseException], driver: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Unpickle."""
    made = _class_of(kind, driver)
    assert made is not None
    return made(*args)


def release_locals(error: BaseException, before: BaseException | None = None) -> None:
    """Drop the local variables of the functions that have ended with ``error`` (also those behind its causes).

    A driver's connect that fails, is cancelled or is interrupted may leave its half-open connection in a local
    variable. The traceback would keep it, and with it a session of the server, for as long as anybody keeps the error:
    the pool as its last error, a caller, a log handler.

    ``before``: an error that was being handled when the connect began. It and what led to it are left alone.
    """
    errors: list[BaseException | None] = [error]
    seen = {id(before)}
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
