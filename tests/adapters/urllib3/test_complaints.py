"""Reported complaints about urllib3's own pool: each happens there, and does not happen with poolkit's.

``docs/adapters/urllib3.md`` lists them. A scenario returns whether the complaint comes true.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import urllib3

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.urllib3 import PoolkitPoolManager
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

MOMENT = 0.05
LONG = {"acquire_timeout": PATIENCE}


class Pools:
    """Managers of one kind, and sessions with adapters of that kind."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def manager(self, *, settings: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """``settings``: poolkit's, which urllib3 does not have."""
        if self.ours:
            return PoolkitPoolManager(**arguments, **(settings or {}))
        return urllib3.PoolManager(**arguments)

    @contextlib.contextmanager
    def session(self, *, settings: dict[str, Any] | None = None, **arguments: Any) -> Iterator[Any]:
        kind: Any = PoolkitAdapter if self.ours else requests.adapters.HTTPAdapter
        with requests.Session() as session:
            session.mount("http://", kind(**arguments, **((settings or {}) if self.ours else {})))
            yield session


def get(manager: Any, url: str, **options: Any) -> Any:
    return manager.request("GET", url, retries=False, **options)


def no_place(manager: Any, url: str) -> bool:
    """Return whether a request gets no connection although no other request has one."""
    try:
        get(manager, url, pool_timeout=MOMENT)
    except urllib3.exceptions.EmptyPoolError:
        return True
    return False


def at_once(number: int, work: Callable[[], object]) -> None:
    """Run ``work`` in so many threads at the same time."""
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def discards_connections(pools: Pools, server: HTTPServer) -> bool:
    """kubernetes-client/python#402, boto/botocore#619: "Connection pool is full, discarding connection"."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("urllib3.connectionpool")
    logger.addHandler(handler)
    before = server.stats().accepted
    try:
        with pools.manager() as manager:
            for _ in range(4):
                together = threading.Barrier(4)

                def work(together: threading.Barrier = together) -> None:
                    response = get(manager, f"{server.url}/bytes?n=10", preload_content=False)
                    together.wait(PATIENCE)
                    response.read()
                    together.wait(PATIENCE)

                at_once(4, work)
    finally:
        logger.removeHandler(handler)
    discarded = any("discarding" in text for text in said)
    assert discarded == (server.stats().accepted - before > 4)
    return discarded


def waits_without_a_limit(pools: Pools, server: HTTPServer) -> bool:
    """psf/requests#3825, urllib3/urllib3#1101: a full pool that blocks makes a request wait for ever, whatever its
    timeout.
    """
    with pools.session(pool_block=True, pool_maxsize=1, settings={"acquire_timeout": MOMENT}) as session:
        held = session.get(f"{server.url}/bytes?n=100000", stream=True)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                session.get(server.url, timeout=MOMENT)
            except requests.RequestException as error:
                errors.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        waiter.join(PATIENCE if pools.ours else 20 * MOMENT)
        waits = waiter.is_alive()
        held.close()
        waiter.join(PATIENCE)
    return waits and not errors


def loses_the_place_of_a_closed_response(pools: Pools, server: HTTPServer) -> bool:
    """urllib3/urllib3#809, #805: a response that is closed without being read keeps its place for ever."""
    with pools.manager(maxsize=1, block=True) as manager:
        get(manager, f"{server.url}/bytes?n=100000", preload_content=False).close()
        return no_place(manager, server.url)


def loses_the_place_of_a_dropped_response(pools: Pools, server: HTTPServer) -> bool:
    """urllib3/urllib3#659: so does one that is dropped."""
    with pools.manager(maxsize=1, block=True) as manager:
        response = get(manager, f"{server.url}/bytes?n=100000", preload_content=False)
        response.read(10)
        del response
        return no_place(manager, server.url)


def keeps_the_place_while_it_sleeps(pools: Pools, server: HTTPServer) -> bool:
    """urllib3/urllib3#1167, psf/requests#2784: a request that waits for its next attempt keeps its place meanwhile."""
    free: list[int] = []

    class Sleeper(urllib3.Retry):  # type: ignore[misc]
        def sleep(self, response: Any = None) -> None:
            free.append(pool.pool.qsize())

    with pools.manager(maxsize=1, block=True) as manager:
        pool = manager.connection_from_url("http://127.0.0.1:1")
        with pytest.raises(urllib3.exceptions.MaxRetryError):
            manager.request("GET", "http://127.0.0.1:1/", retries=Sleeper(2))
    assert free in ([0, 0], [1, 1])
    return free == [0, 0]


