"""A pool on a real server, sockets in a directory of the test's own, and a browser where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkit import Pool
from poolkit.dashboard import _recorder
from poolkit.testing.servers import PostgresServer
from tests.processes.programs import ROOT, environment
from tests.support.waiting import until

from .service import Postgres

TOKEN = "only-for-this-test-0123"


@pytest.fixture(autouse=True)
def _recorders_end_with_their_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A recorder that outlived its test, if only until its thread looks, would listen to the pools of later tests."""
    made: list[_recorder.Recorder] = []
    real = _recorder.Recorder

    def make(*args: Any, **kwargs: Any) -> _recorder.Recorder:
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(_recorder, "_shared", None)
    monkeypatch.setattr(_recorder, "Recorder", make)
    yield
    for recorder in made:
        recorder.close()


@pytest.fixture
def orders(postgres: PostgresServer) -> Iterator[Pool[psycopg.Connection[Any]]]:
    """Two connections to PostgreSQL at most; places are noted."""
    with Pool(Postgres(postgres.url), max_size=2, name="orders-db", debug=True) as pool:
        yield pool


@contextmanager
def exhausted(pool: Pool[Any]) -> Iterator[None]:
    """Both connections of a pool of two are on lease, and the thread "patient" waits for one."""
    with pool.lease(), pool.lease():
        thread = threading.Thread(target=lambda: pool.lease(20).close(), name="patient")
        thread.start()
        until(lambda: pool.stats().waiting == 1)
        yield
    thread.join()


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where sockets are in this test, for this process and its children: a short path, as Unix sockets need."""
    tmp_path_factory.getbasetemp()  # pytest's own is not to be made in here
    directory = tempfile.mkdtemp(prefix="pk-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", directory)
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield Path(directory)
    monkeypatch.undo()
    shutil.rmtree(directory)


class Service:
    """The program service.py in a process of its own."""

    def __init__(self, url: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.dashboard.service", url, *options], cwd=ROOT, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        try:
            self.address = self.process.stdout.readline().strip()
            assert self.address
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise

    @property
    def pid(self) -> str:
        return str(self.process.pid)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.communicate(timeout=20)


@pytest.fixture
def service(postgres: PostgresServer, places: Path) -> Iterator[Service]:
    one = Service(postgres.url, "--actions")
    yield one
    one.end()
