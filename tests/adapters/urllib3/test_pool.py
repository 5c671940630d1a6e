"""Settings, limits, and what becomes of a connection at the end of its request."""

from __future__ import annotations

import collections
import functools
import gc
import inspect
import threading
from typing import Any

import pytest
import requests
import urllib3

import poolkit
from poolkit import Budget, ClassConfig, ConfigError, PoolConfig, priority
from poolkit.testing.servers import HTTPServer
from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.urllib3 import (
    PoolkitHTTPConnectionPool,
    PoolkitHTTPSConnectionPool,
    PoolkitPoolManager,
    PoolkitProxyManager,
    Timeout,
    connection_from_url,
    proxy_from_url,
)
from poolkit_adapters.urllib3._limits import limit_connect
from tests.support.waiting import PATIENCE, until

PORT = "x-client-port"


def config_of(*args: Any, **given: Any) -> PoolConfig:
    return PoolkitHTTPConnectionPool("127.0.0.1", 1, *args, **given).poolkit.config


def test_what_maxsize_and_block_become() -> None:
    plain = config_of()
    assert (plain.max_size, plain.max_idle, plain.idle_timeout) == (None, None, 60.0)
    assert (plain.acquire_timeout, plain.connect_timeout) == (30.0, None)
    kept = config_of(maxsize=5)
    assert (kept.max_size, kept.max_idle) == (None, 5)
    limited = config_of(maxsize=5, block=True)
    assert (limited.max_size, limited.max_idle) == (5, None)
    assert config_of(block=True).max_size == 1
    assert config_of(None, 3, True).max_size == 3  # by position, as with urllib3
    assert config_of(max_size=4).max_size == 4
    assert (config_of(max_size=4, maxsize=2).max_size, config_of(max_size=4, maxsize=2).max_idle) == (4, 2)
    assert config_of(config=PoolConfig(max_size=4), block=True).max_size == 4
    session = PoolkitAdapter().poolmanager.connection_from_url("http://127.0.0.1:1").poolkit.config
    assert (session.max_size, session.max_idle) == (None, None)
    blocking = PoolkitAdapter(pool_block=True).poolmanager.connection_from_url("http://127.0.0.1:1").poolkit
    assert blocking.describe()["max_size"] == poolkit.Setting(10, "requests's default (maxsize)")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"maxsize": -1}, "maxsize=-1: must be a whole number, 0 or more"),
        ({"maxsize": 0, "block": True}, "maxsize=0: no request would ever get a connection with block=True"),
        ({"block": "yes"}, "block='yes': must be True or False"),
        ({"maxsize": 5, "block": True, "max_size": 6}, "maxsize=5 and max_size=6 (from keyword) are two names"),
        ({"maxsize": 5, "max_idle": 6}, "maxsize=5 and max_idle=6 (from keyword) are two names"),
        ({"block": False, "max_size": 6}, "block=False and max_size=6 (from keyword) contradict each other"),
        ({"min_size": 1}, "min_size=1: has no effect for HTTP"),
        ({"keepalive": 5.0}, "keepalive=5.0: has no effect for HTTP"),
        ({"connect_in_caller": False}, "connect_in_caller=False"),
        ({"max_szie": 5}, "max_szie: unknown argument or setting; did you mean 'max_size'?"),
        ({"cert_file": "x", "cert_reqz": "y"}, "cert_reqz: unknown argument or setting; did you mean 'cert_reqs'?"),
        ({"config": 5}, "config=5: must be a PoolConfig"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    for make in (lambda **options: PoolkitHTTPConnectionPool("127.0.0.1", 1, **options), PoolkitPoolManager):
        with pytest.raises(ConfigError) as caught:
            make(**given)
        assert words in str(caught.value)
    names = {"maxsize": "pool_maxsize", "block": "pool_block"}
    with pytest.raises(ConfigError):
        PoolkitAdapter(**{names.get(name, name): value for name, value in given.items()})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"max_wating": 3}, "max_waiting"),
        ({"num_pool": 3}, "num_pools"),
        ({"listener": ()}, "listeners"),
        ({"proxy_header": {}}, "proxy_headers"),
        ({"proxy_ssl_contxt": None}, "proxy_ssl_context"),
        ({"use_forwarding_for_http": True}, "use_forwarding_for_https"),
    ],
)
def test_managers_of_a_proxy_name_what_was_meant(given: dict[str, Any], meant: str) -> None:
    for make in (proxy_from_url, PoolkitProxyManager):
        with pytest.raises(ConfigError, match=f"{next(iter(given))}: .*did you mean '{meant}'"):
            make("http://127.0.0.1:1", **given)


