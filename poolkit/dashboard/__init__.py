"""A page and a JSON API that show the pools of a process, and steer them if that is enabled. Standard library only.

>>> from poolkit.dashboard import DashboardApp, start

``DashboardApp`` is mounted in an ASGI application; ``start()`` opens a socket in any other service, which ``poolkit
dashboard`` and ``poolkit top`` find.

_recorder (what is kept: events, history) · _state (what is shown) · _local (this process' pools) · _remote (those of
others, for the commands) · _desk (routes, who may do what; no I/O) · _asgi, _server (the doors to it) · _places (where
the sockets are) · page/ (what the browser gets)
"""

from ._asgi import DashboardApp
from ._server import Dashboard, start

__all__ = ("Dashboard", "DashboardApp", "start")
