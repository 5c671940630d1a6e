"""The clients of *http*, and the program that loads a server with one of them and ends at once.

``python -m bench.http_clients JSON`` prints what it saw. It is a process of its own because httpx's pool
needs many seconds to be told that a thousand requests are cancelled; here nobody waits for it.
"""

from __future__ import annotations

import asyncio
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

__all__ = ("BAR", "OURS", "OWN", "Turn", "async_client", "client", "load_apart")

OWN, OURS, BAR = "httpx", "httpx -> poolkit", "aiohttp"
PATIENCE = 60.0


@dataclass(frozen=True)
class Turn:
    """Who loads what: ``authority`` is the PEM file of the server's, empty without TLS (then it is HTTP/1.1)."""

    name: str
    url: str
    limit: int
    authority: str = ""
    tasks: int = 1
    seconds: float = 1.0


@contextmanager
def client(turn: Turn) -> Iterator[Callable[[], object]]:
    """A request, synchronous."""
    import httpx

    from poolkit_adapters.httpx import PoolkitTransport

    kind: Any = httpx.HTTPTransport if turn.name == OWN else PoolkitTransport
    with httpx.Client(transport=kind(**_settings(turn)), timeout=PATIENCE) as opened:
        yield lambda: opened.get(turn.url + "/")


@asynccontextmanager
async def async_client(turn: Turn) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """A request for a path, asynchronous."""
    if turn.name == BAR:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=turn.limit), timeout=timeout) as session:

            async def get(path: str) -> None:
                async with session.get(turn.url + path) as response:
                    await response.read()

            yield get
        return
    import httpx

    from poolkit_adapters.httpx import AsyncPoolkitTransport

    kind: Any = httpx.AsyncHTTPTransport if turn.name == OWN else AsyncPoolkitTransport
    async with httpx.AsyncClient(transport=kind(**_settings(turn)), timeout=PATIENCE) as opened:
        yield lambda path: opened.get(turn.url + path)


def _settings(turn: Turn) -> dict[str, Any]:
    import httpx

    limits = httpx.Limits(max_connections=turn.limit, max_keepalive_connections=turn.limit)
    if not turn.authority:
        return {"limits": limits}
    return {"limits": limits, "verify": ssl.create_default_context(cafile=turn.authority), "http2": True}


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
        found = await by_tasks(lambda: get("/"), turn.tasks, turn.seconds, turn.seconds / 2, abandon=True)
        sys.stdout.write(json.dumps(asdict(found)))
        sys.stdout.flush()
        os._exit(0)  # without ending the requests in flight


if __name__ == "__main__":
    asyncio.run(_load(Turn(**json.loads(sys.argv[1]))))