def opens_more_than_maxsize(pools: Pools, server: HTTPServer) -> bool:
    """elastic/elasticsearch-py#414: ``maxsize`` is no maximum. With poolkit ``max_size`` is one, without ``block``."""
    before = server.stats().accepted
    settings = {"max_size": 1, **LONG}
    with pools.manager(settings=settings, **({} if pools.ours else {"maxsize": 1})) as manager:
        at_once(4, lambda: get(manager, f"{server.url}/sleep?ms=20"))
    return server.stats().accepted - before > 1


def forgets_hosts(pools: Pools, server: HTTPServer) -> bool:
    """urllib3/urllib3#1252, boto/boto3#3313: with more hosts than ``num_pools``, each request opens a connection."""
    before = server.stats().accepted
    with pools.manager() as manager:
        for _ in range(3):
            for number in range(11):  # eleven pool keys
                pool = manager.connection_from_host("127.0.0.1", server.port, pool_kwargs={"blocksize": 9000 + number})
                assert pool.urlopen("GET", "/").status == 200
    return server.stats().accepted - before > 11


def fails_on_a_stale_connection(pools: Pools, server: HTTPServer) -> bool:
    """psf/requests#4664, dashscope/dashscope-sdk-python#175: a request fails because its connection was forgotten while
    it was idle.
    """
    proxy = FaultProxy("127.0.0.1", server.port).start()
    try:
        with pools.session() as session:
            url = f"http://{proxy.host}:{proxy.port}/"
            session.get(url)
            proxy.forget()
            try:
                return bool(session.get(url).status_code != 200)
            except requests.ConnectionError:
                return True
    finally:
        proxy.stop()


def keeps_idle_connections(pools: Pools, server: HTTPServer) -> bool:
    """urllib3/urllib3#3184, #1301, kubernetes-client/python#1158: idle connections are kept for ever."""
    with pools.manager(settings={"idle_timeout": MOMENT}) as manager:
        get(manager, server.url)
        pool = manager.connection_from_url(server.url)
        if not pools.ours:  # nothing would close it there
            assert any(conn is not None and conn.sock is not None for conn in pool.pool.queue)
            return True
        until(lambda: not pool.poolkit.stats().size, "the idle connection is closed")
    return False


def never_replaces_a_connection(pools: Pools, server: HTTPServer) -> bool:
    """psf/requests#6636: a connection in constant use is never replaced, so a change of DNS is never seen."""
    with pools.manager(settings={"max_lifetime": MOMENT}) as manager:
        ports: set[str] = set()

        def again() -> bool:
            ports.add(get(manager, server.url).headers["x-client-port"])
            return len(ports) > 1

        if pools.ours:
            until(again, "the connection is replaced")
        else:
            for _ in range(20):
                again()
    return len(ports) == 1


def shares_sockets_with_a_forked_child(pools: Pools, server: HTTPServer) -> bool:
    """psf/requests#1906, psf/cachecontrol#218: a forked child uses its parent's connection, and they get each other's
    answers.
    """
    with pools.manager() as manager:
        port = get(manager, server.url).headers["x-client-port"]
        child = os.fork()
        if not child:
            code = 9
            try:
                code = int(get(manager, server.url).headers["x-client-port"] == port)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 1)
        if pools.ours:
            assert get(manager, server.url).headers["x-client-port"] == port  # and the child has not closed it
    return code == 1


COMPLAINTS: tuple[Callable[[Pools, HTTPServer], bool], ...] = (
    discards_connections,
    waits_without_a_limit,
    loses_the_place_of_a_closed_response,
    loses_the_place_of_a_dropped_response,
    keeps_the_place_while_it_sleeps,
    opens_more_than_maxsize,
    forgets_hosts,
    fails_on_a_stale_connection,
    keeps_idle_connections,
    never_replaces_a_connection,
    shares_sockets_with_a_forked_child,
)


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda one: one.__name__)
def test_it_happens_with_the_own_pool_and_not_with_poolkit(complaint: Any, http_server: HTTPServer) -> None:
    assert complaint(Pools(ours=False), http_server)
    assert not complaint(Pools(ours=True), http_server)
