"""The documentation tells the truth: its examples run and print what stands below them, its generated parts agree.

In a page the comment before a fenced block says what it is:

- ``<!-- run -->``: Python that is executed, in one namespace with the earlier blocks of the page;
- ``<!-- run with redis http -->``: the same, its example addresses replaced by those of real servers;
- ``<!-- output -->``: what has been printed since the last such block (``...`` stands for anything; seconds with
  decimals and places in files may differ);
- ``<!-- file NAME -->``: a file that stands in the working directory from then on;
- ``<!-- part of FILE -->``: Python that stands in this file of the repository;
- ``<!-- not run: REASON -->``: Python that is only compiled.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import gc
import io
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import poolkit.cluster
import poolkit.errors
import poolkit.fleet
import poolkit.runtimes
import poolkit.testing

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BY_OTHERS = ("adapters", "demo.md")  # pages that say for themselves which of their examples run

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
ADDRESSES: dict[str, dict[str, Callable[[Any], str]]] = {
    "postgres": {
        "postgresql+psycopg://app:secret@localhost/shop": lambda server: str(server.sqlalchemy_url()),
        "postgresql+asyncpg://app:secret@localhost/shop": lambda server: str(server.sqlalchemy_url("asyncpg")),
        "postgresql://app:secret@localhost/shop": lambda server: str(server.url),
    },
    "redis": {"redis://localhost": lambda server: str(server.url)},
    "valkey": {"valkey://localhost": lambda server: str(server.url).replace("redis", "valkey", 1)},
    "http": {"http://localhost:8000": lambda server: str(server.url)},
}
FIXTURES = {"postgres": "postgres", "redis": "redis_server", "valkey": "valkey_server", "http": "http_server"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("text")) + 1, m["mark"] or "", m["language"], m["text"])
        for m in FENCE.finditer(text)
    ]


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def loosened(text: str) -> str:
    """The text without what differs from run to run."""
    return re.sub(r"\d+\.\d+ s\b", "N s", re.sub(r"\bat \S+:\d+", "at PLACE", text))


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.mark.startswith("run") for b in blocks(page))], ids=title
)
def test_the_examples_of_a_page_run_and_print_what_stands_there(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # a module of its own: the examples' dataclasses and annotations look their names up there
    namespace: dict[str, Any] = {"__name__": "example", "__file__": str(page)}
    printed = io.StringIO()
    for block in blocks(page):
        word, _, rest = block.mark.partition(" ")
        if word == "file":
            (tmp_path / rest).write_text(block.text, encoding="utf-8")
        elif word == "output":
            got, printed = printed.getvalue(), io.StringIO()
            same = doctest.OutputChecker().check_output(loosened(block.text), loosened(got), doctest.ELLIPSIS)
            assert same, f"{block.place}: the page says\n{block.text}\nbut printed was\n{got}"
        elif word == "run":
            source = block.text
            for server in rest.removeprefix("with ").split():
                if server == "valkey":  # valkey-py needs Python 3.11
                    pytest.importorskip("valkey")
                running = request.getfixturevalue(FIXTURES[server])
                for address, real in ADDRESSES[server].items():
                    source = source.replace(address, real(running))
            code = compile("\n" * (block.line - 1) + source, str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
    namespace.clear()
    gc.collect()  # what a page leaves open is warned about here, not in the middle of another test


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_every_python_block_compiles_and_says_whether_it_runs(block: Block) -> None:
    compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    inside = block.page.relative_to(DOCS).parts if DOCS in block.page.parents else ()
    if not inside or inside[0] not in BY_OTHERS or inside == ("adapters", "index.md"):
        started = block.mark.startswith("file ") and any(  # a file for a program that a later block starts
            later.mark.startswith("run") and "sys.executable" in later.text
            for later in blocks(block.page)
            if later.line > block.line
        )
        quoted = block.mark.startswith("part of ")
        if quoted:
            assert block.text in (ROOT / block.mark.removeprefix("part of ")).read_text(encoding="utf-8"), block.place
        known = started or quoted or block.mark.startswith(("run", "not run: "))
        assert known, f"{block.place}: is this example executed?"


@pytest.mark.parametrize(
    "module",
    [poolkit, poolkit.cluster, poolkit.fleet, poolkit.runtimes, poolkit.testing],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_in_the_reference_and_in_the_typed_api(module: ModuleType) -> None:
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    typed = (ROOT / "tests" / "typing" / "api.py").read_text(encoding="utf-8")
    short = module.__name__.rpartition(".")[2]
    for name in module.__all__:
        error = module is poolkit and name in poolkit.errors.__all__  # all on one page
        assert error or name == "__version__" or f"::: {module.__name__}.{name}\n" in reference, name
        assert re.search(rf"\b{short}\.{name}\b", typed), f"{short}.{name} is not in tests/typing/api.py"


def test_every_number_and_every_kind_of_event_is_explained() -> None:
    stats = (DOCS / "reference" / "stats.md").read_text(encoding="utf-8")
    assert not {field.name for field in fields(poolkit.PoolStats)} - set(re.findall(r"`(\w+)`", stats))
    events = (DOCS / "guides" / "events.md").read_text(encoding="utf-8")
    assert not {kind.name for kind in poolkit.EventKind} - set(re.findall(r"`(\w+)`", events))


def lines_logged() -> list[tuple[str, list[str]]]:
    """Return each warning or error that poolkit and its adapters log, to any logger: its place, and the parts of its
    text between placeholders.
    """
    paths = [path for package in ("poolkit", "poolkit_adapters") for path in sorted((ROOT / package).rglob("*.py"))]
    sources = {path: path.read_text(encoding="utf-8") for path in paths}
    texts: dict[str, str] = {}  # of constants that a call names
    for source in sources.values():
        texts.update(re.findall(r'^([A-Z_]+) = "(.+)"$', source, re.MULTILINE))
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)) if "logger" in source.lower() else ():
            match node:
                case ast.Call(
                    func=ast.Attribute(value=logger, attr="warning" | "error" | "exception"), args=[first, *_]
                ) if ast.unparse(logger).lower().endswith("logger"):
                    place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                    found.append((place, _parts(first, texts, place)))
    return found


def _parts(message: ast.expr, texts: Mapping[str, str], place: str) -> list[str]:
    match message:
        case ast.Constant(value=str(text)):
            pass
        case ast.Name(id=name) if name in texts:
            text = texts[name]
        case _:
            raise AssertionError(f"{place}: the text of this line is neither a literal nor a constant")
    parts = (part.strip(" ,(") for part in re.split(r"%(?:\.\d)?[a-z]|[;:]", text))
    return [each for each in parts if each]


def test_every_warning_and_error_in_the_log_is_explained() -> None:
    """A line without a text of its own ("%s: %s") is composed elsewhere, and is not looked for."""
    page = (DOCS / "guides" / "problems.md").read_text(encoding="utf-8").partition("## Log lines")[2]
    lines = lines_logged()
    assert len(lines) > 50
    assert {place.split("/")[1] for place, _ in lines} >= {"asyncpg", "psycopg", "sqlalchemy", "cluster", "fleet"}
    for place, parts in lines:
        starts = [" ".join(part.removeprefix("poolkit: ").split()[:3]) for part in parts]
        assert not parts or any(len(start) >= 8 and start in page for start in starts), f"{place}: {parts}"


@pytest.mark.parametrize(
    "script",
    [
        "make_state_diagram.py",
        "make_house_diagram.py",
        "make_settings_table.py",
        "make_metrics_table.py",
        "make_error_tables.py",
        "make_versions_table.py",
    ],
)
def test_what_is_made_from_the_code_agrees_with_it(script: str) -> None:
    done = subprocess.run([sys.executable, DOCS / script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_named_invariant_is_named_in_the_code_and_by_a_reason() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z]+(?:-[A-Z]+)+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 12
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for place in ("poolkit", "tests/simulation")
        for path in (ROOT / place).rglob("*.py")
    )
    for name, *reasons in rows:
        assert name in code, f"{name} is not named where the code keeps it"
        assert all(reasons), name


def anchors(page: Path) -> set[str]:
    """The fragments of the headings of a page, as the site and the repository make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)|[`*\[\]]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading)).strip("-") for heading in plain}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.relative_to(DOCS).as_posix() in navigation, f"{title(page)} is not in mkdocs.yml"


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("[CS]*.md"))], ids=title)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, fragment = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"{title(page)} links to {target}"
        if fragment and other.suffix == ".md":
            assert fragment in anchors(other), f"{title(page)} links to {target}"
