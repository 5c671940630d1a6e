"""``poolkit top`` and ``poolkit dashboard`` from a terminal, against services in other processes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from poolkit import Pool
from poolkit.cli import main
from poolkit.cli.top._frame import frame, seconds
from poolkit.dashboard import start
from poolkit.testing import FakeConnector
from tests.processes.programs import ROOT, environment
from tests.support.waiting import PATIENCE, until

from .conftest import TOKEN, Service, exhausted

pytest.importorskip("click")
pytest.importorskip("rich")
pytestmark = [
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here"),
    pytest.mark.timeout(90),  # each starts interpreters, one after the other
]


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(places: Path) -> None:
    """Nothing of these tests is seen by others."""


def test_top_once_prints_a_frame_of_all_services_or_their_state_as_json(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once"]) == 0
    text = capsys.readouterr().out
    assert f"service.py ({service.pid})" in text
    assert re.search(r"orders-db\s+█{3}·{7} 1/3\s+0\s+0", text)
    assert "connection ready" in text
    assert main(["top", service.pid, "--once", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert [(pool["name"], pool["in_use"], pool["pid"]) for pool in state["pools"]] == [
        ("orders-db", 1, int(service.pid))
    ]


def test_a_frame_names_alerts_causes_holders_and_breakers_within_80_columns(orders: Pool[Any]) -> None:
    import rich.console

    with exhausted(orders), start(port=0, service="shop") as dashboard:
        state = httpx.get(f"{dashboard.address}/api/state").json()
    state["alerts"] = [{"severity": "critical", "pool": "orders-db", "pid": 1, "text": "3 callers got no connection",
                        "at": state["at"] - 90}]  # fmt: skip
    for pool in state["pools"]:
        pool["endpoints"] = [{"key": None, "breaker": "open", "last_connect_error": "ConnectionRefusedError: no"}]
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(frame(state, height=30))
    text = console.export_text()
    assert "critical: orders-db: 3 callers got no connection (for 90.0 s)" in text
    assert re.search(r"^poolkit top  \d\d:\d\d:\d\d  shop \(\d+\)$", text, re.MULTILINE)
    assert "/s: leases; mean, p99: waits (10 s)" in text
    assert re.search(r"orders-db +█{10} 2/2 +0 +1 ", text)
    assert "orders-db: too small: all 2 connections are in use" in text
    assert re.search(r"held \d+.* by MainThread at ", text)
    assert "breaker to the server open: ConnectionRefusedError" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00004, "0.0 ms"),
        (0.0123, "12.3 ms"),
        (0.4567, "457 ms"),
        (1.26, "1.3 s"),
        (125, "2 min"),
        (7200, "2.0 h"),
    ],
)
def test_a_time_is_short(value: float, text: str) -> None:
    assert seconds(value) == text


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "poolkit", *arguments], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="100", LINES="30"), start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._own], [], [], 0.1)[0]:
                self.text += os.read(self._own, 65536).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def end(self) -> int:
        """The exit code; who does not read what is written would keep it from ending."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self._own], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self._own, 65536).decode(errors="replace")
                except OSError:  # its end of the terminal is closed
                    break
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    made: list[Terminal] = []

    class Made(Terminal):
        def __init__(self, *arguments: str) -> None:
            super().__init__(*arguments)
            made.append(self)

    yield Made
    for one in made:
        one.close()


@pytest.mark.parametrize("way", ["q", "Ctrl-C"])
def test_top_follows_the_service_and_ends(service: Service, terminal: type[Terminal], way: str) -> None:
    top = terminal("top", service.pid, "--interval", "50ms")
    top.wait_for("orders-db")
    if way == "q":
        service.end()
        top.wait_for("nothing listens there; trying again")
        top.press("xq")
    else:
        top.process.send_signal(signal.SIGINT)
    assert top.end() == 0
    assert "Traceback" not in top.text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_top_where_the_output_cannot_show_every_character(service: Service, encoding: str) -> None:
    with Pool(FakeConnector(), name="数据", max_size=3) as pool, pool.lease(), start():
        top = subprocess.run(
            [sys.executable, "-m", "poolkit", "top", "--once"], cwd=ROOT, capture_output=True, timeout=60, check=False,
            env=environment(PYTHONIOENCODING=encoding, COLUMNS="160"),
        )  # fmt: skip
    text = top.stdout.decode(encoding)
    assert top.returncode == 0, top.stderr
    assert re.search(r"orders-db\s+\d+ ###\.{7} 1/3\s+0\s+0", text)
    assert re.search(r"\?\?\s+\d+ ###\.{7} 1/3", text)


def test_top_as_json_is_a_line_for_each_look(service: Service) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "poolkit", "top", service.pid, "--json", "--interval", "10ms"], cwd=ROOT,
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stdout is not None
        states = [json.loads(command.stdout.readline()) for _ in range(3)]
        assert states[0]["at"] < states[1]["at"] < states[2]["at"]
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=20)
        assert command.returncode == 0


