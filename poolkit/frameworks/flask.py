"""Flask: pools for each application, leases that end with the request. Needs ``pip install 'poolkit[flask]'``.

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
    """Pools for Flask applications, one set for each: an extension after the pattern of ``init_app``.

    ``pools``: by name, a function that is given the application and makes whatever has a poolkit pool behind it (a
    :class:`~poolkit.Pool`, an adapter's pool, a SQLAlchemy engine, a redis or httpx client made with one); or such a
    thing itself, which all applications then share. It is made when it is first asked for, in the process that asks.
    Thread-safe. Raises ConfigError for what cannot be meant.
    """

    def __init__(self, pools: Mapping[str, Any], app: flask.Flask | None = None) -> None:
        self._given = checked(pools, "FlaskPools")
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Let an application use the pools. Raises UsageError where it has some already."""
        if _KEY in app.extensions:
            raise UsageError(f"FlaskPools: the application {app.name!r} has its pools already")
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
            raise UsageError(f"FlaskPools: {name!r} belongs to an application: use it in a request or an app_context()")
        app: flask.Flask = flask.current_app._get_current_object()  # type: ignore[attr-defined]
        mine = self._of(app)
        if name not in mine:
            made = opened(name, thing, "FlaskPools", app)
            engine = engine_of(made)
            if not isinstance(engine, Pool) or hasattr(made, "sync_engine"):
                raise ConfigError(
                    f"FlaskPools: {name!r} is asynchronous ({type(made).__name__}); Flask has threads", name
                )
            if mine.setdefault(name, made) is not made:  # another thread was faster
                engine.close(0)
        return mine[name]

    # -- leases -----------------------------------------------------------------------------------------------------

    def connection(self, name: str) -> Any:
        """This request's connection: taken at the first call, given back when the request (or the application context)
        ends. One that ends in an error hands it to the connector, which decides whether the connection can be kept.

        For poolkit's own pools. Errors as :meth:`poolkit.Pool.lease`.
        """
        own = self._context().setdefault("own", {})
        if name not in own:
            own[name] = self._take(name)
        return own[name].connection

    def lease(self, name: str) -> Lease[Any]:
        """A lease for a part of the request: ``with pools.lease("db") as connection``.

        One that is still open when the request ends is closed then, together with its connection, which somebody may
        still be using, and reported in the log with the place where it was taken.
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
                f"FlaskPools: {name!r} is a {type(thing).__name__}, which lends its connections itself: use "
                f"pools[{name!r}]"
            )
        return thing.lease()

    @staticmethod
    def _context() -> dict[str, Any]:
        """Of the request; in ``flask.g``, which ends with the application context."""
        found: dict[str, Any] = flask.g.setdefault("_poolkit", {})
        return found

    @staticmethod
    def _teardown(error: BaseException | None) -> None:
        context = flask.g.pop("_poolkit", {})
        with ExitStack() as ends:  # all of them, whatever one of them raises
            for lease in context.get("own", {}).values():
                ends.callback(lease.close, error=error)
            for lease, name, place, path in context.get("taken", ()):
                if lease._record is not None:
                    ends.callback(lease.close, discard=True)
                    logger.warning(
                        "FlaskPools: the request %s left a lease of %r open, taken at %s; its connection is closed",
                        path, name, place,
                    )  # fmt: skip

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, app: flask.Flask, timeout: float = 10.0) -> Drained:
        """Drain the pools of an application, all within ``timeout`` seconds; by name, whether every lease had ended.

        For a server's hook (gunicorn's ``worker_exit``) and for tests. What the application asks for afterwards is made
        anew. A process that ends without it leaves the rest to the operating system.
        """
        mine = self._of(app)
        things = {name: mine.pop(name) for name in tuple(mine)}
        done = drain_all([(name, engine_of(thing)) for name, thing in things.items()], timeout)
        for thing in things.values():
            close = getattr(thing, "close", None)
            if thing is not engine_of(thing) and callable(close):
                close()
        return done
