"""redis-py and valkey-py: installed together, alone or not at all, and a pool given to the other one's client."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

import poolkit
import poolkit_adapters
from poolkit import Setting
from poolkit.cluster import Node
from poolkit.testing.servers import RedisServer
from tests.support.missing import without
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("valkey") is None, reason="valkey-py is not installed")

PAIRS = pytest.mark.parametrize(("library", "other"), [("redis", "valkey"), ("valkey", "redis")])


def of(library: str) -> tuple[Any, Any]:
    """Return the library and its adapter."""
    return importlib.import_module(library), importlib.import_module(f"poolkit_adapters.{library}")


def clients_of(library: str) -> tuple[Any, Any]:
    """Return the classes of its clients, for threads and for tasks."""
    driver = importlib.import_module(f"poolkit_adapters.{library}._driver")
    return driver.Client, driver.AsyncClient


@PAIRS
def test_each_has_classes_of_its_own(library: str, other: str) -> None:
    (driver, adapter), (_, second) = of(library), of(other)
    assert adapter.__all__ == second.__all__
    for name in adapter.__all__:
        kind = getattr(adapter, name)
        assert kind.__module__.startswith(f"poolkit_adapters.{library}.")
        assert kind is not getattr(second, name)
    assert issubclass(adapter.PoolkitConnectionPool, driver.ConnectionPool)
    assert issubclass(adapter.AsyncPoolkitConnectionPool, driver.asyncio.ConnectionPool)
    assert issubclass(adapter.AcquireTimeout, driver.exceptions.MaxConnectionsError)
    assert issubclass(adapter.AcquireTimeout, poolkit.AcquireTimeout)


def test_both_packages_have_the_same_modules_except_for_the_driver() -> None:
    """A new module of one library exists for both, as a link and not as a copy."""
    root = Path(poolkit_adapters.__file__).parent
    files = {path.name for path in (root / "redis").glob("*.py")}
    assert {path.name for path in (root / "valkey").glob("*.py")} == files
    for name in files - {"__init__.py", "_driver.py"}:
        assert (root / "valkey" / name).read_bytes() == (root / "redis" / name).read_bytes()


def test_both_drivers_offer_the_same_names() -> None:
    first, second = (set(importlib.import_module(f"poolkit_adapters.{one}._driver").__all__) for one in of_both())
    assert second <= first
    assert first - second <= {"version"}


def of_both() -> tuple[str, str]:
    return "redis", "valkey"


@PAIRS
def test_settings_name_the_library_that_they_come_from(library: str, other: str) -> None:
    with of(library)[1].PoolkitConnectionPool() as pool:
        found = pool.poolkit.describe()
    assert found["max_size"] == Setting(50, f"{library}-py's default (max_connections)")


def told(library: str, other: str) -> str:
    return f"serves clients of {library}, but was given to one of {other}: import it from poolkit_adapters.{other}"


@PAIRS
def test_a_pool_in_the_other_librarys_client_is_one_clear_error(
    library: str, other: str, redis_server: RedisServer
) -> None:
    with of(library)[1].PoolkitConnectionPool(host=redis_server.host, port=redis_server.port) as pool:
        with pytest.raises(poolkit.UsageError, match=told(library, other)):
            clients_of(other)[0](connection_pool=pool).ping()
        assert pool.poolkit.stats().size == 0
        assert clients_of(library)[0](connection_pool=pool).ping() is True


@PAIRS
def test_the_same_for_tasks(library: str, other: str, redis_server: RedisServer) -> None:
    async def main() -> None:
        pool = of(library)[1].AsyncPoolkitConnectionPool(host=redis_server.host, port=redis_server.port)
        with pytest.raises(poolkit.UsageError, match=told(library, other)):
            await clients_of(other)[1](connection_pool=pool).ping()
        assert pool.poolkit.stats().size == 0
        assert await clients_of(library)[1](connection_pool=pool).ping() is True
        await pool.aclose()

    asyncio.run(main())


@PAIRS
@pytest.mark.parametrize("world", ["", ".asyncio"], ids=["threads", "asyncio"])
def test_connections_of_the_other_library_are_refused(library: str, other: str, world: str) -> None:
    kind = importlib.import_module(f"{other}{world}.connection").Connection
    adapter = of(library)[1]
    pool = adapter.AsyncPoolkitConnectionPool if world else adapter.PoolkitConnectionPool

    class Own(kind):  # type: ignore[misc, valid-type]
        """A class of the application."""

    for connection_class in (kind, Own):
        with pytest.raises(poolkit.ConfigError, match=rf"connection_class={other}\..*poolkit_adapters.{other}"):
            pool(connection_class=connection_class)


@PAIRS
def test_a_direct_call_is_the_applications(library: str, other: str, redis_server: RedisServer) -> None:
    """With and without the name of a command, as the pools of both libraries allow."""
    with of(library)[1].PoolkitConnectionPool(host=redis_server.host, port=redis_server.port) as pool:
        pool.release(pool.get_connection())
        if library == "valkey":
            pool.release(pool.get_connection("GET"))


@PAIRS
def test_either_works_without_the_other(library: str, other: str, redis_server: RedisServer) -> None:
    program = f"""
import asyncio, sys
from poolkit_adapters.{library} import AsyncPoolkitConnectionPool, NoServerAvailable, PoolkitConnectionPool
from poolkit_adapters.{library}._driver import AsyncClient, Client
with PoolkitConnectionPool.from_url({redis_server.url!r}) as pool:
    print(Client(connection_pool=pool).ping())
