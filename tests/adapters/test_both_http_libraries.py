"""httpx and httpx2: installed together, alone or not at all, and a transport given to the other one's client."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import anyio
import pytest

import poolkit
import poolkit_adapters
from poolkit import Setting
from poolkit.testing.servers import HTTPServer
from tests.support.missing import without

pytestmark = pytest.mark.skipif(importlib.util.find_spec("httpx2") is None, reason="httpx2 needs Python 3.11")

PACKAGES = ("httpx", "httpcore", "httpx2", "httpcore2")
PAIRS = pytest.mark.parametrize(("library", "other"), [("httpx", "httpx2"), ("httpx2", "httpx")])


def of(library: str) -> tuple[Any, Any]:
    """Return the library and its adapter."""
    return importlib.import_module(library), importlib.import_module(f"poolkit_adapters.{library}")


@PAIRS
def test_each_has_classes_of_its_own(library: str, other: str) -> None:
    (driver, adapter), (_, second) = of(library), of(other)
    assert adapter.__all__ == second.__all__
    for name in adapter.__all__:
        kind = getattr(adapter, name)
        assert kind.__module__.startswith(f"poolkit_adapters.{library}.")
        assert kind is not getattr(second, name)
    assert issubclass(adapter.PoolkitTransport, driver.HTTPTransport)
    assert issubclass(adapter.AsyncPoolkitTransport, driver.AsyncHTTPTransport)
    assert issubclass(adapter.AcquireTimeout, driver.PoolTimeout)
    assert issubclass(adapter.AcquireTimeout, poolkit.AcquireTimeout)


@pytest.mark.parametrize("package", ["httpx", "httpcore"])
def test_both_packages_have_the_same_modules_except_for_the_driver(package: str) -> None:
    """A new module of one library exists for both, as a link and not as a copy."""
    root = Path(poolkit_adapters.__file__).parent
    own = {"__init__.py", "_driver.py"}
    files = {path.name for path in (root / package).glob("*.py")}
    seconds = {path.name for path in (root / f"{package}2").glob("*.py")}
    assert seconds == files
    for name in files - own:
        assert (root / f"{package}2" / name).read_bytes() == (root / package / name).read_bytes()


@PAIRS
def test_settings_name_the_library_that_they_come_from(library: str, other: str) -> None:
    found = of(library)[1].PoolkitTransport(verify=False).poolkit.describe()
    assert found["max_size"] == Setting(100, f"{library}'s default (max_connections)")
    assert found["keepalive"] == Setting(None, f"not used by {library}")


@PAIRS
def test_a_transport_in_the_other_librarys_client_is_one_clear_error(library: str, other: str) -> None:
    adapter, client_library = of(library)[1], of(other)[0]
    told = f"serves clients of {library}, but was given to one of {other}: import it from poolkit_adapters.{other}"
    for transport in (adapter.PoolkitTransport(verify=False), adapter.PoolkitClusterTransport(["127.0.0.1:1"])):
        with client_library.Client(transport=transport) as client:
            with pytest.raises(poolkit.UsageError, match=told):
                client.get("http://127.0.0.1:1/")

    async def ask(transport: Any) -> None:
        async with client_library.AsyncClient(transport=transport) as client:
            with pytest.raises(poolkit.UsageError, match=told):
                await client.get("http://127.0.0.1:1/")

    anyio.run(ask, adapter.AsyncPoolkitTransport(verify=False))
    anyio.run(ask, adapter.AsyncPoolkitClusterTransport(["127.0.0.1:1"]))


@PAIRS
def test_either_works_without_the_other(library: str, other: str, http_server: HTTPServer) -> None:
    program = f"""
import asyncio, sys
import {library} as driver
from poolkit_adapters.{library} import AsyncPoolkitTransport, NoServerAvailable, PoolkitTransport
with driver.Client(transport=PoolkitTransport(http2=True)) as client:
    print(client.get({http_server.url!r}).status_code)
async def main():
    async with driver.AsyncClient(transport=AsyncPoolkitTransport()) as client:
        print((await client.get({http_server.url!r})).status_code)
asyncio.run(main())
assert not set(sys.modules) & {{{other!r}, {other.replace("x", "core")!r}, "poolkit_adapters.{other}"}}
"""
    assert without(program, other, other.replace("x", "core")).split() == ["200", "200"]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("blocked", [PACKAGES, None], ids=["no library", "not this one"])
def test_a_missing_library_names_its_extra(package: str, blocked: tuple[str, ...] | None) -> None:
    program = f"""
import poolkit
try:
    import poolkit_adapters.{package}
except poolkit.MissingExtra as error:
    print(error)
"""
    extra = "httpx2" if package.endswith("2") else "httpx"
    told = without(program, *(blocked or (package,)))
    assert told.startswith(f"poolkit_adapters.{package} needs {package}")
    assert f"pip install 'poolkit[{extra}]'" in told


def test_an_application_may_alias_httpx(http_server: HTTPServer) -> None:
    """With httpx2's own alias, the adapter of httpx runs on httpx2."""
    program = f"""
import httpx2; httpx2.alias_httpx()
import httpx
from poolkit_adapters.httpx import PoolkitTransport
with httpx2.Client(transport=PoolkitTransport()) as client:
    print(client.get({http_server.url!r}).status_code)
"""
    assert without(program, "httpx", "httpcore").split() == ["200"]
