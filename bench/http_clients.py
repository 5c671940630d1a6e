"""The clients of *http*, and the program that loads a server with one of them and ends at once.

``python -m bench.http_clients JSON`` prints what it saw. It is a process of its own because httpx's pool
needs many seconds to be told that a thousand requests are cancelled; here nobody waits for it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.load import Load, by_tasks

__all__ = (
    "ALONE", "BAR", "OURS", "OURS_2", "OWN", "OWN_2", "PEERS", "REQUESTS", "URLLIB3", "Turn", "async_client",
    "blocking_client", "client", "load_apart",
)  # fmt: skip

OWN, OURS, BAR = "httpx", "httpx -> poolkit", "aiohttp"
OWN_2, OURS_2 = "httpx2", "httpx2 -> poolkit"
PEERS = "httpx -> aiohttp", "httpx -> pyreqwest"
"""Other transports for httpx: those of httpx-aiohttp and of pyreqwest (Rust). For tasks."""
ALONE = "httpx alone"
"""httpx with a transport that answers by itself: what no transport can change."""
URLLIB3 = ("urllib3", "urllib3 -> poolkit")
REQUESTS = ("requests", "requests -> poolkit")
PATIENCE = 60.0


@dataclass(frozen=True)
class Turn:
    """Who loads what: ``authority`` is the PEM file of the server's, empty without TLS (then it is HTTP/1.1)."""

    name: str
    url: str
    limit: int
    """Connections; 0: the default limits (100, of which 20 may be idle)."""
    authority: str = ""
    http2: bool = True
    """With TLS."""
    path: str = "/"
    tasks: int = 1
    seconds: float = 1.0


@contextmanager
def client(turn: Turn) -> Iterator[Callable[[], object]]:
    """A request, synchronous."""
    import httpx

    from poolkit_adapters.httpx import PoolkitTransport

    kind: Any = httpx.HTTPTransport if turn.name == OWN else PoolkitTransport
    with httpx.Client(transport=kind(**_settings(turn, httpx)), timeout=PATIENCE) as opened:
        yield lambda: opened.get(turn.url + "/")


@contextmanager
def blocking_client(turn: Turn) -> Iterator[Callable[[], object]]:
    """A request by urllib3 or requests, with pools that block."""
    if turn.name in URLLIB3:
        import urllib3

        from poolkit_adapters.urllib3 import PoolkitPoolManager

        manager: Any = urllib3.PoolManager if turn.name == URLLIB3[0] else PoolkitPoolManager
        with manager(maxsize=turn.limit, block=True, timeout=PATIENCE) as opened:
            yield lambda: opened.request("GET", turn.url + "/")
        return
    import requests

    from poolkit_adapters.requests import PoolkitAdapter

    adapter: Any = requests.adapters.HTTPAdapter if turn.name == REQUESTS[0] else PoolkitAdapter
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", adapter(pool_maxsize=turn.limit, pool_block=True))
        yield lambda: session.get(turn.url + "/", timeout=PATIENCE)


@asynccontextmanager
async def async_client(turn: Turn) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """A request for a path, asynchronous."""
    if turn.name == BAR:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        connector = aiohttp.TCPConnector(limit=turn.limit, ssl=_context(turn))
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def get(path: str) -> None:
                async with session.get(turn.url + path) as response:
                    await response.read()

            yield get
        return
    if turn.name in PEERS or turn.name == ALONE:
        import httpx

        async with httpx.AsyncClient(transport=_peer(turn), timeout=PATIENCE) as opened:
            yield lambda path: opened.get(turn.url + path)
        return
    library = importlib.import_module("httpx2" if turn.name in (OWN_2, OURS_2) else "httpx")
    kind: Any = library.AsyncHTTPTransport
    if turn.name in (OURS, OURS_2):
        kind = importlib.import_module(f"poolkit_adapters.{library.__name__}").AsyncPoolkitTransport
    async with library.AsyncClient(transport=kind(**_settings(turn, library)), timeout=PATIENCE) as opened:
        yield lambda path: opened.get(turn.url + path)


def _peer(turn: Turn) -> Any:
    import httpx

    limit = turn.limit or 100
    if turn.name == ALONE:
        body = bytes(int(turn.path.partition("n=")[2] or 100))

        async def answer(request: Any) -> Any:
            await asyncio.sleep(0)  # as every transport does; otherwise the measurement never ends
            return httpx.Response(200, headers=[(b"Content-Length", b"%d" % len(body))], content=body)

        return httpx.MockTransport(answer)
    if turn.name == PEERS[0]:
        from httpx_aiohttp import AiohttpTransport

        limits = httpx.Limits(max_connections=limit, max_keepalive_connections=limit)
        return AiohttpTransport(limits=limits, verify=_context(turn))
    from pyreqwest.client import ClientBuilder
    from pyreqwest.compatibility.httpx import HttpxTransport

    builder = ClientBuilder().max_connections(limit).http1_only()
    if turn.authority:
        with open(turn.authority, "rb") as file:
            builder = builder.add_root_certificate_pem(file.read())
    return HttpxTransport(builder.build())


def _context(turn: Turn) -> Any:
    return ssl.create_default_context(cafile=turn.authority) if turn.authority else True


def _settings(turn: Turn, library: Any) -> dict[str, Any]:
    if not turn.limit:  # the library's default
        return {}
    limits = library.Limits(max_connections=turn.limit, max_keepalive_connections=turn.limit)
    if not turn.authority:
        return {"limits": limits}
    return {"limits": limits, "verify": _context(turn), "http2": turn.http2}


def load_apart(turn: Turn) -> Load:
    """Load by tasks in a process of its own.

    Raises:
        subprocess.SubprocessError: it failed, or has not ended long after its time.
    """
    program = [sys.executable, "-m", "bench.http_clients", json.dumps(asdict(turn))]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, timeout=120 + 2 * turn.seconds)
    return Load(**json.loads(done.stdout))


async def _load(turn: Turn) -> None:
    async with async_client(turn) as get:
        found = await by_tasks(lambda: get(turn.path), turn.tasks, turn.seconds, turn.seconds / 2, abandon=True)
        sys.stdout.write(json.dumps(asdict(found)))
        sys.stdout.flush()
        os._exit(0)  # without ending the requests in flight


if __name__ == "__main__":
    asyncio.run(_load(Turn(**json.loads(sys.argv[1]))))
