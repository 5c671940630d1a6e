"""The Grafana dashboard and the alert rules: they parse, and name only metrics and labels that exist."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from poolkit.cli import main
from poolkit.telemetry.alerts import Thresholds
from poolkit.telemetry.families import FAMILIES

promql_parser = pytest.importorskip("promql_parser")

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"
SHIPPED = CONTRIB.parent / "poolkit" / "contrib"
DASHBOARD = SHIPPED / "grafana.json"
RULES = SHIPPED / "alerts.yml"
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
METRICS = {
    family.name + suffix: {"pool", *family.labels, *(("le",) if suffix == "_bucket" else ())}
    for family in FAMILIES
    for suffix in SUFFIXES[family.kind]
}


def panels() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:  # type: ignore[attr-defined]
            yield target["expr"].replace("$__rate_interval", "1m").replace("$pool", ".*")
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_expression_parses_and_names_only_what_exists(expression: str) -> None:
    promql_parser.parse(expression)
    for name, labels in re.findall(r"\b(poolkit_\w+)(?:\{([^}]*)\})?", expression):
        assert name in METRICS, name
        assert set(re.findall(r"(\w+)\s*[=!]~?", labels)) <= METRICS[name], name
    for by in re.findall(r"by \(([^)]*)\)", expression):
        known = set().union(*(METRICS[name] for name in re.findall(r"\bpoolkit_\w+", expression)))
        assert {label.strip() for label in by.split(",")} <= known


def test_the_check_would_notice_a_broken_expression() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (pool (poolkit_connections)")
    assert "poolkit_connexions" not in METRICS


def test_every_rule_has_what_promtool_asks_for() -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) >= 7
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))


def test_every_metric_is_on_the_dashboard_or_is_a_setting() -> None:
    shown = set(re.findall(r"poolkit_\w+", " ".join(expressions())))
    missing = {family.name for family in FAMILIES if not any(name.startswith(family.name) for name in shown)}
    assert missing <= {"poolkit_connections_min", "poolkit_checks"}


def test_the_dashboard_is_made_by_its_script_and_lays_out_without_overlap() -> None:
    done = subprocess.run([sys.executable, CONTRIB / "grafana" / "make.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]  # type: ignore[index]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)


def test_every_threshold_of_the_alerts_has_a_rule_for_prometheus() -> None:
    """A lease that goes on is a level: its rule needs no event in a window."""
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert len(rules) == len(dataclasses.fields(Thresholds))
    assert rules["PoolLeaseHeldLong"] == f"poolkit_longest_lease_seconds > {Thresholds().longest_held:.0f}"
    leaks = re.fullmatch(r"increase\(poolkit_leaks_total\[(\d+)m\]\) > 0", rules["PoolLeaks"])
    assert leaks is not None
    # the event is told of until the level takes over, however short leak_after is
    assert int(leaks[1]) * 60 >= (Thresholds().longest_held or 0)


@pytest.mark.parametrize(("what", "file"), [("grafana", DASHBOARD), ("prometheus", RULES)])
def test_the_command_prints_it(what: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contrib", what]) == 0
    assert capsys.readouterr().out == file.read_text(encoding="utf-8")
