"""What a module's methods return and what uses the connection later: it must not do so after the lease.

An iterator and a context manager get a proxy, because they may begin after the lease. Any other object with a
``close()`` (a blob, a large object) stays the module's own, and is closed at the return. So does a reader that a
``fetch`` method returns, because other libraries ask for its type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import wraps
from types import GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._proxies import PooledConnection

__all__ = ("PooledBlock", "PooledIterator", "Result", "proxy_of")

_PLAIN = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})


def proxy_of(connection: PooledConnection, name: str, result: Any) -> Any:
    """Return what a user gets for the result of a method, and note it if it uses the connection later."""
    kind = type(result)
    if kind in _PLAIN:
        return result
    closable = callable(getattr(kind, "close", None))
    reader = closable and kind is not GeneratorType and name.startswith("fetch")
    if hasattr(kind, "__next__") and not reader:
        result = PooledIterator(connection, result)
    elif closable:
        pass
    elif hasattr(kind, "__enter__"):
        result = PooledBlock(connection, result)
    else:
        return result
    connection._state.note(result)
    return result


class Result:
    """A proxy for what a method has returned. It ends with the lease: with the module's own methods, whose errors do
    not count, or (:meth:`_drop`) without a call.
    """

    __slots__ = ("__weakref__", "_connection", "_result")

    _what = ""

    def __init__(self, connection: PooledConnection, result: Any) -> None:
        self._connection = connection
        self._result = result

    @property
    def _real(self) -> Any:
        if self._result is None:
            raise self._connection._misused(f"the connection of this {self._what} was already returned to its pool")
        return self._result

    def _end(self) -> None:
        self._drop()

    def _drop(self) -> Any:
        """Make the proxy unusable, and return what it stood for."""
        result, self._result = self._result, None
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class PooledIterator(Result):
    """An iterator of the module (``notifies()``, ``stream()``, ``iterdump()``)."""

    __slots__ = ()

    _what = "iterator"

    def __iter__(self) -> PooledIterator:
        return self

    def __next__(self) -> Any:
        iterator = self._real
        self._connection._state.touch()
        return self._connection._call(next, iterator)

    def close(self) -> None:
        """End the iteration."""
        close: Callable[[], None] | None = getattr(self._result, "close", None)
        if close is not None:
            self._connection._call(close)

    def _end(self) -> None:
        try:
            with contextlib.suppress(Exception):
                self.close()
        finally:
            self._drop()


class PooledBlock(Result):
    """A context manager of the module (``transaction()``, ``pipeline()``, ``copy()``)."""

    __slots__ = ("_entered",)

    _what = "block"

    def __init__(self, connection: PooledConnection, block: Any) -> None:
        super().__init__(connection, block)
        self._entered = False

    def __enter__(self) -> Any:
        block = self._real
        self._connection._state.touch()
        self._entered = True
        value = self._connection._call(block.__enter__)
        return self if value is block else value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        if self._result is None and error is not None:
            return None  # must not replace the first error
        block = self._real
        self._entered = False
        return self._connection._call(block.__exit__, kind, error, traceback)

    def __call__(self, function: Any) -> Any:
        """As a decorator of a function: each call of it is a block of its own."""
        real = self._real
        if not isinstance(real, contextlib.ContextDecorator):
            return self._connection._call(real, function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with proxy_of(self._connection, "", self._real._recreate_cm()):
                return function(*args, **kwargs)

        return call

    def _end(self) -> None:
        block = self._drop()
        if self._entered:
            error = self._connection._misused("the connection was returned to its pool in the middle of this block")
            with contextlib.suppress(Exception):
                self._connection._call(block.__exit__, type(error), error, None)
