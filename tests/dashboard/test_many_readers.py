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

import anyio
import pytest

from poolkit import Pool
from poolkit.dashboard import DashboardApp, _server, start
from poolkit.dashboard._asgi import RemoteApp
from poolkit.dashboard._desk import SHARED, Desk, Refused, Request, Response
from poolkit.dashboard._local import Local
from poolkit.dashboard._recorder import Recorder
from poolkit.dashboard._remote import Remote
from poolkit.telemetry.families import read
from poolkit.testing import FakeConnector, ManualClock
from tests.support.instructions import instructions
from tests.support.waiting import PATIENCE, until


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
    assert work < 3_200  # 29,000 at first; 4,000 with three leases of each pool
    assert more - work < 40 * 200  # 1,500 for each lease
    assert size < 1_000  # 3,400 at first
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


def slow(address: Any, count: int, text: bytes = b"G") -> list[socket.socket]:
    """Clients that have sent that each."""
    clients = []
    for _ in range(count):
        client = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        client.settimeout(20)
        client.connect(address)
        client.send(text)
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
    clients = _server.Places()
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
    assert _server.address_of(client) == address


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


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_clients_that_do_not_read_their_answer_keep_nobody_out_for_long(
    places: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each answer is more than the system's buffers take: its thread would stand in it for good."""
    really, large, begun = Desk.respond, b"x" * (50 << 20), []

    def respond(desk: Desk, request: Request) -> Response:
        if request.path != "/large":
            return really(desk, request)
        begun.append(request)
        return Response(200, {}, large)

    monkeypatch.setattr(_server, "PATIENCE", 1.0)
    monkeypatch.setattr(Desk, "respond", respond)
    with start(port=0) if kind == "port" else start() as dashboard:
        port = dashboard.address.rpartition(":")[2]
        address: Any = ("127.0.0.1", int(port)) if kind == "port" else dashboard.address
        most = _server.CLIENTS_OF_ONE if kind == "port" else _server.CLIENTS
        clients = slow(address, most, b"GET /large HTTP/1.0\r\n\r\n")
        until(lambda: len(begun) == most)
        until(_served(dashboard.address))
        for client in clients:
            client.close()


def test_who_asks_for_a_websocket_or_a_stream_gets_one_answer_and_the_end(dashboard: str) -> None:
    """There is no way of asking that keeps a place."""
    for header in ("Upgrade: websocket\r\nConnection: Upgrade", "Accept: text/event-stream\r\nConnection: keep-alive"):
        with socket.create_connection(("127.0.0.1", int(dashboard)), PATIENCE) as client:
            client.sendall(f"GET /api/history HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
            answer = b"".join(iter(lambda client=client: client.recv(65536), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.0 200 ")


# -- in an ASGI server ------------------------------------------------------------------------------------------------

GET = {"type": "http", "method": "GET", "path": "/api/history", "headers": [], "client": ("127.0.0.1", 5)}


class Client:
    """One request to an application. ``body``: what it sends; after that it waits until it is let go."""

    def __init__(self, app: Any, body: bytes | None = b"", *, reads: bool = True, address: str = "127.0.0.1") -> None:
        self._app, self._body, self._reads = app, body, reads
        self._scope = {**GET, "client": (address, 5)}
        self.status: int | None = None
        self.begun, self._let_go = anyio.Event(), anyio.Event()

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        self.begun.set()
        if self._body is None:
            await self._let_go.wait()
        return {"type": "http.request", "body": self._body or b"", "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        if not self._reads:
            await self._let_go.wait()

    def let_go(self) -> None:
        self._let_go.set()


def apps() -> dict[str, Callable[[], Any]]:
    return {"DashboardApp": DashboardApp, "RemoteApp": lambda: RemoteApp(Source(), token=None, allowed_hosts=[""])}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["a slow sender", "a slow reader"])
async def test_a_request_to_an_application_ends_however_slow_its_client_is(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "PATIENCE", 0.05)
    client = Client(DashboardApp(), None if kind == "a slow sender" else b"", reads=kind == "a slow sender")
    with anyio.fail_after(PATIENCE):
        await client.run()
    assert client.status == (408 if kind == "a slow sender" else 200)


@pytest.mark.anyio
@pytest.mark.parametrize("name", apps())
async def test_an_application_that_is_full_says_so_and_serves_again(
    name: str, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """Of one address no more than its part, where addresses are those of clients: in front of ``DashboardApp`` there
    may be a proxy.
    """
    if name == "RemoteApp" and anyio_backend_name != "asyncio":
        pytest.skip("poolkit dashboard runs on asyncio")
    monkeypatch.setattr(_server, "PATIENCE", PATIENCE)
    app = apps()[name]()
    most = _server.CLIENTS if name == "DashboardApp" else _server.CLIENTS_OF_ONE

    async def status(address: str = "127.0.0.1") -> int | None:
        client = Client(app, address=address)
        await client.run()
        return client.status

    async with anyio.create_task_group() as tasks:
        slow_ones = [Client(app, None) for _ in range(most)]
        for one in slow_ones:
            tasks.start_soon(one.run)
        for one in slow_ones:
            await one.begun.wait()
        assert await status() == 503
        assert await status("127.0.0.2") == (503 if name == "DashboardApp" else 200)
        for one in slow_ones:
            one.let_go()
    assert [one.status for one in slow_ones] == [200] * most
    assert await status() == 200


def _served(address: str) -> Callable[[], bool]:
    def served() -> bool:
        try:
            return bool(Remote(address).history())
        except Refused:
            return False

    return served
