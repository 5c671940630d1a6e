"""Pools at module level under servers that fork or start workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer, free_port
from tests.processes.programs import ROOT, environment
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")


@pytest.fixture
def urls(redis_server: RedisServer, postgres: PostgresServer, http_server: HTTPServer) -> dict[str, str]:
    return {"REDIS_URL": redis_server.url, "PG_URL": postgres.url, "HTTP_URL": http_server.url}


@contextmanager
def serving(*arguments: str, urls: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own; it must end when asked, and silently on stdout."""
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, env=environment(**urls), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield server
            server.send_signal(signal.SIGTERM)
            server.wait(15)
        except BaseException:
            output.seek(0)
            sys.stdout.write(output.read().decode(errors="replace")[-5000:])
            raise
        finally:
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            server.wait()
        output.seek(0)
        assert "Traceback" not in output.read().decode(errors="replace")


def until_listening(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)


def answers(port: int) -> dict[int, list[Any]]:
    """Answers by worker, until two workers have given five each."""
    found: dict[int, list[Any]] = defaultdict(list)
    deadline = time.monotonic() + PATIENCE
    while len(found) < 2 or min(map(len, found.values())) < 5:
        assert time.monotonic() < deadline, f"workers seen: {sorted(found)}"
        answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=10, trust_env=False).raise_for_status().json()
        found[answer["mine"][0]].append(answer)
    return found


def connections(found: dict[int, list[Any]]) -> list[list[set[str]]]:
    """For each worker and each of its pools, the connections that it used."""
    return [
        [set(each) for each in zip(*(answer["mine"][1:] for answer in some), strict=True)] for some in found.values()
    ]


def test_gunicorn_preload(urls: dict[str, str]) -> None:
    pytest.importorskip("gunicorn")
    port = free_port()
    arguments = (
        "gunicorn",
        "--preload",
        "--workers",
        "2",
        "--bind",
        f"127.0.0.1:{port}",
        "tests.processes.wsgi_app:app",
    )
    with serving(*arguments, urls=urls):
        until_listening(port)
        found = answers(port)
    one, other = connections(found)
    for mine, theirs, parents in zip(one, other, next(iter(found.values()))[0]["parents"][1:], strict=True):
        assert len(mine) == len(theirs) == 1  # one request at a time: one connection, again and again
        assert not mine & theirs
        assert parents not in mine | theirs


def test_uvicorn_workers(urls: dict[str, str]) -> None:
    pytest.importorskip("uvicorn")
    port = free_port()
    arguments = (
        "uvicorn",
        "--workers",
        "2",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "tests.processes.asgi_app:app",
    )
    with serving(*arguments, urls=urls):
        until_listening(port)
        one, other = connections(answers(port))
    for mine, theirs in zip(one, other, strict=True):
        assert len(mine) == len(theirs) == 1
        assert not mine & theirs


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_celery_prefork(urls: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("celery")
    control = tmp_path / "control"
    control.mkdir()
    urls = {**urls, "CELERY_FOLDER": str(tmp_path)}
    arguments = (
        "celery", "-A", "tests.processes.celery_app", "worker", "--pool", "prefork", "--concurrency", "2",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING",
    )  # fmt: skip
    script = (
        "import json\nfrom tests.processes.celery_app import work\n"
        "results = [work.delay(number) for number in range(12)]\n"
        "print(json.dumps([result.get(timeout=25, interval=0.05) for result in results]))\n"
    )
    with serving(*arguments, urls={**urls, "CELERY_ROLE": "worker"}):
        client = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment(**urls), timeout=40, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert client.returncode == 0, client.stderr
    done = json.loads(client.stdout)
    assert [answer["number"] for answer in done] == list(range(12))
    parents = done[0]["parents"]
    used: dict[int, set[str]] = defaultdict(set)
    for answer in done:
        process, *mine = answer["mine"]
        assert process != parents[0]
        assert not set(mine) & set(parents[1:])
        used[process].update(mine)
    assert all(len(mine) == 2 for mine in used.values())  # one of each pool, again and again
