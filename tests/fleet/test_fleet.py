"""Real processes under one limit at a real PostgreSQL: killed, cut off from the store, replaced one after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench.fleet.damage import DAMAGE, full_disk
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.faults.proxy import FaultProxy
from tests.fleet.kit import Fleet

LIMIT, TTL = 10, 2.0

pytestmark = pytest.mark.timeout(120)  # real processes and leases of seconds, on machines that are busy


@pytest.fixture(params=["file", "redis", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The kind and the address of the store."""
    if request.param == "file":
        return f"file {tmp_path}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        with contextlib.closing(server.connect()) as client:
            client.delete("poolkit:fleet:test")
        return f"redis {server.url}"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS poolkit_fleet")
    return f"postgres {postgres.url}"


@pytest.fixture
def fleet(address: str, postgres: PostgresServer) -> Iterator[Fleet]:
    fleet = Fleet(address.split()[0], postgres.url, limit=LIMIT, ttl=TTL)
    yield fleet
    fleet.close()


@pytest.fixture
def fleet_of_twenty(address: str, postgres: PostgresServer) -> Iterator[Fleet]:
    fleet = Fleet(address.split()[0], postgres.url, limit=20, ttl=TTL)
    yield fleet
    fleet.close()


def test_eight_processes_killed_and_replaced_never_exceed_the_limit(fleet: Fleet, address: str) -> None:
    """Eight processes use the whole limit and never exceed it while three are killed and all are replaced."""
    place = address.split()[1]
    old = fleet.start(8, place)
    fleet.until(LIMIT, "the whole limit is used")
    for process in old[:3]:
        process.kill()
    new = fleet.start(3, place)
    for process in old[3:]:  # a rolling restart
        process.works()  # each process gets its part
        process.end()
        new += fleet.start(1, place)
    time.sleep(1.5 * TTL)  # what the killed ones held has run out
    fleet.until(LIMIT, "what the killed ones held is used again")
    for process in new:
        process.works()  # nobody starves
    for process in new:
        process.end()
    assert fleet.most <= LIMIT, f"{fleet.most} connections under a limit of {LIMIT}"
    fleet.until(0, "all is closed")


@pytest.mark.parametrize("address", ["redis", "postgres"], indirect=True)
def test_processes_that_are_cut_off_from_the_store_give_up_before_others_take_over(
    fleet: Fleet, address: str, request: pytest.FixtureRequest
) -> None:
    """The network drops all packets between two of four processes and the store, and works again later."""
    kind, place = address.split()
    server: Any = request.getfixturevalue("postgres" if kind == "postgres" else "redis_server")
    proxy = FaultProxy("127.0.0.1", server.port).start()
    try:
        through = place.replace(f":{server.port}", f":{proxy.port}")
        assert through != place
        cut = fleet.start(2, through, threads=5, group="cut")
        free = fleet.start(2, place, threads=8, group="free")
        fleet.until(LIMIT, "the whole limit is used")
        for process in cut:
            process.works()
        proxy.mode = "silent"
        fleet.until(LIMIT, "the others have taken over all of it", group="free")
        proxy.mode = "pass"
        for process in cut:
            process.works()  # it comes back by itself
        for process in (*cut, *free):
            process.end()
        assert fleet.most <= LIMIT, f"{fleet.most} connections under a limit of {LIMIT}"
    finally:
        proxy.stop()


@pytest.mark.parametrize("address", ["redis"], indirect=True)
def test_a_fleet_keeps_its_permits_while_its_store_is_down_and_continues_when_it_is_back(
    fleet: Fleet, address: str, redis_server: RedisServer
) -> None:
    """The store is down for longer than a lease: no permits are lost or added, and the limit holds."""
    place = address.split()[1]
    processes = fleet.start(4, place)
    fleet.until(LIMIT, "the whole limit is used")
    for process in processes:
        process.works()
    redis_server.kill()
    time.sleep(1.5 * TTL)  # all leases have run out
    for process in processes:
        process.works(10)
    redis_server.start()
    processes += fleet.start(2, place)
    for process in processes:
        process.works()  # newcomers get their part when the store is back
    results = [process.end() for process in processes]
    assert not [text for result in results[:4] for text in result["failed"] if "AcquireTimeout" not in text]
    assert fleet.most <= LIMIT, f"{fleet.most} connections under a limit of {LIMIT}"


@pytest.mark.parametrize("address", ["file"], indirect=True)
def test_the_limit_holds_when_all_files_of_the_fleet_are_deleted(fleet: Fleet, address: str) -> None:
    """Repeatedly, as by a cleaner of ``/tmp``; the permits of a process that is killed then are used again."""
    place = Path(address.split()[1])
    processes = fleet.start(3, str(place), threads=6)
    fleet.until(LIMIT, "the whole limit is used")
    for _ in range(3):
        for path in place.iterdir():
            path.unlink(missing_ok=True)
        for process in processes:
            process.works(30)
    processes.pop().kill()
    fleet.until(LIMIT, "what it held is used again")
    for process in processes:
        process.end()
    assert fleet.most <= LIMIT, f"{fleet.most} connections under a limit of {LIMIT}"


def test_the_limit_holds_and_comes_back_whatever_happens_to_the_store(fleet_of_twenty: Fleet, address: str) -> None:
    """After each damage a new process joins at once; the whole limit is used again later."""
    kind, place = address.split()
    fleet = fleet_of_twenty
    processes = fleet.start(8, place, threads=4)
    fleet.until(fleet.limit, "the whole limit is used")
    damages = dict(DAMAGE[kind])
    if kind == "file":
        damages["full"] = lambda place: full_disk([process.process.pid or 0 for process in processes])
    for name, damage in damages.items():
        end = damage(place)
        try:
            newcomer = fleet.start(1, place, threads=4) if "full" not in name else []
            time.sleep(0.25 * TTL)
        finally:
            end()
        time.sleep(1.5 * TTL)  # the grace of a ttl is over, and everybody has asked since
        fleet.until(fleet.limit, f"the whole limit is used after: {name}")
        assert fleet.most <= fleet.limit, f"{name}: {fleet.most} connections under a limit of {fleet.limit}"
        for process in newcomer:
            process.works()
            process.end()
    for process in processes:
        process.works()
        process.end()
    assert fleet.most <= fleet.limit
