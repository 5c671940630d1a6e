"""The handlers of a forked child: their order, and how long they are stored."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest

from poolkit.runtimes import fork
from poolkit.runtimes.fork import Stage, after_fork, restart_after_fork


class Thing:
    """An object that has something to do in a child."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def restart(self) -> None:
        self.seen.append(self.name)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what the handlers of this test record. The handlers of the process are removed meanwhile."""
    monkeypatch.setattr(fork, "_handlers", {stage: [] for stage in Stage})
    monkeypatch.setattr(fork, "_restarts", {stage: weakref.WeakKeyDictionary() for stage in Stage})
    return []


def test_a_stage_comes_after_those_before_it_whatever_was_imported_first(seen: list[str]) -> None:
    watcher = Thing("watcher", seen)
    restart_after_fork(Stage.WATCHERS, watcher, Thing.restart)
    for stage in reversed(Stage):
        after_fork(stage, lambda stage=stage: seen.append(stage.name))  # type: ignore[misc]
    fork._in_child()
    assert seen == ["RUNTIME", "POOLS", "CLUSTERS", "ADAPTERS", "WATCHERS", "watcher"]


def test_a_handler_that_fails_keeps_the_others_from_nothing(seen: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no")

    after_fork(Stage.POOLS, fail)
    after_fork(Stage.POOLS, lambda: seen.append("next"))
    fork._in_child()
    assert seen == ["next"]
    assert "failed in the forked child" in caplog.text


def test_what_is_done_for_an_object_ends_with_it(seen: list[str]) -> None:
    """``os.register_at_fork`` would remember each exporter that was ever made."""
    kept, dropped = Thing("kept", seen), Thing("dropped", seen)
    for thing in (kept, dropped):
        restart_after_fork(Stage.WATCHERS, thing, Thing.restart)
    del thing, dropped
    gc.collect()
    fork._in_child()
    assert seen == ["kept"]
    assert len(fork._restarts[Stage.WATCHERS]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_real_child_runs_them() -> None:
    program = (
        "import os\n"
        "from poolkit.runtimes.fork import Stage, after_fork\n"
        "seen = []\n"
        "after_fork(Stage.RUNTIME, lambda: seen.append('here'))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(17 if seen == ['here'] else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17\n"
        "assert not seen\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
