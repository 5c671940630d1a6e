"""Each cell of ``docs/guarantees.md``: the promise holds for this adapter, with the one line or with settings."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from poolkit import PoolConfigWarning
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.guarantees.rows import CONFIG, LINE, ROWS, Row
from tests.guarantees.subjects import SUBJECTS, Servers, Subject, run

CELLS = [
    pytest.param(row, subject, mode, id=f"{row.name}-{subject.name}-{mode.replace(' ', '-')}")
    for row in ROWS
    for subject in SUBJECTS
    for mode in (LINE, CONFIG)
    if row.reason(subject, mode) is None
]


@pytest.fixture
def servers(
    postgres: PostgresServer, redis_server: RedisServer, valkey_server: RedisServer, http_server: HTTPServer,
    https_server: HTTPServer,
) -> Servers:  # fmt: skip
    return Servers(postgres, redis_server, valkey_server, http_server, https_server)


async def scenario(row: Row, subject: Subject, mode: str) -> None:
    settings = dict(row.settings) if mode == CONFIG else {}
    if row.handshake:
        subject.need_handshake()
    try:
        await row.scenario(subject, settings)
    finally:
        subject.proxy.swallow = False
        subject.proxy.mode = "pass"
        if hasattr(subject, "engine"):  # else it could not be opened
            await subject.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("row", "kind", "mode"), CELLS)
def test_the_promise_holds(row: Row, kind: type[Subject], mode: str, servers: Servers) -> None:
    if kind.module:
        pytest.importorskip(kind.module)
    subject = kind(servers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoolConfigWarning)
            run(subject, scenario(row, subject, mode))
    finally:
        subject.stop()


def test_the_page_shows_what_is_tested() -> None:
    script = Path(__file__).resolve().parents[2] / "docs" / "make_guarantees.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
