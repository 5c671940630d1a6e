"""The command line: versions, exit codes, and messages that say what to do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

import poolkit
from poolkit.cli import main

pytest.importorskip("click")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_version_names_poolkit_python_and_the_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"poolkit {poolkit.__version__}"
    assert platform.python_version() in text
    assert "sqlalchemy" in text


def test_version_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["poolkit"] == poolkit.__version__
    assert found["python"] == platform.python_version()
    assert set(found["drivers"]) >= {"sqlalchemy", "redis", "httpx", "psycopg"}


def test_a_driver_that_is_not_installed_has_no_version(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit.cli._version._DRIVERS", ("no-such-driver",))
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drivers"] == {"no-such-driver": None}
    assert main(["version"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_python_m_poolkit_is_the_same_command() -> None:
    ended = python("-m", "poolkit", "--version")
    assert (ended.returncode, ended.stdout.strip()) == (0, f"poolkit {poolkit.__version__}")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "version" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["version", "--nonsense"], ["demo", "left", "over"]])
def test_wrong_use_ends_with_2_and_says_how_it_goes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Usage: poolkit" in said
    assert "Traceback" not in said


def test_the_benchmarks_are_in_a_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cycle", "--quick"]) == 2
    assert "run python -m bench in a checkout" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "bench" not in capsys.readouterr().out


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a Python where ``import module`` fails."""
    program = f"import sys; sys.modules[{module!r}] = None; from poolkit.cli import main; sys.exit(main({arguments!r}))"
    return python("-c", program)


def test_without_click_one_line_names_the_extra() -> None:
    ended = without("click", "version")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["poolkit: the command line needs click: pip install 'poolkit[cli]'"]


@pytest.mark.parametrize("module", ["rich", "redis", "sqlalchemy", "httpx", "psycopg"])
def test_the_demo_without_a_library_is_one_line_with_the_pip_command(module: str) -> None:
    ended = without(module, "demo", "--quick")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [f"poolkit: the demo needs {module}: pip install 'poolkit[demo]'"]
    assert ended.stdout == ""


def test_an_error_of_poolkit_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise poolkit.PoolClosed("orders-db is closed")

    monkeypatch.setattr("poolkit.cli._version.versions", fail)
    assert main(["version"]) == 1
    assert capsys.readouterr().err == "poolkit: orders-db is closed\n"


def test_a_reader_that_went_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "poolkit", "version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, "")
