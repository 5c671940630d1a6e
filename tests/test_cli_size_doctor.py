"""``poolkit size``, ``doctor`` and ``completion``: answers, exit codes, and messages for wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkit import PoolConfig
from poolkit.cli import main
from poolkit.cli.doctor._checks import Limits, of_server, of_times
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_size_answers_in_words_and_with_a_chart(run: Run) -> None:
    code, out, _ = run("size", "--rate", "500/s", "--latency", "20ms")
    assert code == 0
    assert out.startswith("max_size=")
    assert "On average 10.0 connections are in use (500 leases/s of 20.00 ms each: Little's law)." in out
    assert sum("<- recommended" in line for line in out.splitlines()) == 1


def test_size_warns_when_the_processes_exceed_the_servers_limit(run: Run) -> None:
    code, out, _ = run("size", "--rate", "30000/min", "--latency", "0.02s", "--processes", "8", "--server-max", "20")
    assert code == 1
    assert "Warning: 8 x " in out
    assert "exceed the server's limit of 20" in out


def test_size_as_json(run: Run) -> None:
    code, out, _ = run("size", "--rate", "500", "--latency", "20ms", "--processes", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["rate"], found["hold"], found["processes"], found["load"]) == (500, 0.02, 2, 5)
    assert all(len(pair) == 2 for pair in found["wait"])


@pytest.mark.timeout(180)  # the first import of matplotlib in an environment looks through all fonts
def test_size_draws(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, _, _ = run("size", "--rate", "500/s", "--latency", "20ms", "--server-max", "100", "--plot",
                     str(tmp_path / "wait.png"))  # fmt: skip
    assert code == 0
    assert (tmp_path / "wait.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("size", "--rate", "5/s", "--latency", "20ms", "--plot", str(tmp_path / "no" / "wait.png"))
    assert (code, "cannot be written" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rate", "fast", "--latency", "20ms"], "'fast': must be a rate above 0, such as 500/s"),
        (["--rate", "5/fortnight", "--latency", "20ms"], "must be a rate above 0"),
        (["--rate", "5/s", "--latency", "20"], "'20': must be a time above 0 with its unit, such as 20ms"),
        (["--rate", "5/s", "--latency", "0ms"], "must be a time above 0"),
        (["--rate", "5/s"], "Missing option '--latency'"),
        (["--rate", "5/s", "--latency", "20ms", "--processes", "0"], "'--processes': 0 is not in the range x>=1"),
        (["--rate", "5/s", "--latency", "20ms", "--server-max", "0"], "'--server-max': 0 is not in the range x>=1"),
        (["--rate", "5/s", "--latency", "20ms", "--headroom", "0"], "'--headroom': 0"),
    ],
)
def test_size_with_wrong_input_says_what_would_be_right(run: Run, arguments: list[str], text: str) -> None:
    code, out, err = run("size", *arguments)
    assert (code, out) == (2, "")
    assert text in err


def test_size_with_more_processes_than_connections(run: Run) -> None:
    code, out, _ = run("size", "--rate", "5/s", "--latency", "20ms", "--processes", "8", "--server-max", "4")
    assert code == 1
    assert "exceed the server's limit of 4; not even one connection for each process fits: use fewer processes" in out
    assert "max_size=0" not in out


FILE = """
[default]
acquire_timeout = 5
[orders-db]
max_size = 60
[cache]
max_size = 20
idle_timeout = "none"
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("POOLKIT_ORDERS_DB_MIN_SIZE", "3")
    path = tmp_path / "pools.toml"
    path.write_text(FILE)
    return str(path)


