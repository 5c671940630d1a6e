"""The own tests of httpcore, httpx, httpcore2 and httpx2, whole, on asyncio and trio."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session
from tests.conformance.suite import HERE, Suite

POOLS: Mapping[str, str] = {
    "pool-sync": "poolkit_adapters.httpcore:PoolkitConnectionPool",
    "pool-async": "poolkit_adapters.httpcore:AsyncPoolkitConnectionPool",
}
POOLS_2: Mapping[str, str] = {role: name.replace("httpcore", "httpcore2") for role, name in POOLS.items()}
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


class Httpcore2(Suite):
    """Pools of httpcore2. Its source distribution holds no tests: give a checkout (``--source``)."""

    name = "httpcore2"
    distribution = "httpcore2"
    classes: ClassVar[Mapping[str, str]] = POOLS_2
    aliases = Httpcore.aliases
    needs = Httpcore.needs

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        roles = tuple(POOLS)
        named = tuple(name.replace("tests/", "tests/httpcore2/") for name in NAMED)
        files = named if quick else ("tests/httpcore2",)
        return [
            _session("pools", root, files, roles, CONF_SECOND="1"),
            _session("named", root, named, roles, CONF_SECOND="1", CONF_NAMED="1"),
        ]

    def private_list(self, session: str) -> str:
        return "httpcore-named" if session == "named" else "httpcore2"


class Httpx2(Suite):
    """Transports of httpx2, out of a checkout (``--source``)."""

    name = "httpx2"
    serial = True
    distribution = "httpx2"
    classes: ClassVar[Mapping[str, str]] = {
        **{role: name.replace("httpx", "httpx2") for role, name in Httpx.classes.items() if role not in POOLS},
        **POOLS_2,
    }
    needs = ("anyio", "trio", "uvicorn", "trustme", "chardet", "h2", "socksio", "click")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        files = ("tests/httpx2/client", "tests/httpx2/test_timeouts.py") if quick else ("tests/httpx2",)
        return [
            _session("transports", root, files, ("sync", "async"), CONF_SECOND="1"),
            _session("pools", root, files, tuple(POOLS), CONF_SECOND="1"),
        ]
