"""start(): sockets and ports, who may reach them, what is left behind; and other processes seen from here."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from poolkit import ConfigError, Pool, UsageError
from poolkit.dashboard import start
from poolkit.dashboard._desk import Refused
from poolkit.dashboard._places import directory, live_sockets
from poolkit.dashboard._remote import Remote, attach
from poolkit.dashboard._server import CLIENTS
from poolkit.testing import FakeConnector
from poolkit.testing.servers import PostgresServer
from tests.support.waiting import until

from .conftest import TOKEN, Service

pytestmark = [
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here"),
    pytest.mark.timeout(90),  # each starts interpreters, one after the other
]


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(places: Path) -> None:
    """Nothing of these tests is seen by others."""


def names(state: dict[str, Any]) -> list[str]:
    return [pool["name"] for pool in state["pools"]]


def test_one_line_shows_a_process_to_its_user_alone(places: Path) -> None:
    with Pool(FakeConnector(), name="shown"), start() as dashboard:
        assert dashboard.address == str(places / f"poolkit-{os.getuid()}" / f"{os.getpid()}.sock")
        modes = [
            stat.S_IMODE(path.stat().st_mode) for path in (Path(dashboard.address).parent, Path(dashboard.address))
        ]
        assert modes == [0o700, 0o600]
        assert "shown" in names(attach([str(os.getpid())]).state())
        assert "shown" in names(attach([dashboard.address]).state())
        assert "shown" in names(attach(["unix://" + dashboard.address]).state())
        assert "shown" in names(attach().state())
        with pytest.raises(UsageError, match="already listens at"):
            start()
        with pytest.raises(Refused, match="actions are not enabled in this dashboard"):
            attach().act("1-1", "clear", {})
    assert not Path(dashboard.address).exists()
    with pytest.raises(Refused, match="nothing listens there"):
        Remote(dashboard.address).state()
    dashboard.close()


def test_another_process_is_seen_with_its_holders_and_steered(service: Service) -> None:
    source = attach([service.pid])
    state = source.state()
    assert names(state) == ["orders-db"]
    assert state["pools"][0]["held"][0]["place"].endswith("tests/dashboard/service.py:29")
    assert state["processes"][0]["program"] == "service.py"
    whole = source.detail(state["pools"][0]["id"])
    assert whole["settings"]["max_size"]["value"] == 3
    assert [lease["connection_id"] for lease in whole["held"]] == [1]
    with pytest.raises(Refused, match="there is no pool '1-1'"):
        source.detail("1-1")
    assert source.act(state["pools"][0]["id"], "suspend", {}) == "orders-db: suspended"
    assert source.state()["pools"][0]["phase"] == "suspended"
    with pytest.raises(Refused, match="max_size=0"):
        source.act(state["pools"][0]["id"], "resize", {"max_size": 0})
    with pytest.raises(Refused, match="there is no pool '1-1'"):
        source.act("1-1", "clear", {})


def test_several_processes_are_one_picture_and_one_that_is_killed_leaves_it(
    service: Service, postgres: PostgresServer
) -> None:
    other = Service(postgres.url)
    try:
        source = attach()
        state = source.state()
        assert {one["pid"] for one in state["processes"]} == {int(service.pid), int(other.pid)}
        assert len({pool["id"] for pool in state["pools"]}) == 2
        until(lambda: set(source.history()["pools"]) == {pool["id"] for pool in state["pools"]})
        own = next(pool for pool in state["pools"] if pool["pid"] == int(service.pid))
        both = attach([other.pid, service.pid])  # the one that is asked first refuses actions
        assert both.act(own["id"], "clear", {}) == "orders-db: cleared"
        assert [both.detail(pool["id"])["pid"] for pool in state["pools"]] == [pool["pid"] for pool in state["pools"]]
        other.process.kill()
        other.process.communicate()
        assert Path(other.address).exists()
        assert [one["pid"] for one in attach().state()["processes"]] == [int(service.pid)]
        assert not Path(other.address).exists()
    finally:
        other.end()


def test_a_stopped_process_holds_nobody_up(service: Service, postgres: PostgresServer) -> None:
    """It is named, and the others are shown."""
    other = Service(postgres.url)
    try:
        other.process.send_signal(signal.SIGSTOP)
        state = attach([service.pid, other.pid], timeout=0.3).state()
        assert names(state) == ["orders-db"]
        assert [one["error"] for one in state["processes"] if "error" in one] == [
            f"process {other.pid}: no answer in 0.3 s"
        ]
    finally:
        other.process.send_signal(signal.SIGCONT)
        other.end()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("999999999", "process 999999999: no such process"),
        ("ftp://here", "ftp://here: must be http://HOST:PORT/PATH"),
        ("http://", "must be http://HOST:PORT/PATH"),
        ("http://here:99999", "must be http://HOST:PORT/PATH"),
    ],
)
def test_what_can_be_no_target_is_an_error_at_once(target: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        attach([target])


def test_a_process_that_shows_nothing_is_told_how() -> None:
    with pytest.raises(
        ConfigError, match=rf"process {os.getpid()}: has no dashboard; call poolkit.dashboard.start\(\)"
    ):
        attach([str(os.getpid())])


def test_a_server_that_is_something_else_is_named(http_server: Any) -> None:
    with pytest.raises(Refused, match="answers with status 404, but is not a poolkit dashboard"):
        Remote(f"{http_server.url}/no-such-thing").state()
    with pytest.raises(Refused, match="nothing listens there"):
        Remote("http://127.0.0.1:9").state()


def test_a_port_is_on_loopback_wants_the_right_name_and_takes_actions_with_the_token_only() -> None:
    with Pool(FakeConnector(), name="on-a-port") as pool, start(port=0, token=TOKEN) as dashboard:
        assert dashboard.address.startswith("http://127.0.0.1:")
        (found,) = [
            one for one in httpx.get(f"{dashboard.address}/api/state").json()["pools"] if one["name"] == pool.name
        ]
        path = f"{dashboard.address}/api/pools/{found['id']}/suspend"
        assert httpx.post(path, json={}).status_code == 401
        assert httpx.post(path, json={}, headers={"Host": "evil.example"}).status_code == 403
        assert pool.stats().phase == "open"
        assert httpx.post(path, json={}, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert pool.stats().phase == "suspended"
        assert attach([dashboard.address]).state()["actions"] is True
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1: Address already in use"):
            start(port=int(dashboard.address.rpartition(":")[2]))


def test_nonsense_and_slow_clients_bring_nothing_down() -> None:
    """Broken requests are answered or dropped; beyond a number of clients the next is hung up on, and later served."""
    with start(port=0) as dashboard:
        host, port = "127.0.0.1", int(dashboard.address.rpartition(":")[2])
        for nonsense in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"POST " + b"x" * 70_000):
            with socket.create_connection((host, port), 10) as client:
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
                try:
                    assert b" 200 " not in client.recv(100)
                except ConnectionResetError:
                    pass
        slow = [socket.create_connection((host, port), 10) for _ in range(CLIENTS)]
        until(lambda: _hung_up(host, port))
        for client in slow:
            client.close()
        until(lambda: not _hung_up(host, port))


def _hung_up(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/api/history")
        return connection.getresponse().status != 200
    except (ConnectionError, http.client.BadStatusLine):
        return True
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": "/tmp/x", "port": 1}, "give path or port, not both"),
        ({"port": 70_000}, "port=70000: must be a number from 0"),
        ({"port": "8000"}, "port='8000': must be a number from 0"),
        ({"port": 0, "actions": True}, "actions over a port need a token"),
        ({"port": 0, "token": "short"}, "must be 16 ASCII characters or more"),
        ({"token": TOKEN}, "a token needs a port"),
        ({"port": 0, "host": "no.such.host.invalid"}, "host='no.such.host.invalid'"),
        ({"path": "/tmp/" + "x" * 200}, "AF_UNIX path too long"),
        ({"path": "/no/such/directory/x"}, "cannot listen there"),
    ],
)
def test_arguments_that_cannot_be_meant(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        start(**options)


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        start(path=file)
    assert file.read_text() == "mine"
    busy = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(busy))
        other.listen()
        with pytest.raises(ConfigError, match="another process already listens there"):
            start(path=busy)
    with start(path=busy) as dashboard:  # nobody listens any more: left behind by a process that was killed
        assert names(attach([dashboard.address]).state()) is not None


def test_a_directory_that_others_could_write_to_is_not_trusted(places: Path) -> None:
    path = places / f"poolkit-{os.getuid()}"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    for use in (start, live_sockets, lambda: directory(make=True)):
        with pytest.raises(ConfigError, match="must be a private directory of user"):
            use()
    path.rmdir()
    path.symlink_to(places)
    with pytest.raises(ConfigError, match="must be a private directory of user"):
        start()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_listens_at_a_socket_of_its_own() -> None:
    """And its end leaves the parent's alone."""
    with Pool(FakeConnector(), name="family"), start() as dashboard, start(port=0):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(writing)
                os.read(reading, 1)
            finally:
                os._exit(0)
        os.close(reading)
        try:
            until(lambda: len(live_sockets()) == 2)
            state = attach().state()
            assert {one["pid"] for one in state["processes"]} == {os.getpid(), child}
            assert {pool["pid"] for pool in state["pools"] if pool["name"] == "family"} == {os.getpid(), child}
        finally:
            os.close(writing)
            os.waitpid(child, 0)
        assert [path.stem for path in live_sockets()] == [str(os.getpid())]
        assert names(attach([dashboard.address]).state())


def test_who_looks_for_dashboards_removes_none_that_is_about_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """``poolkit top`` removes the sockets of killed processes. A socket does not listen yet when it is bound."""
    seen: list[Path] = []

    class Watched(socket.socket):
        def listen(self, *backlog: int) -> None:
            if self.family == socket.AF_UNIX:
                seen.extend(live_sockets())
            super().listen(*backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    with start() as dashboard:
        assert not seen
        assert [path.stem for path in live_sockets()] == [str(os.getpid())]
        assert dashboard.address
        assert {path.name for path in live_sockets()[0].parent.iterdir()} == {f"{os.getpid()}.sock"}


def test_the_threads_end_with_what_they_serve() -> None:
    dashboard = start()
    assert "poolkit-dashboard-server" in [thread.name for thread in threading.enumerate()]
    dashboard.close()
    until(lambda: "poolkit-dashboard-server" not in [thread.name for thread in threading.enumerate()])