WRONG: list[tuple[list[str], int, str]] = [
    (["top", "--once"], 1, "no process of this user publishes its pools: call poolkit.dashboard.start() in a service"),
    (["top", "999999999", "--once"], 1, "process 999999999: no such process"),
    (["top", "http://127.0.0.1:9/", "--once"], 1, "http://127.0.0.1:9/: nothing listens there"),
    (["top", "http://user:secret@127.0.0.1:9/", "--once"], 1, "http://user:***@127.0.0.1:9/: nothing listens there"),
    (["top", "ftp://here", "--once"], 1, "must be http://HOST:PORT/PATH"),
    (["top", "no-such-socket", "--once"], 1, "no-such-socket: nothing listens there"),
    (["top", "--interval", "0s"], 2, "must be a time above 0"),
    (["dashboard"], 1, "no process of this user publishes its pools"),
    (["dashboard", "--port", "x"], 2, "'x' is not a valid integer"),
    (["dashboard", "--token-file", "x"], 2, "--token-file needs --actions"),
    (["dashboard", "--actions", "--token-file", "no-such-file"], 1, "--token-file no-such-file: cannot be read"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_use_is_one_clear_line_and_the_right_code(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said
    assert "secret" not in said


def test_top_wants_a_terminal(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", service.pid]) == 2
    assert "the output is not a terminal: use --once or --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "command", "extra"), [("uvicorn", "dashboard", "dashboard"), ("rich", "top", "cli")]
)
def test_without_its_library_a_command_names_the_extra(
    module: str, command: str, extra: str, service: Service, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([command, service.pid]) == 2
    assert capsys.readouterr().err == f"poolkit: poolkit {command} needs {module}: pip install 'poolkit[{extra}]'\n"


def test_a_port_in_use_is_named(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["dashboard", service.pid, "--port", str(port)]) == 1
    assert f"port={port}: cannot listen on 127.0.0.1: Address already in use" in capsys.readouterr().err


def test_actions_are_not_for_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    with start(port=0) as dashboard:
        assert main(["dashboard", dashboard.address, "--actions"]) == 2
    assert "for a URL use the actions of its own page" in capsys.readouterr().err


def test_completion_knows_the_commands_and_the_services(service: Service) -> None:
    def completed(*words: str) -> str:
        asked = environment(COMP_WORDS=" ".join(["poolkit", *words]), COMP_CWORD=str(len(words)),
                            _POOLKIT_COMPLETE="bash_complete")  # fmt: skip
        return subprocess.run(
            [Path(sys.executable).parent / "poolkit"], env=asked, capture_output=True, text=True, timeout=25, check=True
        ).stdout

    assert {"plain,dashboard", "plain,top"} <= set(completed("").split())
    assert f"plain,{service.pid}" in completed("top", service.pid[:2])
    assert "--token-file" in completed("dashboard", "--tok")


@pytest.fixture
def page(service: Service, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``poolkit dashboard`` on a free port, with actions."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    with subprocess.Popen(
        [sys.executable, "-m", "poolkit", "dashboard", service.pid, "--port", "0", "--actions", "--token-file", token],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stderr is not None
        said = command.stderr.readline()
        found = re.search(r"pools at (http://127\.0\.0\.1:\d+/) ", said)
        assert found, said + command.stderr.read()
        yield found[1], command
        command.kill()


def test_the_dashboard_shows_and_steers_another_process(
    page: tuple[str, subprocess.Popen[str]], service: Service
) -> None:
    url, command = page
    until(lambda: _answers(url))
    assert "<title>Pools" in httpx.get(url).text
    (pool,) = httpx.get(url + "api/state").json()["pools"]
    assert (pool["name"], pool["pid"]) == ("orders-db", int(service.pid))
    until(lambda: list(httpx.get(url + "api/history").json()["pools"]) == [pool["id"]])
    path = f"{url}api/pools/{pool['id']}/suspend"
    assert httpx.post(path, json={}).status_code == 401
    assert httpx.get(url + "api/state").json()["pools"][0]["phase"] == "open"
    done = httpx.post(path, json={}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert done.json() == {"done": "orders-db: suspended"}
    assert httpx.get(url + "api/state").json()["pools"][0]["phase"] == "suspended"
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
    service.end()
    gone = httpx.get(url + "api/state")
    assert (gone.status_code, gone.json()["error"]) == (502, f"process {service.pid}: nothing listens there")
    command.send_signal(signal.SIGINT)
    assert command.wait(20) == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_a_new_token_is_printed_and_wanted(service: Service) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "poolkit", "dashboard", service.pid, "--port", "0", "--actions"], cwd=ROOT,
        env=environment(), stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stderr is not None
        command.stderr.readline()
        said = command.stderr.readline()
        command.kill()
    assert re.fullmatch(r"token for actions: [\w-]{24}\n", said)


def test_a_mounted_dashboard_is_watched_by_its_url(capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(FakeConnector(), name="by-url"), start(port=0) as dashboard:
        assert main(["top", dashboard.address, "--once", "--json"]) == 0
    assert "by-url" in [pool["name"] for pool in json.loads(capsys.readouterr().out)["pools"]]
