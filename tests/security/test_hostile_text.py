"""A server, a name or another process that means harm: terminals, logs and exporters show one bounded line of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import redis
import trio

import poolkit
from poolkit import AsyncConnector, AsyncPool, Budget, ClassConfig, Connector, Pool, PoolError, Verdict, dump
from poolkit.cli import main
from poolkit.cluster import Cluster, Node
from poolkit.dashboard import start
from poolkit.dashboard._desk import MARK
from poolkit.dashboard._local import Local
from poolkit.errors import masked
from poolkit.telemetry.logs import EventLog, JsonFormatter
from poolkit.telemetry.prometheus import PoolCollector
from poolkit.telemetry.statsd import StatsdReporter
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
from tests.support.waiting import until

SECRET = "s3cr3tX"
EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\u202e\u2028\r\nFAKE LOG LINE [bold red]x[/] <script>alert(1)</script> :|@,"
WORDS = f"{EVIL} postgresql://me:{SECRET}@h password='{SECRET}' " + "://a:" * 6000
NAME = f"orders{EVIL}password={SECRET} " + "n" * 3000


def assert_harmless(text: str, lines: int = 1, most: int = 4000) -> None:
    """Nothing that a terminal interprets, no secret, and not more than so many lines of so many characters."""
    told = text.splitlines() or [""]
    assert len(told) <= lines
    for line in told:
        assert line.isprintable(), ascii(line)
        assert len(line) <= most
    assert SECRET not in text


FATAL = "password authentication failed "  # no use trying again: the caller hears of it at once


class Refused(Exception):
    """What a driver makes of the server's words."""


class Bad(Connector[object]):
    def connect(self, timeout: float | None) -> object:
        raise Refused(WORDS)

    def classify(self, error: BaseException) -> Verdict:
        return Verdict.FATAL  # the caller hears of it at once


class AsyncBad(AsyncConnector[object]):
    async def connect(self, timeout: float | None) -> object:
        raise Refused(WORDS)

    def classify(self, error: BaseException) -> Verdict:
        return Verdict.FATAL


class Caught(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=1)
        self.lines: list[str] = []
        self.json: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.json.append(JsonFormatter().format(record))


@pytest.fixture
def log() -> Iterator[Caught]:
    handler = Caught()
    loggers = [logging.getLogger(name) for name in ("poolkit", "psycopg.pool")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(1)
    yield handler
    for one, level in zip(loggers, levels, strict=True):
        one.removeHandler(handler)
        one.setLevel(level)


@pytest.fixture
def hostile() -> Iterator[Pool[object]]:
    """A pool with such a name, whose server has just said such things."""
    settings: dict[str, Any] = {"max_size": 2, "classes": {NAME: ClassConfig(reserved=1)}}
    with Pool(Bad(), name=NAME, budget=Budget(5, name=NAME), **settings) as pool:
        with pytest.raises(PoolError):
            pool.acquire(timeout=60)
        yield pool


def test_the_error_of_a_caller(hostile: Pool[object]) -> None:
    with pytest.raises(PoolError) as caught:
        hostile.acquire(timeout=60)
    assert_harmless(str(caught.value))
    assert "Refused" in str(caught.value)
    assert str(caught.value.__cause__) == WORDS  # the driver's error stays as it is


def test_what_a_pool_tells_of_itself(hostile: Pool[object]) -> None:
    for text in (hostile.explain(), repr(hostile), hostile.name, repr(hostile.config.budget)):
        assert_harmless(text)
    assert_harmless(hostile.dump(), lines=5)
    assert_harmless(dump(), lines=200)
    assert_harmless(str(hostile.stats().last_connect_error), most=220)
    assert_harmless(str(hostile.diagnose()))


def _in_threads() -> str:
    with Pool(Bad(), name=NAME) as pool, pytest.raises(PoolError) as caught:
        pool.acquire(timeout=60)
    return str(caught.value) + pool.explain()


async def _in_a_loop() -> str:
    async with AsyncPool(AsyncBad(), name=NAME) as pool:
        with pytest.raises(PoolError) as caught:
            await pool.acquire(timeout=60)
        return str(caught.value) + pool.explain()


@pytest.mark.parametrize(
    "run",
    [_in_threads, lambda: asyncio.run(_in_a_loop()), lambda: trio.run(_in_a_loop)],
    ids=["threads", "asyncio", "trio"],
)
def test_each_kind_of_pool(run: Callable[[], str]) -> None:
    assert_harmless(run(), most=8000)


def test_names_of_threads_and_tasks() -> None:
    class Good(Connector[object]):
        def connect(self, timeout: float | None) -> object:
            return object()

    with Pool(Good(), name="p", max_size=1) as pool:
        seen: list[str] = []

        def hold() -> None:
            with pool.lease():
                seen.extend([pool.explain(), pool.dump()])

        thread = threading.Thread(target=hold, name=NAME)
        thread.start()
        thread.join()
    assert "orders" in seen[0]
    assert_harmless(seen[0])
    assert_harmless(seen[1], lines=2)


def test_the_log(log: Caught) -> None:
    with Pool(Bad(), name=NAME, listeners=[EventLog(levels=dict.fromkeys(EventLog().levels, logging.INFO))]) as pool:
        with pytest.raises(PoolError):
            pool.acquire(timeout=60)
        pool.clear()
    until(lambda: any("connect failed" in line for line in log.lines))  # another thread may be telling it
    for line in (*log.lines, *log.json):
        assert_harmless(line)


def test_prometheus(hostile: Pool[object]) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(lambda: [hostile]))
    for line in prometheus_client.generate_latest(registry).decode().splitlines():
        assert_harmless(line)


