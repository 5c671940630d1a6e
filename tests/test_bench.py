"""The benchmarks' own machinery, and each experiment briefly."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import suite
from bench.__main__ import main
from bench.experiments import cells
from bench.experiments import redis as redis_bench
from bench.experiments.cells import OPTIONAL, PAIRS, SIZES
from bench.figures import jain, number, percentile, ratios, spread, waits_of
from bench.http_clients import Turn
from bench.main import Options, run
from bench.page import BEGIN, END, agrees, write
from bench.result import Failure, Result, Series
from bench.suite import EXPERIMENTS, measure
from bench.tables import as_markdown, as_text, tables_of, targets_table
from bench.targets import TARGETS, Target, judge
from bench.turns import TRIES, Effort, Run, together
from poolkit.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def made(**cpu: list[float]) -> Result:
    """A run of *cycle* in which each subject took so long."""
    result = Result({"python": "CPython 3.12.1", "cores": "2"}, "full", {"cycle": 60.0})
    for subject, values in cpu.items():
        for value in values:
            result.add(Series("cycle", subject.replace("_", " "), "cpu", "us", {"world": "threads"}), value)
    return result


# -- arithmetic ---------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_each_repetition() -> None:
    """The second repetition was disturbed, and it disturbed both: the ratio stays."""
    assert ratios([2.0, 20.0, 2.2], [1.0, 10.0, 1.1]) == pytest.approx([2.0, 2.0, 2.0])
    assert ratios([1.0, 2.0], [4.0]) == [0.25]
    assert ratios([0.0, 1.0], [0.0, 0.0]) == [1.0, math.inf]


def test_a_spread_is_the_median_and_both_ends() -> None:
    """An outlier moves an end and not the median."""
    found = spread([1.0, 100.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 100.0)
    assert str(found) == "2 [1, 100]"
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_percentiles_are_the_nearest_rank() -> None:
    """Of a hundred waits the 99th is p99, not the longest."""
    waits = [float(value) for value in range(1, 101)]
    assert percentile(waits, 0.99) == 99.0
    assert percentile([], 0.5) == 0.0
    assert waits_of(reversed(waits)) == {"p50": 50.0, "p99": 99.0, "p99.9": 100.0, "max": 100.0}  # type: ignore[arg-type]


def test_jains_index_is_one_for_equal_shares_and_a_part_for_one_who_has_all() -> None:
    """Two of four share everything: a half."""
    assert jain([7, 7, 7]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([3, 3, 0, 0]) == 0.5
    assert jain([0, 0]) == 1.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1.0, "1"), (1.25, "1.25"), (0.0421, "0.0421"), (123.4, "123"), (54321.0, "54,321"), (100.0, "100")],
)
def test_numbers_are_shown_with_three_digits(value: float, shown: str) -> None:
    """As a reader expects them."""
    assert number(value) == shown


# -- results and turns --------------------------------------------------------------------------------------------


def test_each_repetition_begins_with_another_subject() -> None:
    """And each subject comes once in each."""
    seen = []
    for turn in Run(Result(), Effort.FULL).turns("abc", 3):
        with turn as subject:
            seen.append(subject)
    assert seen == list("abcbcacab")


def test_a_failed_turn_adds_no_number_and_is_repeated_at_once() -> None:
    """So the numbers of a series stay in the order of the repetitions."""
    result = Result()
    bench = Run(result, Effort.FULL)
    bench.experiment = "trial"
    bench.say("4 callers")
    tries = []
    for turn in bench.turns(["poolkit", "peer"], 2):
        with turn as name:
            tries.append(name)
            bench.add(name, "rate", "1/s", len(tries))
            if len(tries) in (2, 4, 5):
                raise OSError(9, "Bad file\n  descriptor")
    assert tries == ["poolkit", "peer", "peer", "peer", "peer", "peer", "poolkit"]
    assert result.values("trial", "poolkit", "rate") == [1, 7]
    assert result.values("trial", "peer", "rate") == [3, 6]
    failed = Failure("trial", "peer", "4 callers", "OSError: [Errno 9] Bad file descriptor", ours=False, times=3)
    assert result.failures == [failed]


def test_a_subject_that_fails_each_time_is_given_up_and_the_others_go_on() -> None:
    """Its earlier numbers stay, and there is one row of :data:`TRIES` failures."""
    result = Result()
    bench = Run(result, Effort.FULL)
    bench.experiment = "trial"
    for callers in (1, 4):
        bench.say(f"{callers} callers")
        repetition = {"peer": 0, "poolkit": 0}
        for turn in bench.turns(["peer", "poolkit"], 4):
            with turn as name:
                if name == "peer" and callers == 4 and repetition[name] == 2:
                    raise ValueError("lost")
                repetition[name] += 1
                bench.add(name, "rate", "1/s", repetition[name], callers=callers)
    assert result.values("trial", "peer", "rate", callers=1) == [1, 2, 3, 4]
    assert result.values("trial", "peer", "rate", callers=4) == [1, 2]
    assert result.values("trial", "poolkit", "rate", callers=4) == [1, 2, 3, 4]
    lost = Failure("trial", "peer", "4 callers", "ValueError: lost", ours=False, times=TRIES, given_up=True)
    assert result.failures == [lost]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_of_a_turn_ends_the_run(error: BaseException) -> None:
    """Ctrl-C is no failure of a subject."""
    result = Result()
    for turn in Run(result, Effort.FULL).turns(["peer"], 1):
        with pytest.raises(type(error)), turn:
            raise error
    assert not result.failures


def test_a_process_that_failed_is_told_without_its_command_line() -> None:
    """The command line names paths of the machine, and the page is published."""
    result = Result()
    bench = Run(result, Effort.FULL)
    for turn in bench.turns(["peer"], 1):
        with turn:
            subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)
    assert [one.error for one in result.failures] == ["its process ended with status 3"]


def test_a_run_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    """Facts, seconds and each series with its conditions."""
    result = made(poolkit=[1.5, 1.25], DBUtils=[3.0, 3.5])
    result.add(Series("contended", "poolkit", "rate", "1/s", {"callers": 64, "hold_ms": 0.05}), 1234.5)
    file = tmp_path / "run.json"
    file.write_text(result.to_json())
    assert Result.read(file) == result
    assert Result.read(file).values("contended", "poolkit", "rate", callers=64, hold_ms=0.05) == [1234.5]
    assert Result.read(file).values("contended", "poolkit", "rate", callers=64) == []


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1, "series": [{"what": 1}]}'])
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, text: str) -> None:
    """Not a traceback about keys."""
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json"):
        Result.read(file)


def test_failed_turns_are_kept_in_the_file_and_a_file_without_them_is_read(tmp_path: Path) -> None:
    """Also those of an experiment that is taken from an earlier run."""
    result = made(poolkit=[1.0])
    result.failures = [
        Failure("cycle", "DBUtils", "pools for threads", "OSError: [Errno 9] Bad file descriptor", False)
    ]
    file = tmp_path / "run.json"
    file.write_text(result.to_json())
    assert Result.read(file) == result
    later = Result(effort="full", failures=[Failure("spike", "poolkit", "", "ValueError", True)])
    assert later.with_earlier(result).failures == result.failures + later.failures
    data = json.loads(result.to_json())
    del data["failures"]
    file.write_text(json.dumps(data))
    assert Result.read(file).failures == []


def test_facts_name_no_host_and_no_path() -> None:
    """What is published with the numbers says nothing about where they were measured."""
    import platform

    from bench.facts import facts

    told = json.dumps(facts())
    assert platform.node() not in told
    assert "/" not in told
    assert facts()["SQLAlchemy"][0].isdigit()


def test_an_error_in_one_of_the_threads_is_raised() -> None:
    """A pool that fails must not look like one that is slow."""

    def work(index: int) -> None:
        if index == 3:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        together(work, 5)


# -- targets ------------------------------------------------------------------------------------------------------


def test_a_missed_target_is_shown_as_missed() -> None:
    """Judged by the median of the ratios: 1.2 is met, 1.5 is not, and what was not measured is neither."""
    met = {one.target.name: one for one in judge(made(poolkit=[1.2, 1.2, 9.0], lock_and_deque=[1.0, 1.0, 1.0]))}
    missed = {one.target.name: one for one in judge(made(poolkit=[1.5], lock_and_deque=[1.0]))}
    assert met["engine / lock and deque"].word == "met"
    assert met["engine / lock and deque"].measured == spread([1.2, 1.2, 9.0])
    assert missed["engine / lock and deque"].word == "NOT met"
    assert missed["engine / DBUtils"].word == "not measured"
    shown = as_text(targets_table(list(missed.values())))
    assert "NOT met" in shown
    assert "1.5 [1.5, 1.5]" in shown


def test_against_several_pools_the_one_with_the_best_median_counts() -> None:
    """redis-py has two pools; the dearer one is the cheaper of the two in one of the repetitions."""
    own = {"redis-py BlockingConnectionPool": [2.0, 9.0, 9.0], "redis-py ConnectionPool": [8.0, 4.0, 4.0]}
    result = made(poolkit=[2.0, 2.0, 2.0], **own)
    (verdict,) = (one for one in judge(result) if one.target.name == "engine / redis-py's cheaper pool")
    assert verdict.measured == spread([0.25, 0.5, 0.5])
    assert verdict.met is False


@pytest.mark.parametrize(("relation", "met"), [("<=", True), (">=", True), (">", False), ("=", True)])
def test_a_bound_is_held_as_it_is_written(relation: str, met: bool) -> None:
    """At the bound itself."""
    target = Target("group", "name", relation, 2.0, lambda result: [2.0])
    assert judge(Result(), [target])[0].met is met


def test_every_target_can_be_measured_by_a_full_run_that_is_committed() -> None:
    """None of them asks for a series that no experiment makes (some experiments have no committed numbers yet)."""
    result = Result.read(ROOT / "docs" / "benchmarks.json")
    if result.effort != "full":
        pytest.skip("the committed numbers are of a short run")
    missing = [one.target for one in judge(result) if one.met is None and one.target.group != "overload"]
    later = (
        "engine with exporters / without", "httpx2: ", "httpx transports: ", "asyncpg acquire and release / ",
        "urllib3: ", "urllib3, ", "requests: ", "requests, ", "asyncpg, ", "valkey get and release, ", "valkey GET/s, ",
        "valkey-py, ",
    )  # fmt: skip
    assert all(one.name.startswith(later) for one in missing)
    assert len(TARGETS) > 35


# -- tables, page, command ----------------------------------------------------------------------------------------


def test_a_table_shows_median_and_ratio_with_their_spread() -> None:
    """In text and in Markdown."""
    (table, *_) = tables_of(made(lock_and_deque=[1.0, 2.0, 1.0], poolkit=[1.5, 2.0, 1.5]))["cycle"]
    assert ("poolkit", "1.5; 1.5x [1, 1.5]") in table.rows
    assert "| poolkit | 1.5; 1.5x [1, 1.5] |" in as_markdown(table).splitlines()
    assert "poolkit" in as_text(table)


def page(folder: Path) -> Path:
    file = folder / "benchmarks.md"
    file.write_text(f"# Benchmarks\n\nby hand\n\n{BEGIN}\nnumbers of last year\n{END}\n\nalso by hand\n")
    return file


def test_the_page_is_made_between_its_marks_and_checked(tmp_path: Path) -> None:
    """What was written by hand stays; another number on the page is noticed, and so is a plot that is missing."""
    file = page(tmp_path)
    result = made(lock_and_deque=[1.0], poolkit=[2.5050004])  # 2.51, but the file keeps six digits: 2.5
    write(result, tmp_path)
    text = file.read_text()
    assert text.startswith("# Benchmarks\n\nby hand\n")
    assert text.endswith("also by hand\n")
    assert "last year" not in text
    assert "NOT met" in text
    assert agrees(Result.read(tmp_path / "benchmarks.json"), tmp_path)
    assert not agrees(made(lock_and_deque=[1.0, 2.0], poolkit=[1.6, 2.5]), tmp_path)
    svg = tmp_path / "benchmarks" / "cycle.svg"
    assert "<svg" in svg.read_text()
    assert "lock and deque" in svg.read_text()
    assert not (tmp_path / "benchmarks" / "http.svg").exists()
    svg.unlink()
    assert not agrees(result, tmp_path)


def test_a_run_of_some_experiments_keeps_the_others_of_an_earlier_run(tmp_path: Path) -> None:
    earlier = made(poolkit=[1.0])
    earlier.facts, earlier.seconds = {"date": "2026-01-01", "redis": "7.0"}, {"cycle": 1.0, "start": 2.0}
    earlier.add(Series("start", "poolkit", "time", "ms"), 5.0)
    now = made(poolkit=[2.0])
    now.facts, now.seconds = {"date": "2026-02-02", "redis": "7.0"}, {"cycle": 3.0}
    one, two, page = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "benchmarks.md"
    one.write_text(earlier.to_json())
    two.write_text(now.to_json())
    page.write_text(f"{BEGIN}\n{END}\n")
    assert main(["--from", str(two), "--update", str(one), "--docs", str(tmp_path)]) == 0
    both = Result.read(tmp_path / "benchmarks.json")
    assert both.values("cycle", "poolkit", "cpu", world="threads") == [2.0]
    assert both.values("start", "poolkit", "time") == [5.0]
    assert both.seconds == {"cycle": 3.0, "start": 2.0}
    assert page.read_text().count("Measured in an earlier run: date 2026-01-01.") == 1
    earlier.effort = "quick"
    with pytest.raises(ConfigError, match="the earlier run is quick, this one is full"):
        now.with_earlier(earlier)


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing of it is overwritten."""
    (tmp_path / "benchmarks.md").write_text("all by hand")
    with pytest.raises(ConfigError, match="does not have the lines"):
        write(made(poolkit=[1.0]), tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == "all by hand"


def test_the_committed_page_is_that_of_the_committed_numbers() -> None:
    """``python -m bench --from docs/benchmarks.json --docs docs --check``."""
    docs = ROOT / "docs"
    assert run(Options(source=docs / "benchmarks.json", docs=docs, check=True)) == 0


def test_the_command_reads_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables and the targets, or the targets alone."""
    file = tmp_path / "run.json"
    file.write_text(made(lock_and_deque=[1.0], poolkit=[1.5]).to_json())
    assert main(["--from", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "Threads: µs of CPU" in shown
    assert "NOT met" in shown
    assert main(["--from", str(file), "--targets"]) == 0
    assert "Threads: µs of CPU" not in capsys.readouterr().out


def test_wrong_use_of_the_command_says_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown experiment, a file that is not there, options that do not go together."""
    assert main(["cylce"]) == 1
    assert "no such experiment: cylce; there are cycle" in capsys.readouterr().err
    assert main(["--from", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    for arguments, said in (
        (["--check"], "it needs --from and --docs"),
        (["cycle", "--from", "x.json"], "it goes without EXPERIMENT and --quick"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """*cells* at the smallest size, of httpx and psycopg alone: how many clients lose a descriptor, by subject."""
    real, opened, times = suite.measure, cells.client, dict[str, int]()

    @contextmanager
    def client(turn: Turn) -> Iterator[Callable[[], object]]:
        with opened(turn) as request:
            times[turn.name] = times.get(turn.name, 0) - 1
            yield request if times[turn.name] < 0 else lambda: os.read(-1, 1)

    monkeypatch.setattr(suite, "measure", lambda names, effort, say: real(names, Effort.SMOKE, say))
    monkeypatch.setattr(cells, "PAIRS", {name: PAIRS[name] for name in ("httpx", "psycopg")})
    monkeypatch.setattr(cells, "client", client)
    return times


@pytest.mark.timeout(120)
@pytest.mark.parametrize("failing", [1, TRIES])
def test_a_run_whose_peer_fails_keeps_all_other_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], breaking: dict[str, int], failing: int
) -> None:
    """The turn is repeated; a peer that fails each time loses that measurement and no other one."""
    breaking["httpx"] = failing
    file = tmp_path / "run.json"
    page(tmp_path)
    assert main(["cells", "--json", str(file), "--docs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    result = Result.read(file)
    place = ("httpx", "httpx, 1 callers on 1 connections")
    (failure,) = (one for one in result.failures if (one.subject, one.during) == place)  # httpx's pool may add its own
    assert (failure.times, failure.given_up, failure.ours) == (failing, failing == TRIES, False)
    first, second = ({"adapter": "httpx", "callers": callers, "connections": 1} for callers in (1, 4))
    assert bool(result.values("cells", "httpx", "rate", **first)) is (failing < TRIES)
    assert result.values("cells", "httpx -> poolkit", "rate", **first)
    assert result.values("cells", "httpx", "rate", **second)
    assert result.values("cells", "psycopg_pool", "rate", **{**first, "adapter": "psycopg"})
    for shown in (said.out, (tmp_path / "benchmarks.md").read_text()):
        assert f"{failing}, {'given up' if failing == TRIES else 'repeated'}" in shown
        assert "OSError: [Errno 9] Bad file descriptor" in shown
    assert "Traceback" in said.err


@pytest.mark.timeout(120)
def test_a_failure_of_poolkit_fails_the_run_after_all_numbers_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], breaking: dict[str, int]
) -> None:
    """Even if the repeated turn succeeds."""
    breaking["httpx -> poolkit"] = 1
    file = tmp_path / "run.json"
    assert main(["cells", "--json", str(file)]) == 1
    assert "1, repeated  OSError: [Errno 9] Bad file descriptor" in capsys.readouterr().err
    result = Result.read(file)
    assert [(one.subject, one.times, one.ours) for one in result.failures] == [("httpx -> poolkit", 1, True)]
    for name in ("httpx", "httpx -> poolkit"):
        assert result.values("cells", name, "rate", adapter="httpx", callers=1, connections=1)
    assert main(["--from", str(file)]) == 0


def test_an_experiment_that_cannot_begin_does_not_cost_the_others_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not start, for example; the run has failed, and its file has the rest."""

    def refuse(**settings: Any) -> Any:
        raise RuntimeError("no port is free")

    real = suite.measure
    monkeypatch.setattr(suite, "measure", lambda names, effort, say: real(names, Effort.SMOKE, say))
    monkeypatch.setattr(redis_bench, "RedisServer", refuse)
    file = tmp_path / "run.json"
    assert main(["redis", "start", "--json", str(file)]) == 1
    assert "the experiment" in capsys.readouterr().err
    result = Result.read(file)
    assert [(one.experiment, one.subject, one.error) for one in result.failures] == [
        ("redis", "", "RuntimeError: no port is free")
    ]
    assert result.values("start", "import poolkit", "time")


# -- the experiments ----------------------------------------------------------------------------------------------

MEASURED = {
    # experiment: some of what it has to bring
    "cycle": [("poolkit", "cpu"), ("httpcore -> poolkit", "cpu"), ("asyncpg", "cpu"), ("poolkit, a listener", "cpu")],
    "contended": [("poolkit", "rate"), ("poolkit", "jain"), ("DBUtils", "wait p99.9"), ("asyncpg", "most/least")],
    "cells": [("SQLAlchemy QueuePool", "rate"), ("httpx -> poolkit", "latency p99"), ("redis-py -> poolkit", "opened"),
              ("asyncpg -> poolkit", "rate"),
              *([("urllib3 -> poolkit", "rate"), ("requests", "latency p99")] if find_spec("requests") else []),
              *([("valkey-py -> poolkit", "rate")] if find_spec("valkey") else [])],
    "overload": [("poolkit", "rate"), ("newest first", "jain"), ("redis-py BlockingConnectionPool", "answered")],
    "spike": [("poolkit", "opened"), ("psycopg_pool", "wait p99"), ("poolkit", "all served")],
    "scale": [("poolkit", "operation"), ("psycopg_pool", "threads of 100 pools")],
    "sql": [
        ("SQLAlchemy -> poolkit, checks", "rate"), ("psycopg -> poolkit", "cycle"), ("asyncpg", "latency p99"),
        ("asyncpg -> poolkit", "cycle"),
    ],
    "redis": [("redis-py -> poolkit", "rate"), ("redis-py ConnectionPool", "cycle"),
              *([("valkey-py -> poolkit", "rate"), ("valkey-py ConnectionPool", "cycle")]
                if find_spec("valkey") else [])],
    "http": [("httpx -> poolkit", "rate"), ("aiohttp", "connections"), ("httpx", "total"),
             *([("urllib3 -> poolkit", "rate"), ("requests -> poolkit", "cpu")] if find_spec("requests") else []),
             *([("httpx2 -> poolkit", "rate"), ("httpx2", "cpu")] if find_spec("httpx2") else [])],
    "exporters": [("poolkit, exporters", "cpu"), ("poolkit", "cpu"), ("poolkit, use_histogram", "cpu")],
    "start": [("import poolkit", "modules")],
}  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_measures_what_it_says(name: str) -> None:
    """At the smallest size, on real servers; every number is one."""
    result = measure([name], Effort.SMOKE)
    for subject, metric in MEASURED[name]:
        assert any(result.where(name, subject, metric)), f"{name}: no {metric} of {subject}"
    assert all(math.isfinite(value) for one in result.series for value in one.values)
    assert not any(sum(one.values) for one in result.where(name, metric="failed") if "poolkit" in one.subject)
    assert not [one for one in result.failures if one.ours]
    assert set(result.seconds) == {name}
    if name == "cells":
        adapters = {one.params["adapter"] for one in result.where("cells", metric="rate")}
        assert all(adapter in adapters or adapter.startswith(OPTIONAL) for adapter in PAIRS)
        for adapter in adapters:
            _, _, *pools = PAIRS[str(adapter)]
            sizes = [{"adapter": adapter, "callers": callers, "connections": number} for callers, number in SIZES[:2]]
            assert all(result.values("cells", pool, "latency p99", **size) for pool in pools for size in sizes)
    if name == "start":
        foreign = [one.values for one in result.where("start", "import poolkit", "modules from elsewhere")]
        assert foreign == [[0.0]]
