"""Django on a real PostgreSQL and a real Redis through poolkit: the ORM, transactions, threads, the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import django
import httpx
import psycopg
import pytest
import redis
from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application
from django.db import OperationalError, connections, models, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from werkzeug.serving import make_server

from poolkit import AcquireTimeout
from poolkit.frameworks.django import cache as cache_backend
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters.psycopg import PoolkitConnectionPool

APPLICATION = "django-tests"
POOL = {"min_size": 0, "max_size": 2, "timeout": 10, "idle_timeout": 60}


def view(request: HttpRequest) -> HttpResponse:
    """A sale, in a transaction if the request says so."""
    with transaction.atomic():
        Sale.objects.create(what=request.GET["what"])
        if "fail" in request.GET:
            raise LookupError("the sale is off")
    caches["default"].set("last", request.GET["what"])
    return HttpResponse(caches["default"].get("last"))


urlpatterns = [path("", view)]
Sale: Any = None


@pytest.fixture(scope="module")
def configured(_postgres: PostgresServer, _redis_server: RedisServer) -> Iterator[None]:
    """Settings, for this process; a table for the model."""
    global Sale
    _postgres.start()
    _redis_server.start()
    given = psycopg.conninfo.conninfo_to_dict(_postgres.url)
    database = {
        "ENGINE": "poolkit.frameworks.django.postgresql",
        "NAME": given["dbname"], "USER": given["user"], "PASSWORD": given.get("password", ""),
        "HOST": given["host"], "PORT": given["port"],
    }  # fmt: skip

    def options(pool: Any, **more: Any) -> dict[str, Any]:
        return {**database, "OPTIONS": {"pool": pool, "application_name": APPLICATION}, **more}

    settings.configure(
        DATABASES={
            "default": options(POOL),
            "small": options({"min_size": 0, "max_size": 1, "timeout": 10}),
            "checked": options({"min_size": 0, "max_size": 1}, CONN_HEALTH_CHECKS=True),
            "bare": {**database},
            "without": options(False),
            "kept": options(True, CONN_MAX_AGE=60),
            "typo": options({"max_szie": 3}),
        },
        CACHES={
            "default": {
                "BACKEND": "poolkit.frameworks.django.cache.RedisCache",
                "LOCATION": _redis_server.url,
                "OPTIONS": {"max_connections": 3, "name": "django-cache", "client_name": APPLICATION},
            },
            "plain": {  # Django's own backend with our class
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": _redis_server.url,
                "OPTIONS": {"pool_class": "poolkit_adapters.redis.PoolkitConnectionPool"},
            },
        },
        ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="for tests", LOGGING_CONFIG=None, USE_TZ=True,
    )  # fmt: skip
    django.setup()

    class _Sale(models.Model):
        what = models.CharField(max_length=50)

        class Meta:
            app_label = "shop"

    Sale = _Sale
    connection = connections["default"]
    with connection.schema_editor() as editor:
        editor.create_model(Sale)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Sale)
    for pool in type(connection)._connection_pools.values():
        pool.close()
    for _, pool in cache_backend._made:
        pool.disconnect()
        pool.poolkit.close()


@pytest.fixture(autouse=True)
def quiet(configured: None, postgres: PostgresServer, redis_server: RedisServer) -> Iterator[None]:
    """Start and end each test without a connection in this thread."""
    yield
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            connection.close()
    pools = type(connections["default"])._connection_pools
    assert {name: pool.poolkit.stats().in_use for name, pool in pools.items()} == dict.fromkeys(pools, 0)


def in_threads(number: int, work: Any) -> list[Any]:
    """Run ``work(n)`` concurrently, each in its own thread; return the results."""
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: work(n)})) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[n] for n in range(number)]


def test_the_orm_works_in_more_threads_than_connections(postgres: PostgresServer) -> None:
    """Eight threads under a limit of two: each is served, close() returns it, the server sees at most two."""
    before = Sale.objects.count()
    connections["default"].close()
    pool = connections["default"].pool
    assert isinstance(pool, PoolkitConnectionPool)

    def work(number: int) -> tuple[int, int]:
        assert connections["default"].pool is pool
        try:
            Sale.objects.create(what=f"sale {number}")
            with connections["default"].cursor() as cursor:
                cursor.execute("select count(*) from pg_stat_activity where application_name = %s", [APPLICATION])
                [seen] = cursor.fetchone()
            return Sale.objects.filter(what=f"sale {number}").count(), seen
        finally:
            connections["default"].close()

    found = in_threads(8, work)
    assert [count for count, _ in found] == [1] * 8
    assert max(seen for _, seen in found) <= 2
    assert Sale.objects.count() == before + 8
    assert pool.poolkit.name == "django-default"
    assert pool.poolkit.stats().connects <= 2


def test_requests_return_their_connections_and_failed_ones_are_rolled_back() -> None:
    """A threaded WSGI server; Django returns the connections of a request, and all requests share the cache."""
    server = make_server("127.0.0.1", 0, get_wsgi_application(), threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()

    def get(number: int) -> int:
        fail = {"fail": "1"} if number % 2 else {}
        return httpx.get(
            f"http://127.0.0.1:{server.server_port}/", params={"what": f"request {number}", **fail}, trust_env=False
        ).status_code

    try:
        assert in_threads(6, get) == [200, 500] * 3
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert sorted(Sale.objects.filter(what__startswith="request").values_list("what", flat=True)) == [
        "request 0", "request 2", "request 4",
    ]  # fmt: skip
    [pool] = [pool for wanted, pool in cache_backend._made if wanted[2].get("name") == "django-cache"]
    assert pool.poolkit.stats().connects <= 3


def test_a_transaction_that_was_left_open_is_rolled_back_on_return() -> None:
    """The next user of the connection finds neither the row nor the transaction."""
    connection = connections["small"]
    connection.set_autocommit(False)
    Sale.objects.using("small").create(what="never sold")
    session = connection.connection.info.backend_pid
    connection.close()
    assert not Sale.objects.using("small").filter(what="never sold").exists()
    assert connection.connection.info.backend_pid == session
    assert connection.get_autocommit()


def test_an_exhausted_pool_raises_djangos_own_error() -> None:
    """django.db.OperationalError, caused by poolkit's error, which names the holder of the connection."""
    Sale.objects.using("small").count()  # keeps its connection until close()
    connections["small"].pool.timeout = 0.05

    def other(number: int) -> Exception:
        with pytest.raises(OperationalError, match=r"in use 1/1, .* longest held .* by MainThread") as caught:
            Sale.objects.using("small").count()
        return caught.value

    [error] = in_threads(1, other)
    assert isinstance(error.__cause__, AcquireTimeout)
    connections["small"].pool.timeout = 10


