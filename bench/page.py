"""The generated part of docs/benchmarks.md: facts, targets, and the tables and plots of each experiment."""

from __future__ import annotations

from pathlib import Path

from bench.plots import PLOTS, draw
from bench.result import Result
from bench.suite import EXPERIMENTS
from bench.tables import as_markdown, failures_table, tables_of, targets_table
from bench.targets import judge
from poolkit.errors import ConfigError

__all__ = ("BEGIN", "END", "agrees", "generated", "write")

BEGIN, END = "<!-- begin: made by python -m bench --docs, do not edit -->", "<!-- end -->"
_PAGE, _RESULTS, _PLOTS = "benchmarks.md", "benchmarks.json", "benchmarks"


def generated(result: Result) -> str:
    """The text between the marks."""
    versions = _named(result.facts)
    minutes = sum(result.seconds.values()) / 60
    made = (
        f"{result.facts.get('python', '')}, {result.facts.get('cores', '?')} cores; {', '.join(versions)}."
        f" Effort: {result.effort}; {minutes:.1f} minutes."
    )
    parts = [
        made,
        "### Targets",
        as_markdown(targets_table(judge(result))),
    ]
    if result.failures:
        parts += ["### Failed turns", as_markdown(failures_table(result.failures))]
    for experiment, tables in tables_of(result).items():
        parts += [f"### {experiment}", EXPERIMENTS[experiment].question]
        parts += _origin(result, experiment)
        if experiment in PLOTS:
            parts.append(f"![{EXPERIMENTS[experiment].question}]({_PLOTS}/{experiment}.svg)")
        for table in tables:
            parts += [f"**{table.title}**", as_markdown(table)]
    return "\n\n".join(parts)


def _named(facts: dict[str, str]) -> list[str]:
    return [f"{name} {value}" for name, value in facts.items() if name not in ("python", "cores")]


def _origin(result: Result, experiment: str) -> list[str]:
    """What differs if the experiment was measured in an earlier run."""
    facts = result.earlier.get(experiment)
    if facts is None:
        return []
    other = {name: value for name, value in facts.items() if result.facts.get(name) != value}
    there = f": {', '.join(f'{name} {value}' for name, value in other.items())}" if other else ""
    return [f"Measured in an earlier run{there}."]


def write(result: Result, folder: Path) -> None:
    """Write the text between the marks of the page in this folder, and the plots and the numbers next to it.

    Raises:
        ConfigError: the page does not exist or has no marks.
    """
    page, head, tail = _split(folder)
    result = Result.from_json(result.to_json())  # rounded like the file, or the page might differ from it
    drawn = draw(result, folder / _PLOTS)
    text = generated(result)
    for name in PLOTS:
        if f"{name}.svg" not in drawn:  # not measured in this run
            text = "\n\n".join(part for part in text.split("\n\n") if f"]({_PLOTS}/{name}.svg)" not in part)
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    (folder / _RESULTS).write_text(result.to_json(), encoding="utf-8")


def agrees(result: Result, folder: Path) -> bool:
    """Whether the page shows the numbers of the run, and every plot that it shows exists.

    Raises:
        ConfigError: the page does not exist or has no marks.
    """
    page, _, _ = _split(folder)
    inside = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    shown = [name for name in PLOTS if f"]({_PLOTS}/{name}.svg)" in inside]

    def without_plots(text: str) -> list[str]:
        return [part for part in text.strip().split("\n\n") if f"]({_PLOTS}/" not in part]

    there = all((folder / _PLOTS / f"{name}.svg").is_file() for name in shown)
    return there and without_plots(inside) == without_plots(generated(result))


def _split(folder: Path) -> tuple[Path, str, str]:
    page = folder / _PAGE
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--docs: {page} cannot be read: {error.strerror}", "docs") from None
    head, begun, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ConfigError(f"--docs: {page} does not have the lines {BEGIN!r} and {END!r}", "docs")
    return page, head, tail
