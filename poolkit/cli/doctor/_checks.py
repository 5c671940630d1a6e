"""The checks: settings against each other and against the limits of a server. Without I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from poolkit import PoolConfig

__all__ = ("Finding", "Limits", "of_server", "of_times")


@dataclass(frozen=True)
class Finding:
    """A problem. "error": it will fail; "warning": it may fail."""

    level: Literal["error", "warning"]
    pool: str
    text: str


@dataclass(frozen=True)
class Limits:
    """The limits of a server. None: unknown, or no such limit. Times in seconds.

    ``connections``: the maximum number of connections; ``reserved``: how many of them are for administrators;
    ``in_use``: how many are open now; ``idle_timeout``: the time after which the server closes idle connections.
    """

    server: str
    version: str | None = None
    connections: int | None = None
    connections_setting: str | None = None
    reserved: int = 0
    in_use: int | None = None
    idle_timeout: float | None = None
    idle_timeout_setting: str | None = None


def of_times(title: str, config: PoolConfig, request: float | None, deadline: float | None) -> list[Finding]:
    """Check connect < acquire < request < deadline of the service: each must leave time for the next."""
    return [Finding("warning", title, text) for text in _times(config, request, deadline)]


def _times(config: PoolConfig, request: float | None, deadline: float | None) -> Iterator[str]:
    given = {
        "connect_timeout": config.connect_timeout,
        "acquire_timeout": config.acquire_timeout,
        "request timeout": request,
        "deadline of the service": deadline,
    }
    steps = [(name, value) for name, value in given.items() if value is not None]
    for (inner, short), (outer, long) in pairwise(steps):
        known = outer == "acquire_timeout"  # PoolConfig.doubts() reports this one
        if short >= long and not known:
            yield (
                f"{inner}={short:g} is not below the {outer} ({long:g} s): the {outer} ends first and hides the "
                f"cause; lower the {inner} or raise the {outer}"
            )
    acquire = config.acquire_timeout
    if deadline is not None and acquire is None:
        yield f"acquire_timeout=None waits beyond the deadline of the service ({deadline:g} s)"
    if deadline is None or request is None or acquire is None:
        return
    if acquire < request < deadline < acquire + request:
        yield (
            f"acquire_timeout + request timeout = {acquire + request:g} s exceeds the deadline of the service "
            f"({deadline:g} s): a caller that waits long has no time left for its request"
        )


def of_server(title: str, config: PoolConfig, limits: Limits, processes: int) -> list[Finding]:
    """Check the pools of ``processes`` processes against the limits of the server."""
    return [*_connections(title, config, limits, processes), *_idle(title, config, limits)]


def _connections(title: str, config: PoolConfig, limits: Limits, processes: int) -> Iterator[Finding]:
    if limits.connections is None:
        return
    usable = limits.connections - limits.reserved
    name = f"{limits.connections_setting}={limits.connections}"
    if limits.reserved:
        name += f", {limits.reserved} of them reserved"
    if config.max_size is None:
        yield Finding("warning", title, f"max_size=None: the pool may exceed the limit of {limits.server} ({name})")
        return
    wanted = processes * config.max_size
    asked = f"{processes} x max_size={config.max_size} = {wanted}"
    if wanted > usable:
        yield Finding(
            "error", title,
            f"{asked} exceeds the limit of {limits.server} ({name}): set max_size to {max(1, usable // processes)} "
            "or less, or raise the limit",
        )  # fmt: skip
    elif wanted > 0.9 * usable:
        yield Finding(
            "warning", title,
            f"{asked} is nearly the limit of {limits.server} ({name}): during a deployment, old and new processes "
            "run at the same time",
        )  # fmt: skip
    elif limits.in_use is not None and wanted > usable - limits.in_use:
        yield Finding(
            "warning", title,
            f"{limits.in_use} connections of {limits.server} are in use now; {max(0, usable - limits.in_use)} are left "
            f"for the {wanted} of these pools ({name})",
        )  # fmt: skip


def _idle(title: str, config: PoolConfig, limits: Limits) -> Iterator[Finding]:
    if not limits.idle_timeout:
        return
    kept = min(config.idle_timeout or float("inf"), config.keepalive or float("inf"))
    if kept >= limits.idle_timeout:
        shown = "without a limit" if kept == float("inf") else f"for {kept:g} s"
        yield Finding(
            "warning", title,
            f"{limits.server} closes idle connections after {limits.idle_timeout:g} s ({limits.idle_timeout_setting}), "
            f"the pool keeps them {shown}: set idle_timeout or keepalive below it, for example to "
            f"{0.8 * limits.idle_timeout:g}",
        )  # fmt: skip
