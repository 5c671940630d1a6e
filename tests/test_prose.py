"""The pages are written in short sentences, and each begins with what its reader gets.

``tests/test_words.py`` bans words. Here: sentences of at most 25 words, no sentence that opens with a passive "It is
done", a first paragraph on every page, and code lines that fit. The list of exceptions only shrinks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
MOST_WORDS = 25
MOST_CODE = 120
"""Characters of a line of Python: what a block shows without scrolling on a desktop."""

LONG: dict[str, int] = {
    "docs/benchmarks.md": 1,
}
"""Pages with longer sentences, and how many."""

PASSIVE = re.compile(
    r"^(?:It|They|This|These) (?:is|are|was|were) (?:\w+ly )?\w+(?:ed|wn|en)\b(?! (?:of|with|in|for) )"
)
BLOCK = re.compile(r"^(?:<!--.*?-->\n+)?```.*?^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def sentences(page: Path) -> list[str]:
    """The sentences of the running text: no code, tables, headings or comments."""
    text = BLOCK.sub("\n", page.read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    lines = [
        line for line in text.splitlines()
        if not line.lstrip().startswith(("#", "|", ":::", "!", "    options", "      members"))
    ]  # fmt: skip
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``?[^`]+``?", lambda m: "code" if " " not in m[0] else "code code", text)
    text = re.sub(r"\b(?:e\.g|i\.e|etc|vs)\.", "", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        found += re.split(r"(?<=[.!?])[\"”*)]*\s+(?=[A-Z\"“`*(]|poolkit|psycopg|redis-py|httpx|asyncpg|httpcore|code)",
                          " ".join(paragraph.split()))  # fmt: skip
    return [one for one in found if one]


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'./%-]*[\w%][\w'./%-]*", sentence))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sentences_are_short(page: Path) -> None:
    long = [one for one in sentences(page) if words(one) > MOST_WORDS]
    assert len(long) <= LONG.get(name(page), 0), "\n".join(f"{words(one)} words: {one}" for one in long)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_sentence_opens_with_a_passive(page: Path) -> None:
    found = [one for one in sentences(page) if PASSIVE.match(one)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "reference"], ids=name)
def test_a_page_begins_with_text(page: Path) -> None:
    """Under the title comes a paragraph or a list that says what the reader gets, not another heading or code."""
    after = re.sub(r"\A# .+\n+", "", page.read_text(encoding="utf-8"))
    assert after[:1].isalpha() or after.startswith(("**", "- ", "`", "<!-- What")), after[:80]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_python_is_clipped(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= MOST_CODE, line
