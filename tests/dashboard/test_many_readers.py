"""Many readers, slow ones and hostile ones: what they cost, and whom they keep out."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit import Pool
from poolkit.dashboard import _server, start
from poolkit.dashboard._desk import SHARED, Desk, Refused, Request
from poolkit.dashboard._local import Local
from poolkit.dashboard._recorder import Recorder
from poolkit.dashboard._remote import Remote
from poolkit.telemetry.families import read
from poolkit.testing import FakeConnector, ManualClock
from tests.support.instructions import instructions
from tests.support.waiting import until


class Source:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked, self.pools, self.fails = 0, 1, False

    def state(self) -> dict[str, Any]:
        self.asked += 1
        if self.fails:
            raise Refused(502, "gone")
        return {"asked": self.asked, "actions": True}

    def history(self) -> dict[str, Any]:
        self.asked += 1
        return {"asked": self.asked}

    def detail(self, pool: str) -> dict[str, Any]:
        return {"id": pool}

    def mark(self) -> object:
        return self.pools

    def act(self, pool: str, action: str, options: dict[str, Any]) -> str:
        return "done"


@pytest.mark.parametrize("path", ["/api/state", "/api/history"])
def test_readers_share_a_snapshot_for_half_a_second(path: str) -> None:
    source, clock = Source(), ManualClock()
    desk = Desk(source, actions=True, clock=clock)

    def told() -> int:
        return int(json.loads(desk.respond(Request("GET", path)).body)["asked"])

    assert [told() for _ in range(100)] == [1] * 100
    clock.advance(SHARED / 2)
    assert told() == 1
    clock.advance(SHARED / 2)
    assert [told(), told()] == [2, 2]
    source.pools += 1  # a pool was made or closed
    assert [told(), told()] == [3, 3]


def test_an_action_is_seen_at_once_and_an_error_is_not_kept() -> None:
    source = Source()
    desk = Desk(source, actions=True, clock=ManualClock())
    get = Request("GET", "/api/state")
    desk.respond(get)
    desk.respond(Request("POST", "/api/pools/1/clear", {"content-type": "application/json"}, b"{}"))
    source.fails = True
    assert desk.respond(get).status == 502
    source.fails = False
    assert desk.respond(get).status == 200
    assert source.asked == 3


def test_a_source_whose_snapshots_are_not_to_be_shared_is_always_asked() -> None:
    source = Source()
    source.mark = lambda: None  # type: ignore[method-assign]
    desk = Desk(source, actions=True, clock=ManualClock())
    for _ in range(3):
        desk.respond(Request("GET", "/api/state"))
    assert source.asked == 3


def test_a_pool_of_many_costs_a_reader_little() -> None:
    """Of what one look costs, most was spent on what nobody saw: settings, and all leases, of pools that are closed on
    the page. The work for one lease more is that of counting it.
    """

    def look(leases: int) -> tuple[float, float]:
        """Bytecodes and bytes for each pool."""
        with contextlib.ExitStack() as stack:
            pools = [
                stack.enter_context(Pool(FakeConnector(), name=f"p{number}", max_size=100, debug=True))
                for number in range(10)
            ]
            for pool in pools:
                for _ in range(leases):
                    stack.enter_context(pool.lease())
            recorder = Recorder(interval=None, pools=lambda: pools)
            stack.callback(recorder.close)
            desk = Desk(Local(actions=False, recorder=recorder), actions=False)
            desk._state._mark = lambda: None  # type: ignore[method-assign]  # each look is one of its own
            request = Request("GET", "/api/state")
            size = len(desk.respond(request).body) - len(Desk(Source(), actions=False).respond(request).body)
            return instructions(lambda: desk.respond(request), warm=1, rounds=1) / 10, size / 10

    work, size = look(10)
    more, longer = look(50)
    assert work < 8_000  # 29,000 before
    assert more - work < 40 * 200  # 1,500 for each lease
    assert size < 1_500  # 3,400
    assert abs(longer - size) < 100


def test_the_work_of_a_scrape_grows_with_the_pools_and_no_faster() -> None:
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(Pool(FakeConnector(), name=f"p{number}")) for number in range(40)]
        few, many = (instructions(lambda some=some: read(some), warm=1, rounds=1) for some in (pools[:10], pools))
        assert many < 5 * few


# -- at the socket ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dashboard(places: Path) -> Iterator[str]:
    with start(port=0) as one:
        yield one.address.rpartition(":")[2]


def status(port: str, source: str = "127.0.0.1") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request("GET", "/api/history")
        return connection.getresponse().status


def slow(address: Any, count: int) -> list[socket.socket]:
    """Clients that have sent a byte each."""
    clients = []
    for _ in range(count):
        client = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        client.settimeout(20)
        client.connect(address)
        client.send(b"G")
        clients.append(client)
    return clients


def test_one_address_has_a_part_of_the_places_and_is_told_so(dashboard: str) -> None:
    """Others are served meanwhile."""
    clients = slow(("127.0.0.1", int(dashboard)), _server.CLIENTS_OF_ONE)
    until(lambda: status(dashboard) == 503)
    with pytest.raises(Refused, match="too many requests at once; try again"):
        Remote(f"http://127.0.0.1:{dashboard}").state()
    assert status(dashboard, "127.0.0.2") == 200
    for client in clients:
        client.close()
    until(lambda: status(dashboard) == 200)


def test_of_all_addresses_together_there_are_so_many_at_once() -> None:
    clients = _server._Places()
    for number in range(_server.CLIENTS):
        assert clients.take(f"10.0.0.{number}")
    assert not clients.take("10.0.1.1")
    clients.leave("10.0.0.3")
    assert clients.take("10.0.1.1")


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("10.1.2.3", 5), "10.1.2.3"), (("2001:db8::1", 5, 0, 0), "2001:db8::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"), ("", ""),
    ],
)  # fmt: skip
def test_what_counts_as_one_address(client: Any, address: str) -> None:
    assert _server._address(client) == address


def test_a_request_has_a_deadline_however_many_pieces_it_comes_in() -> None:
    ours, theirs = socket.socketpair()
    clock = ManualClock()
    with ours, theirs:
        timed = _server._Timed(ours, clock() + 5.0, clock)
        for _ in range(2):
            theirs.send(b"G")
            assert timed.read(10) == b"G"
            clock.advance(2.0)
        theirs.send(b"G")
        assert timed.read(10) == b"G"
        clock.advance(2.0)
        theirs.send(b"G")
        with pytest.raises(TimeoutError):
            timed.read(10)


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_clients_that_send_a_byte_now_and_then_keep_nobody_out_for_long(
    places: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(_server, "PATIENCE", 0.5)
    with start(port=0) if kind == "port" else start() as dashboard:
        port = dashboard.address.rpartition(":")[2]
        clients = slow(("127.0.0.1", int(port)) if kind == "port" else dashboard.address, _server.CLIENTS)
        over = threading.Event()

        def drip() -> None:
            while not over.wait(0.1):
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.send(b"E")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            until(_served(dashboard.address))
        finally:
            over.set()
            thread.join()
            for client in clients:
                client.close()


def _served(address: str) -> Callable[[], bool]:
    def served() -> bool:
        try:
            return bool(Remote(address).history())
        except Refused:
            return False

    return served
