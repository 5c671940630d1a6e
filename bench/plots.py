"""Plots of a run as SVG, readable on a light and on a dark page: no background, grey text, colours of middle tone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.experiments.contended import MAIN
from bench.figures import ratios, spread
from bench.result import Param, Result
from poolkit.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ("GREY", "OTHERS", "OURS", "PLOTS", "STYLE", "draw")

GREY = "#808080"
OURS = "#e08214"
OTHERS = ("#4393c3", "#5aae61", "#9970ab", "#d6604d", "#35978f", "#a6761d", "#7f7fb0", "#c06c9c")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "poolkit",  # the same numbers make the same file
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(result: Result, folder: Path) -> list[str]:
    """Write each plot of which the run has numbers into the folder; return the files' names.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.style import context
    except ImportError:
        raise MissingExtra("plots need matplotlib: pip install 'poolkit[bench]'") from None
    written = []
    folder.mkdir(exist_ok=True)
    with context(STYLE):
        for name, plot in PLOTS.items():
            figure = Figure(figsize=(7.2, 3.8), layout="constrained")
            if plot(result, figure.add_subplot()):
                figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
                written.append(f"{name}.svg")
    return written


def _colour(subject: str, index: int) -> str:
    return OURS if "poolkit" in subject else OTHERS[index % len(OTHERS)]


def _bars(axes: Axes, found: dict[str, list[float]], label: str) -> bool:
    """One bar for each subject, from the top, with its spread."""
    names = list(found)
    for index, name in enumerate(names):
        middle = spread(found[name])
        reach = [[middle.median - middle.low], [middle.high - middle.median]]
        axes.barh(index, middle.median, xerr=reach, color=_colour(name, index), ecolor=GREY, height=0.7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return bool(names)


def _lines(axes: Axes, found: dict[str, dict[float, list[float]]], labels: tuple[str, str]) -> bool:
    """A line for each subject over sizes, its spread as a band; both axes logarithmic."""
    for index, (name, points) in enumerate(found.items()):
        sizes = sorted(points)
        middles = [spread(points[size]) for size in sizes]
        colour = OURS if name.endswith("poolkit") else OTHERS[index % len(OTHERS)]
        axes.plot(sizes, [one.median for one in middles], marker="o", color=colour, label=name)
        axes.fill_between(
            sizes, [one.low for one in middles], [one.high for one in middles], color=colour, alpha=0.25, linewidth=0
        )
    if found:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.legend()
    return bool(found)


def _cycle(result: Result, axes: Axes) -> bool:
    floor = result.values("cycle", "lock and deque", "cpu", world="threads")
    if not floor:
        return False
    found = {
        one.subject: ratios(one.values, floor)
        for one in result.where("cycle", metric="cpu", world="threads")
        if not one.subject.startswith("httpcore")  # a whole request: another scale
    }
    return _bars(axes, found, "CPU time of taking and giving back, times a lock and a deque")


def _fairness(result: Result, axes: Axes) -> bool:
    callers, connections = MAIN
    case: dict[str, Param] = {"world": "threads", "callers": callers, "connections": connections, "hold_ms": 1.0}
    series = [one for one in result.where("contended", metric="most/least") if one.params == case]
    found = {one.subject: one.values for one in series}
    if found:
        axes.set_xscale("log")
    return _bars(axes, found, "Most acquires of a thread / least, hold of 1 ms (1 is fair)")


def _spike(result: Result, axes: Axes) -> bool:
    found = {one.subject: one.values for one in result.where("spike", metric="total", most=20)}
    if found:
        axes.set_xscale("log")
    return _bars(axes, found, "ms until 50 callers are served, opening takes 150 ms")


def _http(result: Result, axes: Axes) -> bool:
    found: dict[str, dict[float, list[float]]] = {}
    for one in result.where("http", metric="rate", protocol="HTTP/1.1", world="tasks"):
        callers = float(one.params["callers"])
        if one.params["limit"] == one.params["callers"]:
            found.setdefault(one.subject, {})[callers] = one.values
    return _lines(axes, found, ("tasks, a connection for each", "requests/s"))


def _scale(result: Result, axes: Axes) -> bool:
    found: dict[str, dict[float, list[float]]] = {}
    for what in ("connections", "lanes", "waiters"):
        for one in result.where("scale", metric="operation"):
            if what in one.params:
                found.setdefault(what, {})[float(one.params[what])] = one.values
    return _lines(axes, found, ("how many there are", "µs for one operation"))


PLOTS: dict[str, Callable[[Result, Axes], bool]] = {
    "cycle": _cycle,
    "contended": _fairness,
    "spike": _spike,
    "scale": _scale,
    "http": _http,
}
"""Each draws on the axes and says whether the run had anything for it; named as the experiment it belongs to."""
