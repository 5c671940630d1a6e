"""``python -m bench.fleet``, for a short time; and that it finds what it is for."""

from __future__ import annotations

import pytest

from bench.fleet import __main__ as command
from bench.fleet import run
from bench.fleet.run import Report, hold
from tests.fleet.kit import Fleet

pytestmark = pytest.mark.timeout(180)


def test_a_short_run_keeps_the_limit_through_a_kill() -> None:
    """Three processes under a limit of four, one of them killed and replaced."""
    told: list[str] = []
    report = hold(store="redis", processes=3, limit=4, seconds=0.5, seed=4, say=told.append)
    assert not report.failures, report.text()
    assert report.troubles == {"kill some": 1}
    assert report.started == 4
    assert 0 < report.full <= report.samples
    assert report.most == 4
    assert len(told) == 2


def test_a_limit_that_was_exceeded_ends_the_run_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sample: the members are told more than they are judged by."""
    monkeypatch.setattr(
        run, "Fleet", lambda *args, **settings: Fleet(*args, **{**settings, "limit": settings["limit"] + 2})
    )
    monkeypatch.setattr("sys.argv", ["fleet", "--processes", "2", "--limit", "1", "--seconds", "60", "--store", "file"])
    assert command.main() == 1
    assert "FAILED: 3 connections under a limit of 1" in capsys.readouterr().out


def test_a_run_in_which_the_limit_was_never_used_has_tested_nothing() -> None:
    """And one in which somebody got nothing is a failure, too."""
    assert Report("redis", 4, 1, samples=100, most=3).failures == ["the limit was never used: nothing was tested"]
    assert not Report("redis", 4, 1, samples=100, most=4, full=1).failures
    assert "FAILED: nothing" in Report("redis", 4, 1, most=4, full=1, starved=["nothing"]).text()
