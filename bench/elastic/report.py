"""The table and the plots of the documentation's page on elastic size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.elastic.traces import TRACES, Trace
from bench.elastic.world import Run, World, quantile
from bench.plots import GREY, OTHERS, OURS, STYLE
from poolkit import AutoscaleConfig, PoolConfig
from poolkit.errors import MissingExtra

PAGE = "concepts/elastic.md"
BEGIN, END = "<!-- begin: made by python -m bench.elastic -->", "<!-- end -->"
ELASTIC = "elastic, 2 to 32"

_TIMEOUT = 5.0
SUBJECTS = {
    "fixed, 32": PoolConfig(min_size=32, max_size=32, acquire_timeout=_TIMEOUT),
    "fixed, 24": PoolConfig(min_size=24, max_size=24, acquire_timeout=_TIMEOUT),
    "on demand, up to 32": PoolConfig(max_size=32, acquire_timeout=_TIMEOUT),
    ELASTIC: PoolConfig(min_size=2, max_size=32, acquire_timeout=_TIMEOUT, autoscale=AutoscaleConfig()),
}
"""A size for the worst moment, the one that ``poolkit size`` gives for 20 in use on average, the pool's defaults, and
the defaults of ``AutoscaleConfig``."""

Runs = dict[str, Run]


def play(trace: Trace) -> Runs:
    """Each subject on one trace."""
    return {name: World(trace, config).run() for name, config in SUBJECTS.items()}


def rows(trace: Trace, runs: Runs) -> list[str]:
    """Lines of the table."""
    return [
        f"| {trace.name} | {name} | {run.held:.1f} | {run.most} | {run.quantile(0.5) * 1e3:.1f} | "
        f"{run.quantile(0.99) * 1e3:.1f} | {run.quantile(0.999) * 1e3:.1f} | {run.failed} | {run.connects} | "
        f"{run.refused} |"
        for name, run in runs.items()
    ]


def table(found: dict[str, Runs]) -> str:
    """The whole table."""
    lines = [
        "| trace | pool | held on average | at most | wait p50, ms | p99 | p99.9 | got none | connects | refused |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trace in TRACES:
        if trace.name in found:
            lines += rows(trace, found[trace.name])
    return "\n".join(lines)


def draw(trace: Trace, runs: Runs, folder: Path) -> Path:
    """Connections held, and the 99th percentile of the waits, over time."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.style import context
    except ImportError:
        raise MissingExtra("plots need matplotlib: pip install 'poolkit[bench]'") from None
    path = folder / f"{trace.name}.svg"
    with context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        held, waits = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        colours = dict(zip((name for name in runs if name != ELASTIC), OTHERS, strict=False)) | {ELASTIC: OURS}
        used = runs[ELASTIC].points
        held.fill_between([at for at, *_ in used], [point[2] for point in used], color=GREY, alpha=0.3, linewidth=0,
                          label="in use")  # fmt: skip
        for name, run in runs.items():
            held.plot([at for at, *_ in run.points], [point[1] for point in run.points], color=colours[name],
                      label=name, linewidth=1.8 if name == ELASTIC else 1.1)  # fmt: skip
            times, ninety_nine = _over_time(trace, run)
            waits.plot(times, ninety_nine, color=colours[name], linewidth=1.8 if name == ELASTIC else 1.1)
        held.set_title(trace.text)
        held.set_ylabel("connections held")
        held.set_ylim(0)
        held.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.1))
        waits.set_ylabel("p99 wait, ms")
        waits.set_yscale("symlog", linthresh=1)
        waits.set_ylim(0)
        waits.set_xlabel("s")
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _over_time(trace: Trace, run: Run, parts: int = 80) -> tuple[list[float], list[float]]:
    """The 99th percentile of the waits in each part of the trace, in milliseconds."""
    width = trace.seconds / parts
    found: list[list[float]] = [[] for _ in range(parts)]
    for at, wait in run.waits:
        found[min(parts - 1, int(at / width))].append(wait * 1e3)
    return [(part + 0.5) * width for part in range(parts)], [quantile(values, 0.99) for values in found]


def write(docs: Path, found: dict[str, Runs]) -> list[Path]:
    """Write the table and the plots of the page; return the files."""
    page = docs / PAGE
    old = page.read_text(encoding="utf-8")
    new, marks = re.subn(
        re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n\n{table(found)}\n\n{END}", old, flags=re.DOTALL
    )
    if marks != 1:
        raise SystemExit(f"{page} must hold the two marks once")
    page.write_text(new, encoding="utf-8")
    folder = page.parent / "elastic"
    folder.mkdir(exist_ok=True)
    return [page, *(draw(trace, found[trace.name], folder) for trace in TRACES)]


def shown(found: Any) -> str:
    """The table for a terminal."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table(found).splitlines()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
        if not line[0].startswith("---")
    )
