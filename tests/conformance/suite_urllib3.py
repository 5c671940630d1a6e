"""The own tests of urllib3 and requests, whole, but for what needs a browser or the Internet."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.sessions import Session
from tests.conformance.suite import Suite

QUICK = (
    "test/test_connectionpool.py", "test/test_poolmanager.py", "test/test_proxymanager.py",
    "test/with_dummyserver/test_connectionpool.py", "test/with_dummyserver/test_poolmanager.py",
)  # fmt: skip
MORE = (
    "test/test_connection.py", "test/test_exceptions.py", "test/test_response.py", "test/test_retry.py",
    "test/contrib/test_socks.py", "test/test_no_ssl.py", "test/test_queue_monkeypatch.py",
    "test/with_dummyserver/test_chunked_transfer.py", "test/with_dummyserver/test_connection.py",
    "test/with_dummyserver/test_https.py", "test/with_dummyserver/test_no_ssl.py",
    "test/with_dummyserver/test_proxy_poolmanager.py", "test/with_dummyserver/test_socketlevel.py",
)  # fmt: skip
LIMITS = ("-m", "not requires_network and not integration")


class Urllib3(Suite):
    """Pools and managers of urllib3."""

    name = "urllib3"
    distribution = "urllib3"
    tests = "test"
    classes: ClassVar[Mapping[str, str]] = {
        "pool-sync": "poolkit_adapters.urllib3:PoolkitHTTPConnectionPool",
        "sync": "poolkit_adapters.urllib3:PoolkitPoolManager",
    }
    needs = ("pytest-socket", "pytest-timeout", "quart", "quart-trio", "hypercorn", "trustme", "h2", "httpx", "PySocks")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        files = QUICK if quick else QUICK + MORE
        return [
            Session(
                name="urllib3",
                root=root,
                files=tuple(file for file in files if (root / file).exists()),
                plugins=("anyio.pytest_plugin", "pytest_socket", "pytest_timeout"),
                swap="conf_urllib3",
                arguments=LIMITS,
            )
        ]


class Requests(Suite):
    """The transport adapter of requests."""

    name = "requests"
    distribution = "requests"
    classes: ClassVar[Mapping[str, str]] = {"sync": "poolkit_adapters.requests:PoolkitAdapter"}
    needs = ("pytest-httpbin", "pytest-mock", "trustme", "PySocks")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        files = ("tests/test_requests.py", "tests/test_lowlevel.py", "tests/test_adapters.py")
        return [
            Session(
                name="requests",
                root=root,
                files=files if quick else ("tests",),
                plugins=("pytest_httpbin.plugin", "pytest_mock"),
                swap="conf_urllib3",
                arguments=("-o", "addopts="),
            )
        ]
