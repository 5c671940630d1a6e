"""Writes the table of settings into ``docs/reference/settings.md`` from ``poolkit/config.py``.

``python docs/make_settings_table.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from marked import keep

from poolkit import AutoscaleConfig, BackoffConfig, BreakerConfig, ClassConfig, OverloadConfig, PoolConfig

ESSENTIAL = {
    "max_size": "What the server allows, divided by your processes. `poolkit size` computes it.",
    "acquire_timeout": "Below the timeout of the request that needs the connection: 1 to 5 in a web service.",
    "connect_timeout": "1 to 3 within a data centre, and below `acquire_timeout`.",
}
FREQUENT = {
    "min_size": "What a quiet hour needs, if the first connect is too slow for your callers.",
    "max_waiting": "What can be served in time: `max_size` times `acquire_timeout`, divided by the mean lease.",
    "max_lifetime": "Below the limit of a proxy or firewall in between.",
    "idle_timeout": "Below the idle limit of the server or of a proxy.",
    "check_after_idle": "1. 0 where a request must never meet a dead connection, at the price of a round trip.",
    "leak_after": "Ten times your longest intended lease: 30 in most web services.",
    "breaker": "`BreakerConfig()` where callers must fail at once while the server is down.",
}

RARE = {
    "max_idle": "The server has few sessions, and other processes need those that are idle here.",
    "order": '"fifo": all connections must be used regularly, because the server closes idle ones.',
    "start": '"eager": the first request must not wait for a connect.',
    "check_timeout": "A slow network, in which 2 s without an answer do not mean a dead connection.",
    "lifetime_jitter": "Many connections are opened at the same moment: 0.2 or more.",
    "keepalive": "A firewall or proxy drops idle connections: half of its limit.",
    "max_connecting": "Less: the server is slow to authenticate. More: a large pool must open at once.",
    "connect_in_caller": "The driver or a `connect` listener needs the caller's thread.",
    "on_leak": '"raise" in tests and staging; "reclaim" if a leak must not exhaust the pool.',
    "use_histogram": "You need quantiles of lease durations.",
    "barging_window": "0: strict order of arrival also in threads.",
    "backoff": "A longer `cap`: the server must not be asked every few seconds while it is down.",
    "autoscale": "The load changes by an order of magnitude, and idle connections cost the server much.",
    "overload": "None: the oldest caller comes first even if many callers give up.",
    "budget": "Several pools of a process, or of a fleet, use one server.",
    "budget_weight": "One of these pools is more important than the others.",
    "classes": "Some callers must get a connection even if others use the pool up.",
    "default_class": "Callers that choose no class must belong to a class of yours.",
}

LEGEND = """\
What holds with the one changed line, and in parentheses the argument of the driver that sets it. "none" means no
limit, or never; "-" means that the setting cannot apply. urllib3's column is the pool of one host, and requests has the
same values. httpx2 is as httpx, and valkey-py is as redis-py, but with a `connect_timeout` of 10."""

PAGE = Path(__file__).resolve().parent / "reference" / "settings.md"


def described(kind: type) -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of each setting, in the order of the class."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    types: dict[str, str] = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            types[node.target.id] = ast.unparse(node.annotation)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[node.target.id] = inspect.cleandoc(str(after.value.value))
    default = kind()
    rows = []
    for field in fields(kind):
        if field.name not in texts:
            raise SystemExit(f"{kind.__name__}.{field.name} has no description under it")
        value = getattr(default, field.name)
        shown = f"{type(value).__name__}()" if type(value).__module__.startswith("poolkit") else repr(value)
        rows.append((field.name, types[field.name], shown, texts[field.name]))
    return rows


def table(
    kind: type, prefix: str = "", chosen: Collection[str] | None = None, advice: Mapping[str, str] | None = None,
    title: str = "recommendation",
) -> str:  # fmt: skip
    """The settings of a class, all or only the ``chosen`` ones, with a column for ``advice`` if there is any."""
    last = [title] if advice else []
    head = ["setting", "type", "default", "meaning, and why this default", *last]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name, annotation, default, text in described(kind):
        if chosen is not None and name not in chosen:
            continue
        cells = [
            f"`{prefix}{name}`",
            annotation.replace("|", "or"),
            f"`{default}`",
            " ".join(text.replace("``", "`").split()),
            *([advice[name]] if advice else []),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def engines() -> dict[str, Any]:
    """An engine of each adapter with the driver's own arguments only. None of them connects."""
    import psycopg
    from sqlalchemy import create_engine

    from poolkit_adapters import asyncpg as pg_async
    from poolkit_adapters import httpx
    from poolkit_adapters import psycopg as pg
    from poolkit_adapters import redis as rd
    from poolkit_adapters import sqlalchemy as sa
    from poolkit_adapters.dbapi import PooledDatabase
    from poolkit_adapters.urllib3 import PoolkitHTTPConnectionPool

    return {
        "SQLAlchemy": sa.pool_of(create_engine("postgresql+psycopg://app@localhost/shop", poolclass=sa.PoolkitPool)),
        "redis-py": rd.PoolkitConnectionPool().poolkit,
        "httpx": httpx.Client(verify=False).poolkit,
        "urllib3": PoolkitHTTPConnectionPool("localhost").poolkit,
        "psycopg": pg.PoolkitConnectionPool("", open=False).poolkit,
        "asyncpg": pg_async.create_pool("").poolkit,
        "DB-API": PooledDatabase(psycopg, "").poolkit,
    }


def by_adapter() -> str:
    """What the essential and frequent settings are under each adapter, and which argument of the driver sets them."""
    found = {adapter: engine.describe() for adapter, engine in engines().items()}
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for name in (*ESSENTIAL, *FREQUENT):
        cells = []
        for settings in found.values():
            setting = settings[name]
            word = re.search(r"\((.+)\)$", setting.source)
            text = f"{setting.value:g}" if isinstance(setting.value, (int, float)) else "none"
            text = "-" if setting.source.startswith("not used") else text
            cells.append(f"{text} (`{word[1]}`)" if word and text != "-" else text)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def generated() -> str:
    rare = [name for name, *_ in described(PoolConfig) if name not in {*ESSENTIAL, *FREQUENT}]
    return "\n\n".join(
        ("### Essential", "Set these in every service.", table(PoolConfig, chosen=ESSENTIAL, advice=ESSENTIAL),
         "### Frequent", "Most services set some of these.", table(PoolConfig, chosen=FREQUENT, advice=FREQUENT),
         "### Under each adapter",
         LEGEND,
         by_adapter(),
         "### Rare", "The defaults are right unless the last column applies.",
         table(PoolConfig, chosen=rare, advice=RARE, title="set it if"),
         "### Backoff", table(BackoffConfig, "backoff."),
         "### Circuit breaker", table(BreakerConfig, "breaker."),
         "### Classes of callers", table(ClassConfig, "classes.NAME."),
         "### Elastic size", table(AutoscaleConfig, "autoscale."),
         "### Overload", table(OverloadConfig, "overload."))
    )  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of pools that are made and not used
    sys.exit(keep(PAGE, __file__, generated(), sys.argv[1:]))