@pytest.mark.parametrize("tags", [False, True])
def test_statsd(hostile: Pool[object], tags: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        reporter = StatsdReporter(port=server.getsockname()[1], tags=tags, interval=60, pools=lambda: [hostile])
        reporter.send()
        packet = server.recv(65536)
        reporter.close()
    assert len(packet) <= 1432
    for line in packet.decode().split("\n"):
        assert_harmless(line)
        name, _, rest = line.partition("|#")[0].partition(":")
        assert name.startswith("poolkit.")
        assert rest.count("|") == 1
        assert rest.replace(".", "").partition("|")[0].replace("e+", "").isdigit()


def test_the_dashboard(hostile: Pool[object]) -> None:
    state = Local(actions=False).state()

    def look(value: Any) -> None:
        if isinstance(value, str):
            assert_harmless(value)
        elif isinstance(value, dict):
            for name, one in value.items():
                look(name)
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    assert any(pool["name"] == hostile.name for pool in state["pools"])
    look(state)


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_poolkit_top(
    hostile: Pool[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    nodes = [Node(f"a[bold]{EVIL}"), Node(f"postgresql://me:{SECRET}@h/db")]
    with (
        Cluster(lambda node: Bad(), nodes, name=NAME),
        start(path=tmp_path / "s") as dashboard,
    ):
        assert main(["top", "--once", *extra, dashboard.address]) == 0
    told = capsys.readouterr()
    assert "[bold" in told.out  # not interpreted as a style
    assert_harmless(told.out, lines=500 + 300 * len(poolkit.pools()), most=200_000)
    assert told.err == ""


def test_poolkit_top_of_a_process_that_is_not_what_it_seems(
    hostile: Pool[object], capsys: pytest.CaptureFixture[str]
) -> None:
    state = Local(actions=False).state()
    for pool in state["pools"]:
        pool.update(name=NAME, last_connect_error=WORDS, diagnosis={"cause": EVIL, "reason": WORDS})
    state["processes"][0]["program"] = NAME
    state["events"] = [{"at": 1.0, "source": NAME, "event": EVIL, "text": WORDS, "times": 1, "pid": 1}]
    with _answering(200, state) as url:
        assert main(["top", "--once", url]) == 0
    assert_harmless(capsys.readouterr().out, lines=500 + 300 * len(poolkit.pools()))
    with _answering(500, {"error": WORDS}) as url:
        assert main(["top", "--once", url]) == 1
    assert_harmless(capsys.readouterr().err)


class _answering:
    """An HTTP server that says it is a dashboard."""

    def __init__(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header(MARK, "1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# -- real drivers, a server that is none ------------------------------------------------------------------------------


class FakeServer:
    """Answers whatever a client says first with one message of a server."""

    def __init__(self, answer: bytes, *, postgres: bool) -> None:
        self._answer = answer
        self._postgres = postgres
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client:
            try:
                client.settimeout(10)
                said = client.recv(65536)
                while self._postgres and len(said) == 8:  # SSLRequest, GSSENCRequest
                    client.sendall(b"N")
                    said = client.recv(65536)
                while said:
                    client.sendall(self._answer)
                    if self._postgres:
                        return
                    said = client.recv(65536)
            except OSError:
                pass

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.close()


def _fatal(text: str) -> bytes:
    """PostgreSQL's ErrorResponse."""
    fields = b"SFATAL\0VFATAL\0C08006\0M" + text.replace("\0", "").encode() + b"\0\0"
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields


def test_psycopg_and_a_server_with_a_huge_fatal(log: Caught) -> None:
    with FakeServer(_fatal(FATAL + WORDS[:29_000]), postgres=True) as server:
        with PoolkitConnectionPool(
            f"host=127.0.0.1 port={server.port} user=me password={SECRET} dbname=d sslmode=disable", name=NAME,
            min_size=0, max_size=1, open=True,
        ) as pool:  # fmt: skip
            with pytest.raises(PoolError) as caught:
                pool.getconn(timeout=60)
            told = [str(caught.value), pool.poolkit.explain(), repr(pool.poolkit), pool.name]
    assert any("error connecting" in line for line in log.lines)
    for text in (*told, *log.lines):
        assert_harmless(text)


async def _async_psycopg(port: int) -> list[str]:
    async with AsyncPoolkitConnectionPool(
        f"host=127.0.0.1 port={port} user=me password={SECRET} dbname=d sslmode=disable", name=NAME,
        min_size=0, max_size=1, open=False,
    ) as pool:  # fmt: skip
        with pytest.raises(PoolError) as caught:
            await pool.getconn(timeout=60)
        return [str(caught.value), pool.poolkit.explain(), repr(pool.poolkit), pool.name]


def test_psycopg_on_a_loop_and_a_server_with_a_huge_fatal(log: Caught) -> None:
    with FakeServer(_fatal(FATAL + WORDS[:29_000]), postgres=True) as server:
        told = asyncio.run(_async_psycopg(server.port))
    assert any("error connecting" in line for line in log.lines)
    for text in (*told, *(line for line in log.lines if "error connecting" in line)):
        assert_harmless(text)


def test_redis_and_a_server_with_a_huge_error(log: Caught) -> None:
    words = WORDS.replace("\r", "").replace("\n", "")
    with FakeServer(b"-ERR " + words.encode() + b"\r\n", postgres=False) as server:
        pool = RedisPool(host="127.0.0.1", port=server.port, password=SECRET, name=NAME, timeout=0.2, retry=None)
        with pytest.raises(redis.RedisError):
            redis.Redis(connection_pool=pool).ping()
        told = [pool.poolkit.explain(), repr(pool.poolkit), pool.poolkit.name]
        pool.disconnect()
    for text in (*told, *log.lines):
        assert_harmless(text)


def test_poolkit_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(_fatal(FATAL + WORDS[:29_000]), postgres=True) as server:
        url = f"postgresql://me:{SECRET}@127.0.0.1:{server.port}/d?sslmode=disable"
        assert main(["doctor", "--url", url]) == 1
    told = capsys.readouterr().out
    assert "could not be queried" in told
    assert f"127.0.0.1:{server.port}" in told
    assert_harmless(told, lines=100)
    for bad in (f"postgresql://me:pa/{SECRET}@h:1", f"gopher://me:{SECRET}\x1b@h"):
        assert main(["doctor", "--url", bad]) == 2
        assert_harmless(capsys.readouterr().err, most=2100, lines=4)  # two of them tell the usage, one is empty


def test_a_traceback_in_json_holds_no_secret() -> None:
    logger = logging.getLogger("poolkit.test")
    try:
        raise Refused(f"cannot open postgresql://me:{SECRET}@h")
    except Refused:
        record = logger.makeRecord("poolkit", logging.ERROR, __file__, 1, "failed", (), __import__("sys").exc_info())
    told = JsonFormatter().format(record)
    assert_harmless(told)
    assert "Refused: cannot open postgresql://me:***@h" in json.loads(told)["exception"]
    assert masked(told) == told
