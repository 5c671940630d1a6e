"""``poolkit size``: a pool size, the reasons for it, and a chart of wait against size."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from poolkit import ConfigError, MissingExtra, SizeEstimate, estimate_size

__all__ = ("run",)

_WIDTH = 40


def run(rate: float, hold: float, *, plot: str | None, as_json: bool, **options: Any) -> int:
    """Print the answer; return 1 if the size exceeds the server's limit.

    Raises ConfigError for invalid numbers, MissingExtra for a plot without matplotlib.
    """
    found = estimate_size(rate, hold, **options)
    if plot is not None:
        _draw(found, Path(plot))
    if as_json:
        click.echo(json.dumps(_finite(asdict(found)), indent=2))
    else:
        click.echo(str(found))
        click.echo()
        click.echo("\n".join(_chart(found)))
    limit = found.server_max
    return int(limit is not None and found.processes * found.size > limit)


def _finite(value: Any) -> Any:
    """Replace infinity by None, because JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _chart(found: SizeEstimate) -> list[str]:
    """A bar chart of the mean wait by size."""
    rows = [(size, wait) for size, wait in found.wait if size <= found.size + 4][-16:]
    longest = max(wait for _, wait in rows) or 1.0
    lines = ["size  mean wait"]
    for size, wait in rows:
        bar = "#" * round(_WIDTH * wait / longest)
        mark = "  <- recommended" if size == found.size else ""
        lines.append(f"{size:4}  {wait * 1000:9.3f} ms {bar}{mark}")
    return lines


def _draw(found: SizeEstimate, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a plot needs matplotlib: pip install 'poolkit[plot]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.semilogy([size for size, _ in found.wait], [max(wait * 1000, 1e-6) for _, wait in found.wait], marker=".")
    axes.axvline(found.size, linestyle="--", color="tab:green", label=f"recommended: {found.size}")
    if found.server_max is not None:
        axes.axvline(found.server_max // found.processes, color="tab:red", label="the server's limit")
    axes.set(xlabel="connections (of each process)", ylabel="mean wait, ms",
             title=f"{found.rate:g} leases/s of {found.hold * 1000:g} ms, {found.processes} process(es)")  # fmt: skip
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: cannot be written: {error}", "plot") from error
