"""httpcore's and httpx's own tests, whole, on asyncio and trio."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session
from tests.conformance.suite import HERE, Suite

POOLS = {
    "pool-sync": "poolkit_adapters.httpcore:PoolkitConnectionPool",
    "pool-async": "poolkit_adapters.httpcore:AsyncPoolkitConnectionPool",
}
# Tests that compare repr(pool), class name included: judged with a subclass that bears the library's name.
NAMED = (
    "tests/_sync/test_connection_pool.py",
    "tests/_async/test_connection_pool.py",
)


def _session(name: str, root: Path, files: tuple[str, ...], roles: tuple[str, ...], **more: str) -> Session:
    return Session(
        name=name,
        root=root,
        files=files,
        plugins=("anyio.pytest_plugin", "pytest_trio.plugin", "pytest_httpbin.plugin"),
        swap="conf_http",
        # What the libraries' own set-up says and a test needs; without them, a warning is an error.
        config=HERE / "http.ini",
        arguments=("-m", "not network"),
        # Otherwise what one test leaves to the collector fails whichever test it happens to run in.
        environment={"CONF_COLLECT": "between", **more},
        roles=roles,
        test_limit=20.0,
    )


class Httpcore(Suite):
    """Pools of httpcore."""

    name = "httpcore"
    distribution = "httpcore"
    classes: ClassVar[Mapping[str, str]] = POOLS
    aliases: ClassVar[Mapping[str, str]] = {"sync": "pool-sync", "async": "pool-async"}
    needs = ("anyio", "trio", "pytest-trio", "pytest-httpbin", "h2", "socksio")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        roles = tuple(POOLS)
        files = NAMED if quick else ("tests",)
        return [
            _session("pools", root, files, roles),
            _session("named", root, NAMED, roles, CONF_NAMED="1"),
        ]

    def private_list(self, session: str) -> str:
        return "httpcore-named" if session == "named" else "httpcore"


class Httpx(Suite):
    """Transports of httpx, and httpcore's pools under httpx's own transports."""

    name = "httpx"
    serial = True  # its server listens on a fixed port
    distribution = "httpx"
    classes: ClassVar[Mapping[str, str]] = {
        "sync": "poolkit_adapters.httpx:PoolkitTransport",
        "async": "poolkit_adapters.httpx:AsyncPoolkitTransport",
        **POOLS,
    }
    needs = ("anyio", "trio", "uvicorn", "trustme", "chardet", "h2", "socksio", "zstandard", "brotli", "click")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        files = ("tests/client", "tests/test_timeouts.py", "tests/test_config.py") if quick else ("tests",)
        return [
            _session("transports", root, files, ("sync", "async")),
            _session("pools", root, files, tuple(POOLS)),
        ]
