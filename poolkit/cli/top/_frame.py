"""Renders a snapshot for the terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poolkit.errors import shown

__all__ = ("frame", "note")

_BAR = 10
_MARKS = "█▒·"
_SEVERITY = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def frame(state: dict[str, Any], *, height: int | None = None) -> RenderableType:
    """Render alerts, pools, their problems, clusters and the last events. ``height``: lines of the terminal."""
    several = len(state["processes"]) > 1
    parts: list[RenderableType] = [_head(state)]
    parts += [_alert(alert, several, state["at"]) for alert in state["alerts"]]
    parts.append(_pools(state["pools"], several))
    if height is None or height >= 24:
        parts.append(Text(_LEGEND, "dim", no_wrap=True, overflow="ellipsis"))
    parts += [line for pool in state["pools"] for line in _remarks(pool)]
    parts += [_cluster(cluster) for cluster in state["clusters"]]
    used = sum(3 if isinstance(part, Table) else 1 for part in parts) + len(state["pools"])
    used += sum(len(cluster["nodes"]) for cluster in state["clusters"])
    room = 5 if height is None else max(3, height - used - 2)
    parts += [_event(event, several) for event in state["events"][:room]]
    return Group(*parts)


def note(text: str) -> RenderableType:
    """Render one line of text instead of a frame."""
    return Text(f"poolkit top: {shown(text, 2000)}", style="bold")


def _head(state: dict[str, Any]) -> Text:
    text = Text(f"poolkit top  {time.strftime('%H:%M:%S', time.localtime(state['at']))}  ", style="bold")
    shown = [one for one in state["processes"] if "error" not in one]
    text.append(
        ", ".join(f"{one.get('service', one['program'])} ({one['pid']})" for one in shown)
        or "no process publishes its pools",
        "dim",
    )
    for one in state["processes"]:
        if "error" in one:
            text.append(f"\n{one['error']}", "red")
    return text


def _alert(alert: dict[str, Any], several: bool, now: float) -> Text:
    where = f"{alert['pool']} ({alert['pid']})" if several else alert["pool"]
    text = Text(f"{alert['severity']}: {where}: {alert['text']}", style=_SEVERITY.get(alert["severity"], ""))
    return text.append(f" (for {seconds(max(0.0, now - alert['at']))})", "dim")


# titles of the pools' columns are short, for 80 characters
_LEGEND = "wait: callers; /s: leases; mean, p99: waits (10 s); t/o: 1 min; held: longest"


def _pools(pools: list[dict[str, Any]], several: bool) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("pool", overflow="fold")  # the column that is folded if there is little room
    if several:
        table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("in use", no_wrap=True)
    for name in ("idle", "wait", "/s", "mean", "p99", "t/o", "held"):
        table.add_column(name, justify="right", no_wrap=True)
    for pool in pools:
        title = Text(pool["name"], style="" if pool["phase"] == "open" else "yellow")
        if pool["phase"] != "open":
            title.append(f" {pool['phase']}")
        table.add_row(
            title, *([str(pool["pid"])] if several else []), _bar(pool), str(pool["idle"]),
            Text(str(pool["waiting"]), style="red" if pool["waiting"] else ""), f"{pool['acquires_per_second']:.1f}",
            seconds(pool["mean_wait"]), seconds(pool["p99_wait"]),
            Text(str(pool["timeouts_in_a_minute"]), style="red" if pool["timeouts_in_a_minute"] else ""),
            seconds(pool["longest_held"]),
        )  # fmt: skip
    if not pools:
        table.add_row(Text("no pool", style="dim"))
    return table


def _bar(pool: dict[str, Any]) -> Text:
    whole = max(pool["max_size"] or 0, pool["size"]) or 1
    used, idle = round(_BAR * pool["in_use"] / whole), round(_BAR * pool["idle"] / whole)
    used = max(used, int(pool["in_use"] > 0))
    idle = min(idle, _BAR - used)
    style = "red" if pool["in_use"] >= whole else "yellow" if pool["in_use"] >= 0.8 * whole else "green"
    full, half, empty = tuple(_marks())
    text = Text(full * used, style=style).append(half * idle, "blue").append(empty * (_BAR - used - idle), "dim")
    limit = "no limit" if pool["max_size"] is None else pool["max_size"]
    return text.append(f" {pool['in_use']}/{limit}", "")


def _marks() -> str:
    """The characters of a bar, as far as the encoding of the output has them."""
    try:
        _MARKS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#=."
    return _MARKS


def _remarks(pool: dict[str, Any]) -> list[Text]:
    found = []
    if pool["diagnosis"]:
        found.append(
            Text(f"  {pool['name']}: {pool['diagnosis']['cause']}: {pool['diagnosis']['reason']}", style="red")
        )
    if pool.get("overload_reason"):
        words = f"overloaded: {pool['overload_reason']}, so the newest are served first"
        found.append(Text(f"  {pool['name']}: {words}", style="red"))
    broken = [endpoint for endpoint in pool["endpoints"] if endpoint["breaker"] != "closed"]
    for endpoint in broken:
        where = endpoint["key"] or "the server"
        found.append(
            Text(
                f"  {pool['name']}: breaker to {where} {endpoint['breaker']}: {endpoint['last_connect_error']}",
                style="red",
            )
        )
    if pool["waiting"] or pool["diagnosis"]:
        for lease in pool["held"][:3]:
            place = f" at {lease['place']}" if lease["place"] else ""
            found.append(Text(f"    held {seconds(lease['held'])} by {lease['holder']}{place}", style="dim"))
    return found


def _cluster(cluster: dict[str, Any]) -> Table:
    title = f"{cluster['name']}: {cluster['leases']} leases, {cluster['waiting']} waiting"
    table = Table(box=None, header_style="dim", pad_edge=False, title=Text(title), title_justify="left",
                  title_style="bold")  # fmt: skip
    for name in ("node", "state", "leases", "last error"):
        table.add_column(name, overflow="fold")
    for node in cluster["nodes"]:
        state = f"{node['state']} {node['role']}" if node["role"] else node["state"]
        places = "no limit" if node["places"] is None else node["places"]
        table.add_row(Text(node["name"]), Text(state, style="green" if node["state"] == "usable" else "red"),
                      f"{node['leases']}/{places}", Text(node["last_error"] or "none"))  # fmt: skip
    return table


def _event(event: dict[str, Any], several: bool) -> Text:
    where = f"{event['source']} ({event['pid']})" if several else event["source"]
    times = "" if event["times"] == 1 else f" ({event['times']}x)"
    text = Text(time.strftime("%H:%M:%S", time.localtime(event["at"])), "dim", no_wrap=True, overflow="ellipsis")
    return text.append(f" {where}: {event['event']}{times}", "not dim").append(f" {event['text']}")


def seconds(value: float) -> str:
    """A time in seven characters at most (up to 27 hours)."""
    if value >= 6000:
        return f"{value / 3600:.1f} h"
    if value >= 100:
        return f"{value / 60:.0f} min"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1000:.{0 if value >= 0.1 else 1}f} ms" if value > 0 else "0"
