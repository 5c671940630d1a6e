"""Writes ``poolkit/contrib/grafana.json``, the Grafana dashboard: ``python contrib/grafana/make.py [--check]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "poolkit" / "contrib" / "grafana.json"
WHERE = '{pool=~"$pool"}'
RATE = "[$__rate_interval]"

# title, unit, stacked, [(expression, legend)]
PANELS: list[tuple[str, str, bool, list[tuple[str, str]]]] = [
    ("Connections by state", "short", True, [(f"sum by (state) (poolkit_connections{WHERE})", "{{state}}")]),
    ("Utilisation", "percentunit", False, [(
        (f'sum by (pool) (poolkit_connections{{state="in_use",pool=~"$pool"}})'
         f" / sum by (pool) (poolkit_connections_max{WHERE})"), "{{pool}}")]),
    ("Callers in the queue", "short", False, [(f"sum by (pool) (poolkit_pending_requests{WHERE})", "{{pool}}")]),
    ("Oldest wait and oldest lease", "s", False, [
        (f"max by (pool) (poolkit_longest_wait_seconds{WHERE})", "{{pool}} wait"),
        (f"max by (pool) (poolkit_longest_lease_seconds{WHERE})", "{{pool}} lease")]),
    ("Acquires", "reqps", False, [(f"sum by (pool) (rate(poolkit_acquires_total{WHERE}{RATE}))", "{{pool}}")]),
    ("Time to get a connection", "s", False, [
        (f"histogram_quantile({q}, sum by (le) (rate(poolkit_acquire_seconds_bucket{WHERE}{RATE})))", f"p{q * 100:.0f}")
        for q in (0.5, 0.95, 0.99)]),
    ("Acquires that waited, and timeouts", "reqps", False, [
        (f"sum by (pool) (rate(poolkit_acquire_waits_total{WHERE}{RATE}))", "{{pool}} waited"),
        (f"sum by (pool) (rate(poolkit_acquire_timeouts_total{WHERE}{RATE}))", "{{pool}} timed out")]),
    ("Length of a lease", "s", False, [
        ((f"sum by (pool) (rate(poolkit_busy_seconds_total{WHERE}{RATE}))"
          f" / sum by (pool) (rate(poolkit_acquires_total{WHERE}{RATE}))"), "{{pool}} mean"),
        (f"histogram_quantile(0.99, sum by (le, pool) (rate(poolkit_use_seconds_bucket{WHERE}{RATE})))",
         "{{pool}} p99")]),
    ("Connects and failures", "ops", False, [
        (f"sum by (pool) (rate(poolkit_connects_total{WHERE}{RATE}))", "{{pool}}"),
        (f"sum by (pool) (rate(poolkit_connect_errors_total{WHERE}{RATE}))", "{{pool}} failed")]),
    ("Time to connect (p95)", "s", False, [(
        f"histogram_quantile(0.95, sum by (le, pool) (rate(poolkit_connect_seconds_bucket{WHERE}{RATE})))",
        "{{pool}}")]),
    ("Connections closed, by reason", "ops", True, [
        (f"sum by (reason) (rate(poolkit_connections_closed_total{WHERE}{RATE}))", "{{reason}}")]),
    ("Found dead, leaked, breakers", "short", False, [
        (f"sum by (pool) (increase(poolkit_check_failures_total{WHERE}[5m]))", "{{pool}} found dead in 5 min"),
        (f"sum by (pool) (increase(poolkit_leaks_total{WHERE}[5m]))", "{{pool}} leaked in 5 min"),
        (f"sum by (pool) (poolkit_open_breakers{WHERE})", "{{pool}} open breakers")]),
    ("Overload: queues now, and begun in 5 min", "short", False, [
        (f"sum by (pool) (poolkit_overloaded_queues{WHERE})", "{{pool}} now"),
        (f"sum by (pool) (increase(poolkit_overloads_total{WHERE}[5m]))", "{{pool}} begun")]),
    ("Connections that may exist now, and at most", "short", False, [
        (f"sum by (pool) (poolkit_connections_limit{WHERE})", "{{pool}} now"),
        (f"sum by (pool) (poolkit_connections_max{WHERE})", "{{pool}} at most")]),
    ("Classes of callers: in use and waiting", "short", False, [
        (f"sum by (pool, class) (poolkit_class_connections{WHERE})", "{{pool}} {{class}}"),
        (f"sum by (pool, class) (poolkit_class_pending_requests{WHERE})", "{{pool}} {{class}} waiting")]),
    ("Classes of callers: acquires", "reqps", False, [
        (f"sum by (pool, class) (rate(poolkit_class_acquires_total{WHERE}{RATE}))", "{{pool}} {{class}}")]),
    ("Classes of callers: waits and timeouts", "reqps", False, [
        (f"sum by (pool, class) (rate(poolkit_class_acquire_waits_total{WHERE}{RATE}))", "{{pool}} {{class}} waited"),
        (f"sum by (pool, class) (rate(poolkit_class_acquire_timeouts_total{WHERE}{RATE}))",
         "{{pool}} {{class}} timed out")]),
]  # fmt: skip


def panel(number: int, title: str, unit: str, stacked: bool, queries: list[tuple[str, str]]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)},
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"fillOpacity": 20 if stacked else 0, "stacking": {"mode": "normal" if stacked else "none"}},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    return {
        "title": "Connection pools (poolkit)",
        "uid": "poolkit",
        "tags": ["poolkit"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "pool",
                    "type": "query",
                    "label": "Pool",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": {"query": "label_values(poolkit_connections, pool)", "refId": "pools"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [panel(number, *what) for number, what in enumerate(PANELS)],
    }


def main(arguments: list[str]) -> int:
    new = json.dumps(dashboard(), indent=2) + "\n"
    if "--check" in arguments:
        agrees = PAGE.exists() and PAGE.read_text(encoding="utf-8") == new
        if not agrees:
            print(f"{PAGE.name} is out of date: run python contrib/grafana/make.py")
        return int(not agrees)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