def test_doctor_shows_every_setting_with_its_source(run: Run, settings: str) -> None:
    code, out, _ = run("doctor", settings, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found["pools"]) == {"orders-db", "cache"}
    orders = found["pools"]["orders-db"]
    assert orders["max_size"] == {"value": 60, "source": f"{settings} [orders-db]"}
    assert orders["acquire_timeout"] == {"value": 5, "source": f"{settings} [default]"}
    assert orders["min_size"] == {"value": 3, "source": "POOLKIT_ORDERS_DB_MIN_SIZE"}
    assert orders["order"] == {"value": "lifo", "source": "default"}
    assert orders["backoff"]["value"] == {"base": 0.1, "cap": 5.0}
    assert found["findings"] == []
    _, out, _ = run("doctor", settings, "--pool", "cache")
    assert "orders-db" not in out.replace(settings, "")
    assert "no problems found" in out


def test_doctor_checks_the_order_of_the_clocks(run: Run, settings: str) -> None:
    code, out, _ = run("doctor", settings, "--pool", "cache", "--request-timeout", "4s", "--deadline", "3s")
    assert code == 0
    assert "warning: cache: acquire_timeout=5 is not below the request timeout (4 s)" in out
    assert "warning: cache: request timeout=4 is not below the deadline of the service (3 s)" in out


def test_doctor_asks_postgresql_for_its_limits(run: Run, settings: str, postgres: PostgresServer) -> None:
    code, out, _ = run("doctor", settings, "--pool", "orders-db", "--url", postgres.url, "--processes", "2", "--json")
    found = json.loads(out)
    limits = found["server"]["limits"]
    assert code == 1
    assert (limits["server"], limits["connections"], limits["reserved"]) == ("PostgreSQL", 100, 3)
    (finding,) = found["findings"]
    assert finding["level"] == "error"
    assert finding["text"].startswith(
        "2 x max_size=60 = 120 exceeds the limit of PostgreSQL (max_connections=100, 3 of them reserved): "
        "set max_size to 48 or less"
    )
    assert run("doctor", settings, "--pool", "orders-db", "--url", postgres.url)[0] == 0


def test_doctor_knows_the_limit_of_a_role(run: Run, settings: str, postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("drop role if exists narrow")
        admin.execute("create role narrow login password 'small' connection limit 7")
        url = f"postgresql://narrow:small@{postgres.url.partition('@')[2]}"
        _, out, _ = run("doctor", settings, "--pool", "cache", "--url", url)
        admin.execute("drop role narrow")
    assert "(the role's CONNECTION LIMIT=7): set max_size to 7 or less" in out


def test_doctor_asks_redis_for_its_limits(run: Run, settings: str, redis_server: RedisServer) -> None:
    with redis_server.connect() as client:
        before = client.config_get("timeout")
        client.config_set("timeout", 100)
        try:
            code, out, _ = run("doctor", settings, "--pool", "cache", "--url", redis_server.url)
        finally:
            client.config_set("timeout", before["timeout"])
    assert code == 0
    assert (
        "warning: cache: Redis closes idle connections after 100 s (timeout), the pool keeps them without a limit: set "
        "idle_timeout or keepalive below it, for example to 80"
    ) in out


def test_doctor_connects_to_an_http_server(run: Run, http_server: HTTPServer) -> None:
    code, out, _ = run("doctor", "--url", http_server.url)
    assert code == 0
    assert "HTTP/1.1" in out


@pytest.mark.parametrize("kind", ["postgresql", "redis", "http"])
def test_doctor_names_a_server_that_cannot_be_reached_and_hides_the_password(run: Run, kind: str) -> None:
    code, out, err = run("doctor", "--url", f"{kind}://me:hunter2@127.0.0.1:9/x")
    assert code == 1
    assert "error: server: could not be queried: " in out
    assert "hunter2" not in out + err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no-such-file.toml"], "no-such-file.toml: cannot be read: No such file or directory"),
        (["{file}", "--pool", "order-db"], "has no table [order-db]; did you mean 'orders-db'?"),
        (["{file}", "--adapter", "htpx"], "'htpx' is not one of"),
        (["--url", "mysql://me:hunter2@db"], "--url mysql://me:***@db: must start with postgresql://, redis://"),
        (["--url", "redis://db:port"], "Port could not be cast"),
        (["--processes", "0"], "'--processes': 0 is not in the range x>=1"),
    ],
)
def test_doctor_with_wrong_input(run: Run, settings: str, arguments: list[str], text: str) -> None:
    code, out, err = run("doctor", *(part.format(file=settings) for part in arguments))
    wrong_usage = {"--adapter", "--url", "--processes"}.intersection(arguments)
    assert (code, out) == (2 if wrong_usage else 1, "")
    assert text in err
    assert err.count("\n") == 1 or code == 2