def test_with_health_checks_sessions_that_the_server_has_ended_are_not_used(postgres: PostgresServer) -> None:
    """CONN_HEALTH_CHECKS means a check at every checkout, as with psycopg_pool: the next request works."""
    Sale.objects.using("checked").count()
    session = connections["checked"].connection.info.backend_pid
    connections["checked"].close()
    postgres.kill_backends()
    assert Sale.objects.using("checked").count() >= 0
    assert connections["checked"].connection.info.backend_pid != session
    for pool in type(connections["checked"])._connection_pools.values():
        pool.drain()  # theirs have been ended, too


def test_a_pool_is_the_default_and_can_be_disabled() -> None:
    """ENGINE alone enables a pool with psycopg_pool's sizes; "pool": False disables it."""
    assert connections["bare"].pool.min_size == 4
    assert connections["without"].pool is None
    assert Sale.objects.using("without").count() >= 0
    connections["without"].close()


def test_a_closed_pool_is_created_again() -> None:
    """close_pool(), called by Django's test runner and for a changed time zone, ends the sessions."""
    connection = connections["bare"]
    pool = connection.pool
    pool.open(wait=True)
    connection.close_pool()
    connection.close_pool()
    assert pool.poolkit.closed
    assert pool.poolkit.stats().size == 0
    assert "bare" not in connection._connection_pools
    assert Sale.objects.using("bare").count() >= 0
    assert connection.pool is not pool


def test_invalid_settings_raise_improperly_configured() -> None:
    """The error names the database's alias and a correction."""
    with pytest.raises(ImproperlyConfigured, match=r"DATABASES\['kept'\]: CONN_MAX_AGE=60 .* set it to 0"):
        Sale.objects.using("kept").count()
    with pytest.raises(ImproperlyConfigured, match=r"DATABASES\['typo'\].*max_szie: .* did you mean 'max_size'"):
        Sale.objects.using("typo").count()


def test_threads_share_one_pool_of_the_cache(redis_server: RedisServer) -> None:
    """Django creates a cache object for each thread; all share one pool, with at most three connections here."""

    def work(number: int) -> Any:
        caches["default"].set(f"key-{number}", number)
        return caches["default"].get(f"key-{number}")

    assert in_threads(8, work) == list(range(8))
    with redis.Redis.from_url(redis_server.url) as client:
        mine = [one for one in client.client_list() if one["name"] == APPLICATION]
    assert 1 <= len(mine) <= 3


def test_a_closed_pool_of_the_cache_is_created_again_and_djangos_own_backend_works() -> None:
    """The cache works after a drain, for example at the end of a test; so does Django's backend with poolkit's pool."""
    caches["default"].set("key", 1)
    [pool] = [pool for wanted, pool in cache_backend._made if wanted[2].get("name") == "django-cache"]
    pool.poolkit.drain(1)
    assert caches["default"].get("key") == 1
    plain = caches["plain"]
    plain.set("other", 2)
    assert plain.get("other") == 2
    [plain_pool] = plain._cache._pools.values()
    assert plain_pool.poolkit.stats().acquires == 2
    plain_pool.poolkit.close()
