"""Nothing of poolkit can be reached from another machine."""

from __future__ import annotations

import ast
from pathlib import Path

import poolkit
import poolkit_adapters
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer

LISTENING = {"listen", "create_server", "start_server", "bind", "serve_forever", "HTTPServer", "ThreadingHTTPServer"}

SERVERS = {"testing", "cli", "dashboard"}
"""Packages that start the test kit's servers, and the dashboard, which listens when it is told to (where is tested in
``tests/dashboard``)."""


NO_PORT = {
    # a Unix socket that is never read: it only shows the other processes of this host that this one is alive
    ("fleet/_file.py", "bind"),
    ("cluster/_async.py", "bind"),  # of a cluster to its event loop
    ("cluster/_opening.py", "bind"),
}
"""Calls with the names of those that open a port, which open none."""


def test_the_engine_and_the_adapters_open_no_port() -> None:
    roots = [Path(package.__path__[0]) for package in (poolkit, poolkit_adapters)]
    modules = [path for root in roots for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in SERVERS]
    assert len(modules) > 100
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) < 3:  # SQLAlchemy's event.listen() has three
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if (path.relative_to(path.parents[1]).as_posix(), name) not in NO_PORT:
                    assert name not in LISTENING, f"{path}:{node.lineno} calls {name}()"


def test_the_servers_of_the_test_kit_listen_on_loopback(
    postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> None:
    for server in (postgres, redis_server, http_server):
        port = f"{server.port:04X}"
        tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
        lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        found = {line[1].rpartition(":")[0] for line in lines if line[1].endswith(":" + port) and line[3] == "0A"}
        assert server.host == "127.0.0.1"
        assert found <= {"0100007F"}, f"{server} listens on {found}"
