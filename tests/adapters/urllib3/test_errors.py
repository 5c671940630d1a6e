"""Each error of the urllib3 and requests adapters happens, on a real server, and is poolkit's and the driver's."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3

import poolkit
from poolkit import BreakerConfig
from poolkit.testing.servers import HTTPServer
from poolkit_adapters import requests as over_requests
from poolkit_adapters import urllib3 as over_urllib3
from poolkit_adapters.requests._errors import ERRORS as REQUESTS_ERRORS
from poolkit_adapters.urllib3._errors import ERRORS
from tests.adapters.errors.walk import Scenarios, walked
from tests.support.loops import LoopServer
from tests.support.waiting import until

NOBODY = "http://127.0.0.1:1/"


class Twin:
    """A client of urllib3 or of requests."""

    def __init__(self, server: HTTPServer, driver: str) -> None:
        self.server = server
        self.driver = driver

    @contextlib.contextmanager
    def pool(self, **settings: Any) -> Iterator[Any]:
        settings = {"name": "orders", "max_size": 1, **settings}
        if self.driver == "urllib3":
            with over_urllib3.PoolkitPoolManager(**settings) as manager:
                yield from closing_engines(manager, manager)
        else:
            with requests.Session() as session:
                session.mount("http://", over_requests.PoolkitAdapter(**settings))
                session.mount("https://", over_requests.PoolkitAdapter(**settings))
                yield from closing_engines(session, *session.adapters.values())

    def engine(self, pool: Any) -> Any:
        holder = pool if self.driver == "urllib3" else pool.get_adapter("http://")
        return holder.engines[0]

    def send(self, pool: Any, url: str, timeout: Any = None, **options: Any) -> Any:
        """Return the response, still open."""
        if self.driver == "urllib3":
            return pool.request("GET", url, timeout=timeout, preload_content=False, **{"retries": False, **options})
        options.pop("retries", None)
        return pool.get(url, timeout=timeout, stream=True)


def closing_engines(given: Any, *holders: Any) -> Iterator[Any]:
    """Close the engines at the end: the housekeeping thread may hold one that was only dropped for a moment longer."""
    try:
        yield given
    finally:
        for holder in holders:
            for engine in getattr(holder, "engines", ()):
                engine.close()


BOTH = {"urllib3": Scenarios[Twin](ERRORS), "requests": Scenarios[Twin](REQUESTS_ERRORS)}


def happens(name: str, *words: str) -> Any:
    """The scenario of this row, under both drivers."""

    def mark(scenario: Any) -> Any:
        for driver, place in (("urllib3", over_urllib3), ("requests", over_requests)):
            kind = getattr(place, name, None) or getattr(poolkit, name)
            BOTH[driver].happens(kind, *words)(scenario)
        return scenario

    return mark


@happens("AcquireTimeout", "orders", "in use 1/1")
async def _(twin: Twin) -> None:
    with twin.pool() as pool, contextlib.closing(twin.send(pool, f"{twin.server.url}/stream?chunks=3")):
        twin.send(pool, twin.server.url, over_urllib3.Timeout(pool=0.01))


@happens("ServerUnavailable", "orders", "last connect error")
async def _(twin: Twin) -> None:
    """The connect to a host fails; then another host has the only permit."""
    with twin.pool(budget=poolkit.Budget(1), breaker=BreakerConfig(failure_threshold=9)) as pool:
        with pytest.raises(poolkit.ConnectFailed):
            twin.send(pool, NOBODY)
        with contextlib.closing(twin.send(pool, f"{twin.server.url}/stream?chunks=3")):
            twin.send(pool, NOBODY, over_urllib3.Timeout(pool=0.01))


@happens("PoolBusy", "orders", "max_waiting=0")
async def _(twin: Twin) -> None:
    with twin.pool(max_waiting=0) as pool, contextlib.closing(twin.send(pool, f"{twin.server.url}/stream?chunks=3")):
        twin.send(pool, twin.server.url)


@happens("PoolSuspended", "orders", "suspended")
async def _(twin: Twin) -> None:
    with twin.pool() as pool:
        twin.send(pool, twin.server.url).close()
        twin.engine(pool).suspend(fail_fast=True)
        twin.send(pool, twin.server.url)


@happens("PoolClosed", "orders", "closed")
async def _(twin: Twin) -> None:
    with twin.pool() as pool:
        twin.send(pool, twin.server.url).close()
        twin.engine(pool).close()
        twin.send(pool, twin.server.url)


@happens("ConnectFailed", "refused")
async def _(twin: Twin) -> None:
    with twin.pool() as pool:
        twin.send(pool, NOBODY)


@BOTH["urllib3"].happens(urllib3.exceptions.MaxRetryError, "Max retries exceeded", "refused")
async def _(twin: Twin) -> None:
    with twin.pool() as pool:
        twin.send(pool, NOBODY, retries=1)


@happens("ConnectTimeout")
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as full:
        taken = []
        try:
            with contextlib.suppress(OSError):
                while len(taken) < 300:  # until no further connection is accepted
                    taken.append(socket.create_connection(full.getsockname(), timeout=0.05))
            with twin.pool(connect_timeout=0.05) as pool:
                twin.send(pool, f"http://127.0.0.1:{full.getsockname()[1]}/")
        finally:
            for one in taken:
                one.close()


@happens("CircuitOpen", "orders", "circuit open")
async def _(twin: Twin) -> None:
    with twin.pool(breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises(poolkit.ConnectFailed):
            twin.send(pool, NOBODY)
        twin.send(pool, NOBODY)


@happens("LeaseOverdue", "leak_after=0.01")
async def _(twin: Twin) -> None:
    with twin.pool(leak_after=0.01, on_leak="raise") as pool:
        response = twin.send(pool, f"{twin.server.url}/bytes?n=100000")
        until(lambda: twin.engine(pool).stats().leaks, "the lease is reported")
        if twin.driver == "urllib3":
            response.read()
        else:
            assert response.content


@happens("ConfigError", "max_size=-1")
async def _(twin: Twin) -> None:
    with twin.pool(max_size=-1):
        pass


@BOTH["urllib3"].walk()
def test_it_happens_under_urllib3(row: Any, scenario: Any, words: Any, only: str, http_server: HTTPServer) -> None:
    asyncio.run(walked(row, scenario, words, Twin(http_server, "urllib3")))


@BOTH["requests"].walk()
def test_it_happens_under_requests(row: Any, scenario: Any, words: Any, only: str, http_server: HTTPServer) -> None:
    asyncio.run(walked(row, scenario, words, Twin(http_server, "requests")))


class Mute(LoopServer):
    """A proxy that reads requests and never answers."""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass


@pytest.mark.parametrize("limit", [0.05, (30, 0.05)], ids=["one", "two"])
def test_a_proxy_that_does_not_answer_is_the_read_timeout_of_requests(limit: Any) -> None:
    """As with requests' own adapter. It is a connect of the pool, so it is poolkit's ConnectTimeout too."""
    with Mute("mute") as proxy, requests.Session() as session:
        session.mount("https://", over_requests.PoolkitAdapter())
        proxies = {"https": f"http://{proxy.host}:{proxy.port}"}
        with pytest.raises(requests.ReadTimeout, match="Read timed out") as raised:
            session.get("https://orders.invalid/", proxies=proxies, timeout=limit)
    assert isinstance(raised.value, poolkit.ConnectTimeout)
    assert not isinstance(raised.value, requests.ConnectTimeout)
    assert raised.value.request is not None
    again = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(again, requests.ReadTimeout)
    assert isinstance(again, poolkit.ConnectTimeout)