def test_a_pool_knows_all_its_arguments() -> None:
    """urllib3 would raise a TypeError in the first request."""
    for given in ({"num_pools": 3}, {"cert_file": "x"}, {"colour": "red"}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))}: unknown argument or setting"):
            connection_from_url("http://127.0.0.1:1", **given)
    connection_from_url("https://127.0.0.1:1", cert_file="x", blocksize=9000, socket_options=[]).close()

    class Connection(urllib3.connection.HTTPConnection):  # type: ignore[misc]
        def __init__(self, *args: Any, colour: str = "", **given: Any) -> None:
            super().__init__(*args, **given)

    class Own(PoolkitHTTPConnectionPool):
        ConnectionCls = Connection

    Own("127.0.0.1", 1, colour="red").close()  # type: ignore[call-arg]


class Thin(PoolkitPoolManager):
    """An application's class that adds no argument."""

    def request(self, method: str, url: str, *args: Any, **given: Any) -> Any:
        return super().request(method, url, *args, **given)


@pytest.mark.parametrize(
    "make", [PoolkitPoolManager, Thin, lambda **given: PoolkitProxyManager("http://127.0.0.1:1", **given),
             lambda **given: proxy_from_url("http://127.0.0.1:1", **given), PoolkitAdapter],
)  # fmt: skip
def test_a_manager_knows_all_its_arguments(make: Any) -> None:
    """urllib3 would raise a TypeError in the first request."""
    with pytest.raises(ConfigError, match=r"colour: unknown argument or setting; known: .*max_size"):
        make(colour="red")


def test_an_adapter_knows_the_arguments_that_it_passes_to_its_manager() -> None:
    class Adapter(PoolkitAdapter):
        def init_poolmanager(self, *args: Any, **given: Any) -> None:
            super().init_poolmanager(*args, **given, **extra)

    extra: dict[str, Any] = {"ssl_context": None, "assert_fingerprint": None, "socket_options": []}
    Adapter().close()
    extra = {"colour": "red"}
    with pytest.raises(ConfigError, match="colour: unknown argument or setting"):
        Adapter()


def test_a_manager_takes_every_argument_of_urllib3s_pool_keys() -> None:
    names = [name.removeprefix("key_") for name in urllib3.poolmanager.PoolKey._fields]
    given: dict[str, Any] = dict.fromkeys(names)
    del given["maxsize"], given["block"], given["headers"]  # must not be None; the manager has "headers" itself
    with PoolkitPoolManager(**given) as manager:
        assert set(given) <= set(manager.connection_pool_kw)


KEY: Any = collections.namedtuple("Key", [*urllib3.poolmanager.PoolKey._fields, "key_colour"])  # type: ignore[misc]
"""A pool key of the application's."""