async def main():
    pool = AsyncPoolkitConnectionPool.from_url({redis_server.url!r})
    print(await AsyncClient(connection_pool=pool).ping())
    await pool.aclose()
asyncio.run(main())
assert not set(sys.modules) & {{{other!r}, "poolkit_adapters.{other}"}}
"""
    assert without(program, other).split() == ["True", "True"]


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize("all_of_them", [True, False], ids=["no library", "not this one"])
def test_a_missing_library_names_its_extra(package: str, all_of_them: bool) -> None:
    program = f"""
import poolkit
try:
    import poolkit_adapters.{package}
except poolkit.MissingExtra as error:
    print(error)
"""
    text = without(program, *(of_both() if all_of_them else (package,)))
    assert text.startswith(f"poolkit_adapters.{package} needs {package}-py")
    assert f"pip install 'poolkit[{package}]'" in text


def test_urls_of_valkey() -> None:
    adapter = of("valkey")[1]
    with adapter.PoolkitConnectionPool.from_url("valkey://localhost:1/3?idle_timeout=60") as pool:
        assert pool.connection_kwargs["db"] == 3
        assert pool.poolkit.config.idle_timeout == 60


# -- the cache, which valkey-py keeps in each connection ---------------------------------------------------------------


def cached(server: RedisServer, **more: Any) -> dict[str, Any]:
    parsers = importlib.import_module("valkey._parsers")
    return {"host": server.host, "port": server.port, "protocol": 3, "parser_class": parsers._RESP3Parser, **more}


def test_a_cached_value_is_dropped_when_another_client_changes_it(redis_server: RedisServer) -> None:
    import valkey

    with of("valkey")[1].PoolkitConnectionPool(**cached(redis_server, cache_enabled=True, max_connections=1)) as pool:
        client = valkey.Valkey(connection_pool=pool)
        client.set("cached", "old")
        assert [client.get("cached") for _ in range(3)] == [b"old"] * 3
        (connection,) = pool._available_connections
        assert connection.client_cache.get(("GET", "cached")) == b"old"
        with redis_server.connect() as other:
            other.set("cached", "new")
        assert client.get("cached") == b"new"
        assert pool._available_connections == [connection]


def test_a_clients_cache_methods_reach_all_connections(redis_server: RedisServer) -> None:
    import valkey

    with of("valkey")[1].PoolkitConnectionPool(**cached(redis_server, cache_enabled=True, max_connections=2)) as pool:
        client = valkey.Valkey(connection_pool=pool)
        client.set("cached", "value")
        used, idle = pool.get_connection(), pool.get_connection()
        for connection in (used, idle):
            connection.client_cache.set(("GET", "cached"), b"value", ["cached"])
        pool.release(idle)
        client.invalidate_key_from_cache("cached")
        assert not used.client_cache.get(("GET", "cached"))
        assert not idle.client_cache.get(("GET", "cached"))
        used.client_cache.set(("GET", "cached"), b"value", ["cached"])
        client.flush_cache()
        assert not used.client_cache.get(("GET", "cached"))
        pool.release(used)


def test_a_groups_client_reaches_the_caches_of_all_its_servers(redis_server: RedisServer) -> None:
    options = cached(redis_server, cache_enabled=True, max_size=2)
    address = f"{options.pop('host')}:{options.pop('port')}"
    nodes = [Node("one", address), Node("two", address)]
    with of("valkey")[1].PoolkitServerGroup(nodes, roles=False, **options) as group:
        client = group.client()
        leases = [group.pool(node).lease(PATIENCE) for node in ("one", "two")]
        caches = [lease.connection.client_cache for lease in leases]

        def filled() -> list[bool]:
            return [bool(cache.get(("GET", "cached"))) for cache in caches]

        for drop in (
            client.flush_cache,
            lambda: client.invalidate_key_from_cache("cached"),
            lambda: client.delete_command_from_cache(("GET", "cached")),
        ):
            for cache in caches:
                cache.set(("GET", "cached"), b"value", ["cached"])
            assert filled() == [True, True]
            drop()
            assert filled() == [False, False]
        for lease in leases:
            lease.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_shared_cache_of_a_child_begins_empty(redis_server: RedisServer) -> None:
    from valkey._cache import _LocalCache

    cache = _LocalCache(10, 0)
    with of("valkey")[1].PoolkitConnectionPool(**cached(redis_server, client_cache=cache)) as pool:
        cache.set(("GET", "key"), b"value", ["key"])
        pid = os.fork()
        if pid == 0:
            os._exit(7 if cache.get(("GET", "key")) is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert cache.get(("GET", "key")) == b"value"
        assert pool.poolkit.stats().size == 0


# -- servers ----------------------------------------------------------------------------------------------------------


@PAIRS
@pytest.mark.parametrize("protocol", [2, 3])
def test_either_library_talks_to_a_valkey_server(
    library: str, other: str, protocol: int, valkey_server: RedisServer
) -> None:
    with of(library)[1].PoolkitConnectionPool(
        host=valkey_server.host, port=valkey_server.port, protocol=protocol, max_connections=2
    ) as pool:
        client = clients_of(library)[0](connection_pool=pool)
        assert client.set("from", library) is True
        assert client.get("from") == library.encode()
        valkey_server.kill_clients()
        assert client.ping() is True
