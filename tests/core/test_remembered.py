"""The pool stores a copy of an error without tracebacks: it has the same text and refers to no local variables."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import httpcore
import psycopg
import pytest
import redis.exceptions
import sqlalchemy.exc

from poolkit.errors import ConfigError, ConnectTimeout, remembered
from poolkit.testing.servers import free_port


class Odd(Exception):
    """An error whose constructor takes other arguments than it stores."""

    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(f"{host}:{port}")
        self.port = port


class Unmakeable(Exception):
    def __new__(cls, secret: object) -> Unmakeable:
        if secret is not Ellipsis:
            raise TypeError("not like this")
        return super().__new__(cls)


def raised(error: BaseException) -> BaseException:
    """With a traceback."""
    with pytest.raises(type(error)):
        raise_it(error)
    return error


def raise_it(error: BaseException) -> None:
    raise error


ERRORS = [
    ConnectionRefusedError("down"),
    FileNotFoundError(2, "No such file or directory", "server.sock"),
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    httpcore.ConnectError(raised(OSError(111, "Connection refused"))),
    psycopg.OperationalError("the database system is shutting down"),
    redis.exceptions.AuthenticationError("invalid username-password pair"),
    sqlalchemy.exc.OperationalError("select 1", {}, raised(Exception("gone"))),
    ConfigError("max_size=0: at least 1", "max_size"),
    ConnectTimeout("no connection within connect_timeout=1"),
    Odd("here", port=5),
]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)
        for one in (*getattr(error, "exceptions", ()), *error.args, *vars(error).values()):
            if isinstance(one, BaseException):
                yield from chain(one)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_twin_says_what_the_error_says(error: Exception) -> None:
    """Class, arguments, attributes and cause are the same. The original error keeps its traceback."""
    error.__traceback__ = None
    with pytest.raises(type(error)) as caught:
        try:
            raise_it(OSError("below"))
        except OSError as below:
            raise error from below
    assert caught.value is error
    twin = remembered(error)
    assert error.__traceback__ is not None
    assert type(twin) is type(error)
    assert twin is not error
    assert str(twin) == str(error)
    notes = vars(twin).pop("__notes__")
    assert repr((twin.args, vars(twin))) == repr((error.args, vars(error)))
    assert notes == [f"raised at {__file__}:{error.__traceback__.tb_lineno} in {sys._getframe().f_code.co_name}"]
    assert remembered(twin.__cause__).__notes__[0].endswith("in raise_it")  # type: ignore[union-attr, attr-defined]
    assert isinstance(twin.__cause__, OSError)
    assert twin.__cause__.args == ("below",)
    assert twin.__context__ is twin.__cause__
    assert twin.__suppress_context__
    assert all(one.__traceback__ is None for one in chain(twin))


def test_a_group_of_errors_has_twins_inside() -> None:
    """anyio raises such a group when no address answers."""

    async def connect() -> None:
        await anyio.connect_tcp("localhost", free_port())

    with pytest.raises(OSError) as caught:
        anyio.run(connect)
    twin = remembered(caught.value)
    assert str(twin) == str(caught.value)
    assert len(list(chain(twin))) == len(list(chain(caught.value)))
    assert all(one.__traceback__ is None for one in chain(twin))


def test_what_cannot_be_made_again_is_kept_as_it_is() -> None:
    error: Any = Unmakeable(Ellipsis)
    error.args = ("elsewhere",)
    assert remembered(error) is error


def test_causes_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    twin = remembered(first)
    assert twin.__cause__ is not None
    assert twin.__cause__.__cause__ is twin


def test_of_a_chain_without_end_the_last_errors_are_kept() -> None:
    """Each retry in the handler of the error before adds one."""
    error: BaseException = OSError("try 0")
    for number in range(1, 5000):
        error, before = OSError(f"try {number}"), error
        error.__context__ = before
    kept = [str(one) for one in chain(remembered(error))]
    assert kept[:2] == ["try 4999", "try 4998"]
    assert len(kept) < 100
    while error.__context__ is not None:  # link by link: freeing the chain at once would recurse too deep
        error = error.__context__