def test_doctor_tells_of_a_pool_that_nothing_names(run: Run, settings: str) -> None:
    """[default] may be all that there is for it, or its name is mistyped."""
    code, out, _ = run("doctor", settings, "--pool", "nobody")
    assert code == 0
    assert "warning: nobody: " in out
    assert "has no table [nobody]: only the settings for all pools ([default] first) apply; check the name" in out
    assert "no problems found" not in out
    code, out, _ = run("doctor", "--pool", "nobody")
    assert (code, "no environment variable starts with POOLKIT_NOBODY_" in out) == (0, True)


def test_doctor_does_not_count_an_empty_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKIT_NOBODY_MAX_SIZE", "")
    _, out, _ = run("doctor", "--pool", "nobody")
    assert "no environment variable starts with POOLKIT_NOBODY_" in out
    assert "max_size           10 " in out


def test_doctor_knows_a_pool_that_only_the_environment_names(
    run: Run, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLKIT_NOBODY_MAX_SIZE", "3")
    for arguments in (["--pool", "nobody"], [settings, "--pool", "nobody"]):
        code, out, _ = run("doctor", *arguments)
        assert (code, "no problems found" in out) == (0, True)


def test_doctor_shows_what_is_in_effect_under_an_adapter(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pools.toml"
    path.write_text("[default]\nmin_size = 2\n[upstream]\nmax_waiting = 5\n[other]\nkeepalive = 60\n")
    code, out, _ = run("doctor", str(path), "--adapter", "httpx", "--json")
    found = json.loads(out)
    assert (code, found["adapter"]) == (1, "httpx")
    upstream = found["pools"]["upstream"]
    assert upstream["max_size"] == {"value": 100, "source": "httpx's default (max_connections)"}
    assert upstream["max_waiting"] == {"value": 5, "source": f"{path} [upstream]"}
    assert upstream["min_size"] == {"value": 0, "source": f"not used by httpx (min_size=2 in {path} [default])"}
    told = {(one["level"], one["pool"]): one["text"] for one in found["findings"]}
    assert told["warning", "upstream"].startswith(f"min_size=2 (from {path} [default]) is ignored")
    assert told["error", "other"].startswith("keepalive=60: has no effect for HTTP")


@pytest.mark.parametrize(
    "adapter", ["sqlalchemy", "redis", "httpx", "httpcore", "psycopg", "asyncpg", "urllib3", "requests", "dbapi"]
)
def test_doctor_can_ask_every_adapter(run: Run, adapter: str, settings: str) -> None:
    if adapter != "dbapi":
        pytest.importorskip(adapter)
    code, out, _ = run("doctor", settings, "--pool", "cache", "--adapter", adapter)
    assert code == 0
    assert out.startswith(f"for pools of poolkit_adapters.{adapter}\n")
    assert "no problems found" in out


def test_doctor_says_what_it_assumes(run: Run, settings: str, http_server: HTTPServer) -> None:
    _, out, _ = run("doctor", settings)
    assert out.startswith("for pools of the engine itself; --adapter NAME shows the settings with an adapter")
    _, out, _ = run("doctor", settings, "--url", http_server.url)
    assert out.startswith("for pools of poolkit_adapters.httpx, chosen by the URL")


def test_doctor_tells_of_a_mistyped_variable_for_every_pool(
    run: Run, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLKIT_MAX_SZIE", "3")
    code, _, err = run("doctor", settings)
    assert (code, "POOLKIT_MAX_SZIE='3': no such setting; did you mean 'max_size'?" in err) == (1, True)


def test_doctor_names_a_malformed_file_and_an_unknown_setting(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pools.toml"
    path.write_text("[db]\nmax_sise = 5\n")
    code, _, err = run("doctor", str(path))
    assert code == 1
    assert "max_sise=5" in err
    assert "did you mean 'max_size'?" in err
    path.write_text("[db\n")
    code, _, err = run("doctor", str(path))
    assert code == 1
    assert "not valid TOML" in err
    path.write_text("[db]\nmax_size = 5\n")
    assert "has no table [cache]; its tables: db" in run("doctor", str(path), "--pool", "cache")[2]


def test_doctor_examines_only_tables(run: Run, tmp_path: Path) -> None:
    """``version`` belongs to the application that has the file."""
    path = tmp_path / "app.yaml"
    path.write_text("version: 1\nx-hosts: [a, b]\ndb:\n  max_size: 5\n")
    code, out, _ = run("doctor", str(path), "--json")
    assert (code, list(json.loads(out)["pools"])) == (0, ["db"])


def test_what_is_compared_with_a_server() -> None:
    limits = Limits("PostgreSQL", None, 100, "max_connections", 3, 50, 60.0, "idle_session_timeout")

    def texts(processes: int = 1, **settings: Any) -> list[str]:
        config = PoolConfig(**{"idle_timeout": 30, **settings})
        return [f"{f.level}: {f.text}" for f in of_server("db", config, limits, processes)]

    assert texts(max_size=10) == []
    assert texts(max_size=90)[0].startswith("warning: 1 x max_size=90 = 90 is nearly the limit of PostgreSQL")
    assert texts(max_size=60)[0].startswith("warning: 50 connections of PostgreSQL are in use now")
    assert texts(max_size=None)[0].startswith("warning: max_size=None: the pool may exceed the limit")
    assert "for 600 s" in texts(max_size=10, idle_timeout=600)[0]
    assert texts(max_size=10, idle_timeout=600, keepalive=30) == []


def test_the_sum_of_a_wait_and_a_request_is_compared_with_the_deadline() -> None:
    (finding,) = of_times("db", PoolConfig(acquire_timeout=15), 20, 30)
    assert "acquire_timeout + request timeout = 35 s exceeds the deadline of the service (30 s)" in finding.text
    (finding,) = of_times("db", PoolConfig(acquire_timeout=None), None, 30)
    assert "acquire_timeout=None waits beyond the deadline" in finding.text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_POOLKIT_COMPLETE" in out
    assert run("completion", "cmd")[0] == 2


def test_completion_completes_commands_and_options() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from poolkit.cli import main; sys.exit(main([]))"],
        capture_output=True, text=True, timeout=30, check=False,
        env={"_POOLKIT_COMPLETE": "bash_complete", "COMP_WORDS": "poolkit d", "COMP_CWORD": "1", "PATH": ""},
    )  # fmt: skip
    assert set(done.stdout.split()) >= {"plain,demo", "plain,doctor"}, done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("psycopg", ["doctor", "--url", "postgresql://localhost/x"], "psycopg"),
        ("redis", ["doctor", "--url", "redis://localhost"], "redis"),
        ("httpx", ["doctor", "--url", "http://localhost"], "httpx"),
        ("matplotlib", ["size", "--rate", "5/s", "--latency", "2ms", "--plot", "x.png"], "plot"),
    ],
)
def test_a_missing_library_is_one_line_with_the_pip_command(module: str, arguments: list[str], extra: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.modules['matplotlib.backends.backend_agg'] = None\n"
        f"from poolkit.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"pip install 'poolkit[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
