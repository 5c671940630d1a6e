"""All pools in plain words, on demand and on a signal; pools that are made again and again."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

import poolkit
from poolkit import ConfigError, Pool, cluster
from poolkit import _misuse as guard
from poolkit.policies.churn import Churn
from poolkit.testing import FakeConnection, FakeConnector
from tests.support.waiting import PATIENCE


@pytest.fixture
def full() -> Iterator[Pool[FakeConnection]]:
    """A pool of one, leased, with somebody waiting."""
    with Pool(FakeConnector(), max_size=1, debug=True, name="dumped-db") as pool:
        held = pool.lease()
        thread = threading.Thread(target=lambda: pool.lease(10).close(), name="patient")
        thread.start()
        while not pool.stats().waiting:
            time.sleep(0.001)
        yield pool
        held.close()
        thread.join()


def test_a_dump_names_every_holder_and_every_waiter(full: Pool[FakeConnection]) -> None:
    text = poolkit.dump()
    assert f"in process {os.getpid()}" in text.splitlines()[0]
    part = text[text.index("dumped-db (Pool, open): in use 1/1") :]
    assert "; diagnosis: " in part.splitlines()[0]
    assert part.splitlines()[1].startswith("  lease of connection 1: 0.")
    assert f"by MainThread at {__file__}:" in part.splitlines()[1]
    assert "s, patient, 0 ahead" in part.splitlines()[2]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_a_signal_dumps_even_in_the_middle_of_a_critical_section(full: Pool[FakeConnection]) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    file = io.StringIO()
    undo = poolkit.dump_on_signal(file=file)
    try:
        with full._gate.lock:  # as if the signal came there
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            assert file.getvalue() == ""
        deadline = time.monotonic() + PATIENCE
        while "dumped-db" not in file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert heard == [signal.SIGUSR1]  # the handler before is called, too
    finally:
        undo()
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_cannot_be_handled_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"dump_on_signal\(9\): .*; call it in the main thread"):
        poolkit.dump_on_signal(signal.SIGKILL)


def test_churn_is_told_once_for_each_place_and_only_when_fast() -> None:
    churn = Churn(limit=3, window=10.0)
    assert [churn.made(("a.py", 1), at) for at in (0.0, 1.0, 2.0, 3.0, 4.0)] == [False, False, True, False, False]
    assert not any(churn.made(("b.py", 1), at) for at in (0.0, 9.0, 18.0, 27.0))


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="poolkit.churn")
    return caplog


def test_many_pools_from_one_place_are_named_with_it(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_misuse", Churn())
    for _ in range(40):
        Pool(FakeConnector(), name="per-request").close()
    (record,) = heard.records
    assert f"per-request: 20 pools were created at {__file__}:" in record.getMessage()
    assert "create one pool and share it" in record.getMessage()


def test_the_pools_of_one_cluster_are_no_mistake_however_many(
    heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_misuse", Churn())
    nodes = [cluster.Node(f"n{number}", f"10.0.0.{number}:1") for number in range(30)]
    cluster.Cluster(lambda node: FakeConnector(), nodes).close()
    assert not heard.records


def test_a_pool_that_is_forgotten_while_connected_is_named_with_the_place_where_it_was_made(
    heard: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(FakeConnector(), name="forgotten")
    with pool.lease():
        pass
    del pool
    deadline = time.monotonic() + PATIENCE
    while not (found := [r for r in heard.records if "garbage-collected with" in r.getMessage()]):
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the thread that connected may not have let go of it yet
        gc.collect()
        Pool(FakeConnector()).close()  # the next pool logs what the finalizer must not log
    (record,) = found
    assert f"forgotten: this pool was garbage-collected with 1 open connection; it was created at {__file__}:" in (
        record.getMessage()
    )


def test_a_pool_that_was_closed_or_never_used_is_not_named(heard: pytest.LogCaptureFixture) -> None:
    pool = Pool(FakeConnector(), name="closed-or-unused")
    with pool.lease():
        pass
    pool.close()
    del pool
    Pool(FakeConnector(), name="closed-or-unused")
    gc.collect()
    Pool(FakeConnector()).close()
    assert not [r for r in heard.records if "closed-or-unused" in r.getMessage()]
