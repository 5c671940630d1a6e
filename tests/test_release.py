"""What a release needs: one version everywhere, a dated changelog, extras for users, an index page that works."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import poolkit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_USERS_TOO = {"cli", "dashboard", "plot"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    citation = re.search(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)
    assert citation is not None
    assert PROJECT["version"] == poolkit.__version__ == citation[1]


def test_the_changelog_has_an_unreleased_section_and_the_date_of_this_version() -> None:
    sections = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    dated = re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", sections[1])
    assert dated is not None, sections[1]
    assert dated[1] == PROJECT["version"]
    assert f"date-released: {dated[2]}" in text("CITATION.cff")


def test_all_holds_what_an_application_uses_and_no_tool_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    tools = runpy.run_path(str(ROOT / "docs" / "make_versions_table.py"))["TOOLS"]
    (everything,) = EXTRAS["all"]
    held = set(everything.removeprefix("poolkit[").removesuffix("]").split(","))
    assert held == (set(EXTRAS) - tools) | FOR_USERS_TOO


def test_the_description_for_an_index_has_no_link_into_the_repository() -> None:
    described = pytest.importorskip("hatch_build").described(text("README.md"))
    assert "docs/quickstart.md" not in described
    assert "Quickstart" in described
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", described)
    assert "<!--" not in described


def test_the_workflow_tests_every_python_that_the_project_names() -> None:
    named = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)}
    assert set(re.findall(r'"(3\.\d+)"', text(".github/workflows/checks.yml"))) >= named
