"""A connect over several addresses: libpq tries them in turn, each within ``connect_timeout``. It is given up only when
the last one has had its time, so that a server behind it can be reached.
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters import _attempts
from poolkit_adapters._libpq import longest
from poolkit_adapters.dbapi._connector import DbapiConnector
from poolkit_adapters.psycopg import PoolkitConnectionPool
from poolkit_adapters.psycopg._connector import PsycopgConnector
from tests.support.resolver import ANSWERS, Resolver

LIMIT = 2.0
"""The limit of a whole connect in seconds."""
ONE = 2 * LIMIT + 1.0
"""Seconds after which a connect to one address is given up."""
FOUR = 4 * LIMIT + 1.0
NEVER = math.inf


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver(monkeypatch)
    monkeypatch.setattr(_attempts, "time", types.SimpleNamespace(monotonic=float))  # the lookup takes no time
    resolver.addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]
    yield resolver
    resolver.over.set()


Bounds = dict[str, float | None]
"""When the connect is given up, as the pool hears during the driver's connect and after it."""


def dbapi(conninfo: str, arguments: dict[str, Any]) -> Bounds:
    found: Bounds = {}

    def ask(when: str) -> None:
        found[when] = connector.connect_bound(threading.get_ident(), LIMIT)

    def connect(*args: Any, **keywords: Any) -> Any:
        ask("opening")
        return psycopg.connect(*args, **keywords)

    module: Any = types.ModuleType("psycopg")
    vars(module).update({name: value for name, value in vars(psycopg).items() if not name.startswith("__")})
    module.connect = connect
    connector = DbapiConnector(module, (conninfo,), arguments, setup=lambda _: ask("opened"), checks=None)
    connector.connect(LIMIT).close()
    return found


def pool(conninfo: str, arguments: dict[str, Any]) -> Bounds:
    found: Bounds = {}

    def ask(when: str) -> None:
        found[when] = connector.connect_bound(threading.get_ident(), LIMIT)

    class Asking(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **keywords: Any) -> Any:
            ask("opening")
            return super().connect(*args, **keywords)

    owner: Any = PoolkitConnectionPool(
        conninfo, kwargs=arguments, connection_class=Asking, configure=lambda _: ask("opened"), min_size=0, max_size=1,
        open=False, connect_timeout=LIMIT,
    )  # fmt: skip
    connector = PsycopgConnector(owner)
    connector.abort(connector.connect(LIMIT))
    owner.close()
    return found


@pytest.mark.parametrize("of", [dbapi, pool], ids=lambda of: of.__name__)
@pytest.mark.parametrize(
    ("host", "own", "bound"),
    [
        ("127.0.0.1", {}, ONE),
        ("127.0.0.1,127.0.0.1,127.0.0.1,127.0.0.1", {}, FOUR),
        (ANSWERS, {}, FOUR),
        (ANSWERS, {"connect_timeout": 3}, 4 * 3 + 1.0),
        ("127.0.0.1", {"connect_timeout": 0}, NEVER),
        (ANSWERS, {"connect_timeout": "0"}, NEVER),
    ],
)
def test_each_address_has_its_time(
    postgres: PostgresServer, resolver: Resolver, of: Any, host: str, own: dict[str, Any], bound: float
) -> None:
    dsn = {**postgres.dsn, "host": host}
    found = of(" ".join(f"{name}={value}" for name, value in dsn.items()), own)
    assert found["opening"] == bound


@pytest.mark.parametrize("of", [dbapi, pool], ids=lambda of: of.__name__)
def test_what_follows_the_connect_has_no_time_for_addresses(
    postgres: PostgresServer, resolver: Resolver, of: Any
) -> None:
    dsn = {**postgres.dsn, "host": ANSWERS}
    found = of(" ".join(f"{name}={value}" for name, value in dsn.items()), {})
    assert found["opened"] <= ONE


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({"host": "/run", "connect_timeout": 5}, 5),
        ({"host": "localhost", "connect_timeout": 5}, 10),  # IPv6 and IPv4
        ({"connect_timeout": "5"}, 10),
        ({"host": "a,a,localhost", "hostaddr": "127.0.0.1,127.0.0.2,", "connect_timeout": 5}, 20),
        ({"hostaddr": "127.0.0.1,127.0.0.2", "connect_timeout": 5}, 10),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 1}, 2),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 2.5}, 3),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 5, "target_session_attrs": "prefer-standby"}, 10),
        ({"hostaddr": "127.0.0.1"}, NEVER),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 0}, NEVER),
    ],
)
def test_the_longest_connect_of_libpq(
    parameters: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(name, raising=False)
    assert longest(parameters) == seconds