def test_pool_keys_of_the_application_have_names_of_their_own(
    http_server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(PoolkitHTTPConnectionPool):
        def __init__(self, *args: Any, colour: Any = None, **given: Any) -> None:
            super().__init__(*args, **given)
            self.colour = colour

    make = functools.partial(urllib3.poolmanager._default_key_normalizer, KEY)

    class Manager(PoolkitPoolManager):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.key_fn_by_scheme["http"] = make

    with Manager(colour="red") as manager:
        manager.pool_classes_by_scheme = {"http": Pool}
        assert manager.request("GET", http_server.url).status == 200
        assert manager.connection_from_url(http_server.url).colour == "red"

    monkeypatch.setitem(urllib3.poolmanager.key_fn_by_scheme, "http", make)
    with PoolkitPoolManager(colour="blue") as other:
        other.pool_classes_by_scheme = {"http": Pool}
        assert other.connection_from_url(http_server.url).colour == "blue"
    with pytest.raises(ConfigError, match="color: unknown argument or setting; did you mean 'colour'"):
        PoolkitPoolManager(color="blue")
    monkeypatch.setitem(urllib3.poolmanager.key_fn_by_scheme, "http", lambda context: tuple(context))
    PoolkitPoolManager(shape="round").clear()  # a function of the application may take any name


def test_an_argument_of_a_class_of_the_application_may_resemble_a_setting() -> None:
    class Manager(PoolkitPoolManager):
        def __init__(self, max_waitings: int = 0, **given: Any) -> None:
            super().__init__(max_waitings=max_waitings, **given)
            self.key_fn_by_scheme["http"] = lambda context: tuple(context.items())

    class Connection(urllib3.connection.HTTPConnection):  # type: ignore[misc]
        def __init__(self, *args: Any, **given: Any) -> None:
            self.idle_timeouts = given.pop("idle_timeouts")
            super().__init__(*args, **given)

    class Pool(PoolkitHTTPConnectionPool):
        ConnectionCls = Connection

        def __init__(self, *args: Any, idle_timeouts: int = 0, **given: Any) -> None:
            super().__init__(*args, idle_timeouts=idle_timeouts, **given)

    with Manager(max_waitings=3) as manager:
        assert manager.connection_pool_kw["max_waitings"] == 3
        with pytest.raises(ConfigError, match=r"max_wating: .*did you mean 'max_waiting"):
            Manager(max_wating=3)
    pool: Any = Pool("127.0.0.1", 1, idle_timeouts=5)
    assert pool.conn_kw["idle_timeouts"] == 5
    pool.close()
    with pytest.raises(ConfigError, match=r"idle_timout: .*did you mean 'idle_timeout"):
        Pool("127.0.0.1", 1, idle_timout=5)


class Mine(urllib3.HTTPConnectionPool):  # type: ignore[misc]
    """An application's class, with an argument of its own where urllib3's class has the timeout."""

    def __init__(self, host: str, port: int | None = None, colour: Any = None, **given: Any) -> None:
        super().__init__(host, port, **given)
        self.colour = colour


class Further(urllib3.HTTPConnectionPool):  # type: ignore[misc]
    """An application's class that takes an argument of its own from the others."""

    def __init__(self, *args: Any, **given: Any) -> None:
        self.colour = given.pop("colour", None)
        super().__init__(*args, **given)


class Last(urllib3.HTTPConnectionPool):  # type: ignore[misc]
    """An application's class that takes an argument of its own when it makes a connection."""

    def _new_conn(self) -> Any:
        self.colour = self.conn_kw.pop("colour", None)
        return super()._new_conn()


@pytest.mark.parametrize("kind", [Mine, Further, Last])
def test_a_class_of_the_application_takes_its_own_and_urllib3s_arguments(kind: Any, http_server: HTTPServer) -> None:
    class Behind(PoolkitHTTPConnectionPool, kind):  # type: ignore[misc]
        pass

    class Before(kind):  # type: ignore[misc]
        pass

    class ByManager(PoolkitPoolManager):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.pool_classes_by_scheme = {"http": Before}

    host, port = urllib3.util.parse_url(http_server.url)[2:4]
    given: dict[str, Any] = {"headers": {"x-mine": "1"}, "retries": 3, "_proxy_headers": {}, "blocksize": 9000}
    with ByManager(maxsize=2, blocksize=9000) as manager:
        pools = [
            Behind(host, port, colour="red", timeout=PATIENCE, maxsize=2, **given),
            manager.connection_from_host(host, port),
        ]
        for pool, colour in zip(pools, ["red", None], strict=True):
            assert pool.urlopen("GET", "/").status == 200
            assert (pool.colour, pool.block, pool.conn_kw["blocksize"]) == (colour, False, 9000)
            pool.close()
        assert (pools[0].retries, pools[0].timeout.connect_timeout, pools[0].headers) == (3, PATIENCE, {"x-mine": "1"})
    with pytest.raises(ConfigError, match="max_szie: unknown argument or setting; did you mean 'max_size'"):
        Behind(host, port, max_szie=3)


def test_a_pool_takes_every_argument_of_urllib3s_class() -> None:
    for ours in (PoolkitHTTPConnectionPool, PoolkitHTTPSConnectionPool):
        driver = ours.__mro__[2]
        given: dict[str, Any] = {}
        for kind in (driver, urllib3.HTTPConnectionPool, driver.ConnectionCls):  # type: ignore[attr-defined]
            for name, one in inspect.signature(kind).parameters.items():
                if one.default is not one.empty and name not in {"proxy", "proxy_config"}:
                    given[name] = one.default
        connection = {name for name in given if name not in inspect.signature(driver).parameters}
        assert {"blocksize", "socket_options", "source_address"} <= connection
        own, pool = driver("127.0.0.1", **given), ours("127.0.0.1", **given)
        assert set(vars(own)) <= set(vars(pool))
        assert pool.conn_kw == own.conn_kw  # type: ignore[attr-defined]
        pool.close()
        own.close()


def test_a_manager_of_the_application_takes_its_own_and_urllib3s_arguments() -> None:
    class Own(urllib3.ProxyManager):  # type: ignore[misc]
        def __init__(self, *args: Any, mine: Any = None, **given: Any) -> None:
            super().__init__(*args, **given)
            self.mine = mine

    class Manager(PoolkitProxyManager, Own):
        pass

    with Manager("http://127.0.0.1:1", mine="red", proxy_headers={"x": "1"}, num_pools=1) as manager:
        first = manager.connection_from_host("a.invalid")
        assert (manager.mine, manager.proxy_headers, first.proxy_headers) == ("red", {"x": "1"}, {"x": "1"})
        manager.connection_from_host("b.invalid", scheme="https")
        assert len(manager.pools) == 1
    with pytest.raises(ConfigError, match=r"proxy_header: .*did you mean 'proxy_headers'"):
        Manager("http://127.0.0.1:1", proxy_header={})


def test_an_adapter_of_the_application_takes_its_own_and_requests_arguments() -> None:
    class Own(requests.adapters.HTTPAdapter):  # type: ignore[misc]
        def __init__(self, mine: Any = None, **given: Any) -> None:
            self.mine = mine
            super().__init__(**given)

    class Adapter(PoolkitAdapter, Own):
        pass

    with requests.Session() as session:
        adapter = Adapter(mine="red", max_retries=3, max_size=4)  # type: ignore[call-arg]
        session.mount("http://", adapter)
        pool = adapter.poolmanager.connection_from_url("http://127.0.0.1:1")
        assert (adapter.mine, adapter.max_retries.total, pool.poolkit.config.max_size) == ("red", 3, 4)
    with pytest.raises(ConfigError, match="mine: unknown argument or setting"):
        PoolkitAdapter(mine="red")  # type: ignore[call-arg]


def test_make_request_takes_its_arguments_by_position(http_server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subclasses and instrumentations may pass their arguments on in this way."""

    class ByPosition(PoolkitHTTPConnectionPool):
        def _make_request(self, conn: Any, method: str, url: str, *args: Any, **given: Any) -> Any:
            names = ("body", "headers", "retries", "timeout", "chunked", "response_conn", "preload_content")
            return super()._make_request(conn, method, url, *(given.pop(name) for name in names), **given)

    host, port = urllib3.util.parse_url(http_server.url)[2:4]
    with ByPosition(host, port, maxsize=1, block=True, acquire_timeout=PATIENCE, connect_timeout=PATIENCE / 2) as pool:
        seen = []

        def limit(timeout: Any, config: PoolConfig) -> None:
            limit_connect(timeout, config)
            seen.append(timeout.connect_timeout)

        monkeypatch.setattr("poolkit_adapters.urllib3._pool.limit_connect", limit)
        held = pool.urlopen("POST", "/", body=b"x", preload_content=False)
        assert seen == [PATIENCE / 2]
        held.close()  # the response has taken over the connection
        assert pool.urlopen("GET", "/").status == 200
        conn = pool._get_conn()
        assert (
            pool._make_request(
                conn,
                "GET",
                "/",
                body=None,
                headers=None,
                retries=None,
                timeout=PATIENCE,
                chunked=False,
                response_conn=None,
                preload_content=True,
            ).status
            == 200
        )
        pool._put_conn(conn)


def test_what_managers_refuse() -> None:
    with pytest.raises(ConfigError, match="num_pools='ten'"):
        PoolkitPoolManager("ten")
    with pytest.raises(ConfigError, match="max_connections=0"):
        PoolkitPoolManager(max_connections=0)
    with pytest.raises(ConfigError, match="max_connections=5 and budget="):
        PoolkitPoolManager(max_connections=5, config=PoolConfig(budget=Budget(3)))
    with pytest.raises(ConfigError, match="pool=-1"):
        Timeout(pool=-1)


def test_an_argument_of_one_pool_differs_from_its_managers() -> None:
    with PoolkitPoolManager(maxsize=2, block=True, name="shop") as manager:
        pool = manager.connection_from_url("http://a.invalid", pool_kwargs={"maxsize": 7})
        other = manager.connection_from_url("http://a.invalid")
        assert (pool.poolkit.config.max_size, other.poolkit.config.max_size) == (7, 2)
        assert (pool.poolkit.name, other.poolkit.name) == ("shop/http://a.invalid:80", "shop/http://a.invalid:80 (2)")
        assert manager.connection_from_url("http://[::1]:8080").poolkit.name == "shop/http://[::1]:8080"


def test_pools_are_found_by_what_is_asked_for() -> None:
    """The manager stores pool keys, but later changes apply too."""
    with PoolkitPoolManager(2) as manager:

        def ask(host: str = "a.invalid", **given: Any) -> Any:
            return manager.connection_from_host(host, 80, "http", **given)

        first = ask()
        assert ask() is first
        assert ask(pool_kwargs={}) is first
        assert ask(pool_kwargs={"maxsize": 3}) is not first
        assert ask(pool_kwargs={"maxsize": 3}) is ask(pool_kwargs={"maxsize": 3})
        assert ask(pool_kwargs={"headers": {"a": "b"}}) is ask(pool_kwargs={"headers": {"a": "b"}})
        again = ask()
        assert again is not first  # it was dropped
        manager.connection_pool_kw["blocksize"] = 9000
        assert ask() is not again
        found = ask()
        manager.clear()
        assert ask() is not found
        assert manager.connection_from_url("HTTP://A.INVALID") is manager.connection_from_url("http://a.invalid")
        with pytest.raises(urllib3.exceptions.LocationValueError):
            ask("")


def test_the_wait_for_a_connection_has_its_own_limit(http_server: HTTPServer) -> None:
    with PoolkitPoolManager(maxsize=1, block=True, acquire_timeout=PATIENCE) as manager:
        held = manager.request("GET", f"{http_server.url}/bytes?n=100000", preload_content=False)
        for given in ({"pool_timeout": 0.01}, {"timeout": Timeout(total=PATIENCE, pool=0.01)}):
            with pytest.raises(poolkit.AcquireTimeout):
                manager.request("GET", http_server.url, **given)
        held.close()
        assert manager.request("GET", http_server.url, timeout=Timeout(5, pool=0.5)).status == 200
    with PoolkitPoolManager(maxsize=1, block=True, timeout=Timeout(pool=0.01)) as manager:
        held = manager.request("GET", f"{http_server.url}/bytes?n=100000", preload_content=False)
        with pytest.raises(poolkit.AcquireTimeout):
            manager.request("GET", http_server.url)
        held.close()
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=1, block=True) as pool:
        held = pool.request("GET", "/bytes?n=100000", preload_content=False)
        with pytest.raises(poolkit.AcquireTimeout):  # by position, as with urllib3
            pool.urlopen("GET", "/", None, None, False, True, True, Timeout(5, pool=0.01))
        held.close()
    copied = Timeout(connect=1, read=2, pool=None).clone()
    assert (copied.connect_timeout, copied.read_timeout, copied.wait(30.0)) == (1, 2, None)
    assert Timeout(3).clone().wait(30.0) == 30.0


def test_one_limit_over_all_hosts(http_server: HTTPServer) -> None:
    """An idle connection to one host is closed for a connection to another one."""
    with PoolkitPoolManager(max_connections=1, acquire_timeout=PATIENCE) as manager:
        other = manager.connection_from_host("127.0.0.1", http_server.port, pool_kwargs={"blocksize": 9000})
        for _ in range(3):
            assert manager.request("GET", http_server.url).status == 200
            assert manager.budget.stats().held <= 1
            assert other.urlopen("GET", "/").status == 200
            assert manager.budget.stats().held <= 1
        held = manager.request("GET", f"{http_server.url}/bytes?n=100000", preload_content=False)
        with pytest.raises(poolkit.AcquireTimeout):
            other.urlopen("GET", "/", pool_timeout=0.01)
        held.close()
        assert other.urlopen("GET", "/").status == 200
    assert manager.budget.stats().held == 0


def test_a_host_that_num_pools_leaves_out_loses_its_connections(http_server: HTTPServer) -> None:
    with PoolkitPoolManager(1) as manager:
        first = manager.connection_from_url(http_server.url)
        held = first.urlopen("GET", "/bytes?n=100000", preload_content=False)
        assert first.urlopen("GET", "/").status == 200
        assert first.poolkit.stats().idle == 1
        manager.connection_from_url("http://elsewhere.invalid")
        assert len(manager.pools) == 1
        assert (first.poolkit.stats().idle, first.poolkit.stats().in_use) == (0, 1)
        held.read()
        assert first.poolkit.stats().size == 0


def test_a_dropped_pool_closes_its_connections(http_server: HTTPServer) -> None:
    pool = PoolkitHTTPConnectionPool("127.0.0.1", http_server.port)
    pool.request("GET", "/")
    sockets = [conn.sock for conn in pool.pool.queue]
    del pool
    gc.collect()
    assert [sock.fileno() for sock in sockets] == [-1]


def test_classes_of_callers(http_server: HTTPServer) -> None:
    classes = {"health": ClassConfig(reserved=1), "bulk": ClassConfig()}
    with PoolkitPoolManager(maxsize=2, block=True, classes=classes, acquire_timeout=PATIENCE) as manager:
        pool = manager.connection_from_url(http_server.url)
        with priority("bulk"):
            held = pool.urlopen("GET", "/bytes?n=100000", preload_content=False)
            with pytest.raises(poolkit.AcquireTimeout):
                pool.urlopen("GET", "/", pool_timeout=0.01)
        with priority("health"):
            assert pool.urlopen("GET", "/").status == 200
        held.close()
        with priority("blk"), pytest.raises(ConfigError, match="did you mean 'bulk'"):
            pool.urlopen("GET", "/")


ENDS: dict[str, Any] = {
    "read": lambda response: response.read(),
    "drained": lambda response: response.drain_conn(),
    "closed": lambda response: response.close(),
    "closed twice": lambda response: (response.close(), response.close()),
    "released unread": lambda response: response.release_conn(),
    "half read and closed": lambda response: (response.read(10), response.close()),
    "left in the middle": lambda response: next(response.stream(10), None),
    "dropped": lambda response: None,
}


@pytest.mark.parametrize("path", ["/bytes?n=300000", "/stream?chunks=50", "/bytes?n=0"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("driver", ["urllib3", "requests"])
def test_a_response_gives_its_place_back_however_it_ends(
    http_server: HTTPServer, driver: str, end: str, path: str
) -> None:
    with PoolkitPoolManager(maxsize=1, block=True, acquire_timeout=PATIENCE) as manager, requests.Session() as session:
        session.mount("http://", PoolkitAdapter(pool_maxsize=1, pool_block=True, acquire_timeout=PATIENCE))

        def ask(path: str) -> Any:
            if driver == "urllib3":
                return manager.request("GET", f"{http_server.url}{path}", preload_content=False)
            return session.get(f"{http_server.url}{path}", stream=True).raw

        response = ask(path)
        ENDS[end](response)
        del response
        gc.collect()
        after = ask("/")
        assert after.json()["client_port"]
        holder = manager if driver == "urllib3" else session.get_adapter("http://")
        assert holder.engines[0].stats().in_use == 0
        holder.engines[0].check_books()


def test_an_empty_response_that_is_released_unread_does_not_hold_up_the_next_request(http_server: HTTPServer) -> None:
    """Also while a variable still refers to it."""
    with PoolkitPoolManager(maxsize=1, block=True, acquire_timeout=PATIENCE) as manager:
        empty = manager.request("GET", f"{http_server.url}/bytes?n=0", preload_content=False)
        empty.release_conn()
        assert manager.request("GET", http_server.url).status == 200
        assert manager.engines[0].stats().connects == 1
        assert empty.read() == b""


def test_a_response_that_is_not_to_be_released_keeps_its_place_until_it_is(http_server: HTTPServer) -> None:
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=1, block=True) as pool:
        response = pool.urlopen("GET", "/", release_conn=False)
        assert (response.status, pool.poolkit.stats().in_use) == (200, 1)
        response.release_conn()
        assert (pool.poolkit.stats().in_use, pool.poolkit.stats().idle) == (0, 1)
        response = pool.urlopen("GET", "/", release_conn=False)
        del response
        gc.collect()
        assert pool.poolkit.stats().in_use == 0


def test_a_response_that_is_released_too_early_does_not_affect_the_next_answer(http_server: HTTPServer) -> None:
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=1, block=True) as pool:
        pool.urlopen("GET", "/stream?chunks=3&ms=5", preload_content=False, release_conn=True)
        assert pool.request("GET", "/echo?key=mine").json()["key"] == "mine"


@pytest.mark.parametrize("where", ["_new_conn", "_validate_conn", "request", "getresponse"])
def test_an_interrupt_loses_no_place(http_server: HTTPServer, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=1, block=True) as pool:
        pool.request("GET", "/")
        if where == "_new_conn":
            pool.poolkit.clear()
        with monkeypatch.context() as patch:
            owner: Any = type(pool) if where.startswith("_") else pool.ConnectionCls

            def interrupted(*args: Any, **kwargs: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(owner, where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.request("GET", "/")
        assert pool.request("GET", "/").status == 200
        assert pool.poolkit.stats().in_use == 0
        pool.poolkit.check_books()


def test_a_request_within_the_body_of_another(http_server: HTTPServer) -> None:
    """A body that consists of other responses: each request returns its own connection."""
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=2, block=True) as pool:

        def parts() -> Any:
            for _ in range(3):
                yield pool.request("GET", "/bytes?n=1000").data

        assert pool.request("POST", "/upload", body=parts()).json()["length"] == 3000
        assert (pool.poolkit.stats().in_use, pool.poolkit.stats().connects) == (0, 2)


def test_a_body_that_cannot_be_read_again_is_not_sent_again(http_server: HTTPServer) -> None:
    from tests.faults.proxy import FaultProxy

    proxy = FaultProxy("127.0.0.1", http_server.port).start()
    try:
        with PoolkitHTTPConnectionPool(proxy.host, proxy.port) as pool:
            for method, body in (("PUT", iter([b"x"])), ("POST", b"x")):
                pool.request("GET", "/")
                proxy.forget()
                with pytest.raises(urllib3.exceptions.ProtocolError):
                    pool.urlopen(method, "/upload", body=body, retries=False)
            pool.request("GET", "/")
            proxy.forget()
            assert pool.urlopen("PUT", "/upload", body=b"x", retries=False).status == 200
    finally:
        proxy.stop()


def test_threads_share_a_blocking_pool(http_server: HTTPServer) -> None:
    with PoolkitPoolManager(maxsize=3, block=True, acquire_timeout=PATIENCE) as manager:
        wrong: list[object] = []

        def work(number: int) -> None:
            for turn in range(20):
                key = f"{number}-{turn}"
                found = manager.request("GET", f"{http_server.url}/echo?key={key}").json()["key"]
                if found != key:
                    wrong.append((key, found))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        [engine] = manager.engines
        assert engine.stats().size <= 3
        until(lambda: not engine.stats().in_use, "all are back")
        engine.check_books()
