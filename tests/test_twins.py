"""Pool and AsyncPool are twins: the same public names, the same parameters, the same defaults."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from poolkit import AsyncConnector, AsyncLease, AsyncPool, Connector, Lease, Pool

TWINS: list[tuple[Any, Any]] = [(Pool, AsyncPool), (Lease, AsyncLease), (Connector, AsyncConnector)]
# what a task needs because its release may have to wait
ASYNC_ONLY = {"release_nowait", "close_nowait"}
PLAIN = {"__init__", "__repr__"}


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_") or name in PLAIN}


@pytest.mark.parametrize(("sync", "async_"), TWINS, ids=lambda kind: kind.__name__)
def test_twins_have_the_same_public_names(sync: type, async_: type) -> None:
    assert set(public(async_)) - ASYNC_ONLY == set(public(sync))


@pytest.mark.parametrize(("sync", "async_"), TWINS, ids=lambda kind: kind.__name__)
def test_twins_take_the_same_parameters_with_the_same_defaults(sync: type, async_: type) -> None:
    for name, member in public(sync).items():
        if callable(member):
            mine = inspect.signature(member).parameters.values()
            other = inspect.signature(getattr(async_, name)).parameters.values()
            shown = [(p.name, p.kind, p.default) for p in mine]
            assert shown == [(p.name, p.kind, p.default) for p in other], name


@pytest.mark.parametrize(("sync", "async_"), TWINS, ids=lambda kind: kind.__name__)
def test_a_plain_method_of_one_is_plain_or_awaitable_on_purpose(sync: type, async_: type) -> None:
    """What does I/O or waits is a coroutine; what only decides is a plain method in both."""
    coroutines = {name for name, member in public(async_).items() if inspect.iscoroutinefunction(member)}
    expected = {
        AsyncPool: {"acquire", "close", "drain", "release", "warm_up"},
        AsyncLease: {"close"},
        AsyncConnector: {"check", "close", "connect", "connect_to", "reset"},
    }[async_]
    assert coroutines == expected
    assert not any(inspect.iscoroutinefunction(member) for member in public(sync).values())
