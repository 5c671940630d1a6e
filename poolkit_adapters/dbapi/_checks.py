"""The checks of idle connections to a server."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

from .._hang_up import hang_up

__all__ = ("ServerChecks",)


class ServerChecks:
    """Checks the connections of a module that talks to a server, which may be gone.

    ``how``: the user's check, an SQL statement, or None for the module's ``ping()`` or ``SELECT 1``.
    """

    def __init__(self, how: Callable[[Any], object] | str | None) -> None:
        self._how = how
        self._hung: set[int] = set()  # ids of connections whose check still runs; its thread closes them

    def will_close(self, connection: Any) -> bool:
        """Return whether the thread of a check that did not end in time closes the connection."""
        return id(connection) in self._hung

    def check(self, connection: Any, timeout: float | None) -> bool:
        """Run the check, in a thread because it may never return. See :meth:`poolkit.Connector.check`."""
        error: list[BaseException] = []
        done = threading.Event()
        turn = threading.Lock()  # decides which came first: the end of the check or its timeout

        def ask() -> None:
            try:
                self._ask(connection)
            except BaseException as failure:  # noqa: BLE001 - passed to the waiting thread
                error.append(failure)
            with turn:
                done.set()
                abandoned = id(connection) in self._hung
            if abandoned:
                error.clear()  # its caller has given up, and the error's frames would keep the socket open
                self._hung.discard(id(connection))
                with contextlib.suppress(Exception):  # pg8000's close() sends a message, but the socket is shut down
                    connection.close()

        threading.Thread(target=ask, name="poolkit-dbapi-check", daemon=True).start()
        done.wait(timeout)
        with turn:
            if not done.is_set():
                self._hung.add(id(connection))
                # if the socket can be reached, the check fails now and its thread closes the connection
                hang_up(connection)
                raise TimeoutError(f"no reply to the check within {timeout:g} s")
        if error:
            raise error[0]
        return True

    def _ask(self, connection: Any) -> None:
        if callable(self._how):
            if self._how(connection) is False:
                raise ConnectionAbortedError("the check returned False")
            return
        ping = getattr(connection, "ping", None)
        if self._how is None and callable(ping):
            # do not let the driver reconnect by itself: the new session would lack its setup
            ping(**({"reconnect": False} if _takes(ping, "reconnect") else {}))
            return
        cursor = connection.cursor()
        try:
            cursor.execute(self._how or "SELECT 1")
            cursor.fetchall()
        finally:
            cursor.close()
        connection.rollback()


def _takes(function: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
