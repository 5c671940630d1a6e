"""``poolkit doctor``: the settings, their sources, problems with them, and the limits of the server.

_adapters (the settings in effect with an adapter) · _checks (the comparisons, pure) · _servers (a server's limits)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import click

from poolkit import ConfigError, PoolConfig, Setting, load
from poolkit.config import nearest
from poolkit.errors import shown
from poolkit.settings import described, tables_of, variable_prefix, variables_of

from ._adapters import assumed, under
from ._checks import Finding, Limits, of_server, of_times
from ._servers import ask

__all__ = ("run",)


def run(
    *,
    file: str | None,
    pool: str | None,
    url: str | None,
    adapter: str | None = None,
    processes: int,
    request_timeout: float | None,
    deadline: float | None,
    as_json: bool,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Print the findings; return 1 if any of them is an error.

    ``adapter``: the adapter of the pools; None: taken from the URL, or none. Raises ConfigError for an invalid file or
    setting and for an unknown pool, MissingExtra for a driver that is not installed, click.UsageError for
    an invalid URL.
    """
    names: list[str | None] = [pool]
    if file is not None and pool is None:
        names = [name for name in tables_of(file) if name != "default"] or [None]
    known, why = assumed(adapter, url)
    nameless = [] if pool is None else _nameless(file, pool, os.environ if environ is None else environ)
    try:
        limits, findings = (None, []) if url is None else ask(url)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    findings += nameless
    pools: dict[str, dict[str, Setting]] = {}
    for name in names:
        config = load(name, file=file, environ=environ)
        title = name or "(every pool)"
        config, said = under(known, title, config)
        findings += said
        pools[title] = described(config)
        findings += _of_pool(title, config, limits, processes, request_timeout, deadline)
    if as_json:
        click.echo(json.dumps({"adapter": known, **_as_data(pools, url, limits, findings)}, indent=2))
    else:
        click.echo("\n".join([f"{why}", "", *_as_lines(pools, url, limits, findings)]))
    return int(any(finding.level == "error" for finding in findings))


def _nameless(file: str | None, pool: str, environ: Mapping[str, str]) -> list[Finding]:
    """Findings for a pool with neither a table in the file nor a variable: its name may be mistyped.

    Raises ConfigError if the file has a table with a similar name, or no setting that applies to this pool.
    """
    tables = [] if file is None else tables_of(file)
    prefix = variable_prefix(pool)
    if pool in tables or any(variable.startswith(prefix) for variable in variables_of(environ)):
        return []
    others = [name for name in tables if name != "default"]
    hint = nearest(pool, others) if others else ""
    missing = f"no environment variable starts with {prefix}" if file is None else f"{file} has no table [{pool}]"
    if hint.startswith("did you mean"):
        raise ConfigError(f"{missing}; {hint}", "pool")
    if file is not None and "default" not in tables:
        raise ConfigError(f"{missing}; its tables: {', '.join(others) or 'none'}", "pool")
    applies = "the settings for all pools" if file is None else "the settings for all pools ([default] first)"
    return [Finding("warning", pool, f"{missing}: only {applies} apply; check the name")]


def _of_pool(
    title: str,
    config: PoolConfig,
    limits: Limits | None,
    processes: int,
    request_timeout: float | None,
    deadline: float | None,
) -> list[Finding]:
    findings = [Finding("warning", title, text) for text in config.doubts()]
    findings += of_times(title, config, request_timeout, deadline)
    if limits is not None:
        findings += of_server(title, config, limits, processes)
    return findings


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _as_data(
    pools: dict[str, dict[str, Setting]], url: str | None, limits: Limits | None, findings: list[Finding]
) -> dict[str, Any]:
    server = None
    if url is not None:
        server = {"url": shown(url, 1000), "limits": None if limits is None else asdict(limits)}
    return {
        "pools": {
            name: {key: {"value": _plain(one.value), "source": one.source} for key, one in settings.items()}
            for name, settings in pools.items()
        },
        "server": server,
        "findings": [asdict(finding) for finding in findings],
    }


def _as_lines(
    pools: dict[str, dict[str, Setting]], url: str | None, limits: Limits | None, findings: list[Finding]
) -> list[str]:
    lines: list[str] = []
    for name, settings in pools.items():
        lines.append(name)
        lines += [f"  {key:<18} {one.value!r:<28} {one.source}" for key, one in settings.items()]
        lines.append("")
    if url is not None:
        lines.append(f"server {url}")
        if limits is not None:
            lines += [f"  {key:<18} {value}" for key, value in asdict(limits).items() if value is not None]
        lines.append("")
    if not findings:
        lines.append("no problems found")
    lines += [f"{finding.level}: {finding.pool}: {finding.text}" for finding in findings]
    return [shown(line, 2000) for line in lines]
