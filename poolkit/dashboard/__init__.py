"""A page and a JSON API that show the pools of a process, with optional actions. Standard library only.

>>> from poolkit.dashboard import DashboardApp, start

Mount ``DashboardApp`` in an ASGI application. In any other service call ``start()``, which opens a socket that
``poolkit dashboard`` and ``poolkit top`` find.

Modules: _recorder keeps events and history; _state computes what is shown; _local reads the pools of this process;
_remote reads those of other processes, for the commands; _desk has the routes and permissions, without I/O; _asgi and
_server accept requests; _places finds the sockets; page/ is what the browser loads.
"""

from ._asgi import DashboardApp
from ._server import Dashboard, start

__all__ = ("Dashboard", "DashboardApp", "start")
