"""Flask: pools for each application, and leases that end with the request. Needs ``pip install 'poolkit[flask]'``.

::

    pools = FlaskPools({"db": lambda app: Pool(connector(app.config["DATABASE"]), name="orders-db")})

    def create_app():
        app = Flask(__name__)
        pools.init_app(app)
        return app
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from .._log import logger
from .._numbers import seconds
from .._threads import Lease, Pool
from ..errors import ConfigError, MissingExtra, UsageError
from ._pools import Drained, checked, drain_all, engine_of, opened

try:
    import flask
except ImportError as error:
    raise MissingExtra("poolkit.frameworks.flask needs Flask: pip install 'poolkit[flask]'") from error

__all__ = ("FlaskPools",)

_KEY = "poolkit"


class FlaskPools:
    """An extension with pools for Flask applications, one set for each application. Thread-safe.

    ``pools`` has, by name, a function that takes the application and creates an object that uses a poolkit pool. Such
    an object is a :class:`~poolkit.Pool`, an adapter's pool, a SQLAlchemy engine, or a redis or httpx client. The
    function is called at the first use, in the process that uses it. If ``pools`` has the object itself, all
    applications share it. Raises ConfigError for an invalid argument.
    """

    def __init__(self, pools: Mapping[str, Any], app: flask.Flask | None = None) -> None:
        self._given = checked(pools, "FlaskPools")
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Register the pools with an application. Raises UsageError if it already has some."""
        if _KEY in app.extensions:
            raise UsageError(f"FlaskPools: the application {app.name!r} already has pools; call init_app() once")
        app.extensions[_KEY] = {}
        app.teardown_appcontext(self._teardown)

    def _of(self, app: flask.Flask) -> dict[str, Any]:
        found = app.extensions.get(_KEY)
        if found is None:
            raise UsageError(f"FlaskPools: the application {app.name!r} has no pools: call init_app(app)")
        return found  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> Any:
        """The current application's pool, client or engine. Raises UsageError outside an application context."""
        thing = self._given[name]
        if not flask.has_app_context():
            raise UsageError(f"FlaskPools: {name!r} needs an application: use it in a request or in app.app_context()")
        app: flask.Flask = flask.current_app._get_current_object()  # type: ignore[attr-defined]
        mine = self._of(app)
        if name not in mine:
            made = opened(name, thing, "FlaskPools", app)
            engine = engine_of(made)
            if not isinstance(engine, Pool) or hasattr(made, "sync_engine"):
                raise ConfigError(
                    f"FlaskPools: {name!r} is asynchronous ({type(made).__name__}); Flask needs a synchronous one", name
                )
            if callable(getattr(made, "open", None)):  # psycopg's
                made.open()
            if mine.setdefault(name, made) is not made:  # another thread created it first
                engine.close(0)
        return mine[name]

    # -- leases -----------------------------------------------------------------------------------------------------

    def connection(self, name: str) -> Any:
        """This request's connection, leased at the first call and returned when the request (or the application
        context) ends. If it ends with an error, the connector decides whether the connection can be kept.

        Only for a :class:`~poolkit.Pool`; UsageError for others. Errors as :meth:`poolkit.Pool.lease`.
        """
        own = self._context().setdefault("own", {})
        if name not in own:
            own[name] = self._take(name)
        return own[name].connection

    def lease(self, name: str) -> Lease[Any]:
        """Take a lease for a part of the request: ``with pools.lease("db") as connection``.

        A lease that is still open when the request ends is logged with the place where it was taken. It is closed with
        its connection, because other code may still be using the connection. Errors as :meth:`connection`.
        """
        lease = self._take(name)
        frame = sys._getframe(1)
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        path = flask.request.path if flask.has_request_context() else "(none)"
        self._context().setdefault("taken", []).append((lease, name, place, path))
        return lease

    def _take(self, name: str) -> Lease[Any]:
        thing = self[name]
        if not isinstance(thing, Pool):
            raise UsageError(
                f"FlaskPools: {name!r} is a {type(thing).__name__}, which leases its own connections: use "
                f"pools[{name!r}]"
            )
        return thing.lease()

    @staticmethod
    def _context() -> dict[str, Any]:
        """The state of this request, kept in ``flask.g``, which ends with the application context."""
        found: dict[str, Any] = flask.g.setdefault("_poolkit", {})
        return found

    @staticmethod
    def _teardown(error: BaseException | None) -> None:
        context = flask.g.pop("_poolkit", {})
        with ExitStack() as ends:  # close all, even if one raises
            for lease in context.get("own", {}).values():
                ends.callback(lease.close, error=error)
            for taken in context.get("taken", ()):
                _end_if_open(ends, *taken)

    # -- shutdown ---------------------------------------------------------------------------------------------------

    def close(self, app: flask.Flask, timeout: float = 10.0) -> Drained:
        """Drain the pools of an application, all within ``timeout`` seconds.

        Returns, by name, whether all leases ended without being aborted. Call it in a server's hook (gunicorn's
        ``worker_exit``) and in tests. A later use creates the pools again. If a process ends without this call, the
        operating system closes its connections. Raises ConfigError for an invalid ``timeout``.
        """
        seconds("timeout", timeout)
        mine = self._of(app)
        things = {name: mine.pop(name) for name in tuple(mine)}
        done = drain_all([(name, engine_of(thing)) for name, thing in things.items()], timeout)
        for thing in things.values():
            close = getattr(thing, "close", None)
            if thing is not engine_of(thing) and callable(close):
                close()
        return done


def _end_if_open(ends: ExitStack, lease: Lease[Any], name: str, place: str, path: str) -> None:
    """Close a lease at the end of a request that has left it open."""
    if lease._record is not None:
        ends.callback(lease.close, discard=True)
        logger.warning(
            "FlaskPools: the request %s left a lease of %r open, taken at %s; its connection was closed",
            path, name, place,
        )  # fmt: skip
