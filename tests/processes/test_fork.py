"""Pain 11, 12: a program forks; its child works, and is not heard on the parent's connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.processes.counting import CountingProxy
from tests.processes.subjects import NAMES, SYNC
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROOT = Path(__file__).parents[2]
DRIVERS = {"engine": "poolkit", "dbapi": "psycopg"}


@pytest.fixture
def proxied(
    redis_server: RedisServer, postgres: PostgresServer, http_server: HTTPServer
) -> Iterator[Callable[[str], tuple[CountingProxy, str]]]:
    """A proxy in front of the server that a kind of pool needs, and the URL through it."""
    proxies: list[CountingProxy] = []
    servers: dict[str, Any] = {"redis": redis_server, "postgres": postgres, "http": http_server}

    def make(kind: str) -> tuple[CountingProxy, str]:
        server = servers[SYNC[kind][1]]
        proxy = CountingProxy(server.host, server.port)
        proxy.start()
        proxies.append(proxy)
        return proxy, server.url.replace(f":{server.port}", f":{proxy.port}")

    yield make
    for proxy in proxies:
        proxy.stop()


class Program:
    """The forking program, one step at a time."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.fork_program", *arguments], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def step(self, name: str) -> dict[str, Any]:
        """What the program says when it has come so far."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the program has ended before {name!r}:\n{self.process.communicate()[1]}")
        said: dict[str, Any] = json.loads(line)
        assert said["step"] == name
        return said

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.mark.parametrize("way", ["sys.exit", "os._exit", "collect", "put-away", "close"])
@pytest.mark.parametrize("kind", NAMES)
def test_12_a_child_works_and_is_not_heard_on_its_parents_connections(
    kind: str, way: str, proxied: Callable[[str], tuple[CountingProxy, str]]
) -> None:
    pytest.importorskip(DRIVERS.get(kind, kind))
    proxy, url = proxied(kind)
    with Program(kind, url, way) as program:
        program.step("leased")
        proxy.hold_new = True
        program.go()
        program.step("connecting")
        until(lambda: proxy.held == 1)
        proxy.hold_new = False
        program.go()
        program.step("fork")
        inherited = set(proxy.ports)
        before = {port: proxy.sent[port] for port in inherited}
        assert len(inherited) == 4  # one of them is held up: the parent is still connecting
        program.go()
        forked = program.step("forked")
        assert forked["status"] == 0
        assert forked["child"] is not None
        own = {forked["mine"]["leased"], *forked["mine"]["idle"]}
        assert not own & set(forked["child"]["ids"])
        assert forked["child"]["ids"][0] == forked["child"]["ids"][1]  # the child's pool pools
        until(lambda: len(proxy.ports) == 4)  # the child's own are closed
        assert {port: proxy.sent[port] for port in inherited} == before  # not one byte
        assert not inherited & proxy.ended
        proxy.let_go()
        program.go()
        done = program.step("done")
        assert done["leased"] == forked["mine"]["leased"]  # and its own replies, or ask() had failed
        assert own <= set(done["others"]) | {done["leased"], *done["late"]}
        assert len(done["late"]) == 1
        assert done["invariants"] == "hold"
        program.go()
        assert program.process.wait(20) == 0
        assert program.process.stderr is not None
        assert program.process.stderr.read() == ""
