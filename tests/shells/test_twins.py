"""Pool and AsyncPool are twins: they have the same names, parameters, defaults and documentation."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from poolkit import AsyncConnector, AsyncLease, AsyncPool, Connector, Lease, Pool
from poolkit.testing import AsyncFakeConnector, FakeConnector

TWINS = [(Pool, AsyncPool), (Lease, AsyncLease), (Connector, AsyncConnector), (FakeConnector, AsyncFakeConnector)]
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
# a release that need not wait: in threads every release is one
ASYNC_ONLY = {"release_nowait", "close_nowait", "any_loop", "bounds_connects"}
# what a task awaits
AWAITED = {
    "acquire", "release", "warm_up", "drain", "close", "__aenter__", "__aexit__",
    "connect", "connect_to", "check", "reset",
}  # fmt: skip


def public(kind: type) -> dict[str, Any]:
    names = [name for name in dir(kind) if not name.startswith("_") or name in RENAMED or name in RENAMED.values()]
    return {RENAMED.get(name, name): inspect.getattr_static(kind, name) for name in names}


@pytest.mark.parametrize(("sync", "asynchronous"), TWINS)
def test_the_same_names(sync: type, asynchronous: type) -> None:
    assert set(public(asynchronous)) - set(public(sync)) <= ASYNC_ONLY
    assert set(public(sync)) <= set(public(asynchronous))


@pytest.mark.parametrize(("sync", "asynchronous"), TWINS)
def test_the_same_parameters_and_defaults(sync: type, asynchronous: type) -> None:
    twins = public(asynchronous)
    for name, one in [*public(sync).items(), ("__init__", sync.__init__)]:
        other = asynchronous.__init__ if name == "__init__" else twins[name]
        if not inspect.isfunction(one):
            continue
        mine, yours = inspect.signature(one).parameters, inspect.signature(other).parameters
        described = [(p.name, p.kind, p.default) for p in mine.values()]
        assert described == [(p.name, p.kind, p.default) for p in yours.values()], f"{sync.__name__}.{name}"


@pytest.mark.parametrize(("sync", "asynchronous"), TWINS)
def test_only_what_waits_is_awaited(sync: type, asynchronous: type) -> None:
    for name, member in public(asynchronous).items():
        if not inspect.isfunction(member) or member is public(sync).get(name):
            continue
        awaited = inspect.iscoroutinefunction(member)
        waits = name in AWAITED and not (asynchronous is AsyncConnector and name == "close_in_caller")
        assert awaited == waits, f"{asynchronous.__name__}.{name}"


@pytest.mark.parametrize(("sync", "asynchronous"), TWINS)
def test_everything_public_says_what_it_means(sync: type, asynchronous: type) -> None:
    for kind in (sync, asynchronous):
        for name, member in public(kind).items():
            if inspect.isfunction(member) and not name.startswith("__"):
                assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name}"


def test_the_same_annotations() -> None:
    for name, one in public(Pool).items():
        other = public(AsyncPool).get(name)
        if inspect.isfunction(one) and inspect.isfunction(other) and not name.startswith("__"):
            mine = {k: v for k, v in inspect.get_annotations(one).items() if k != "return"}
            yours = {k: v for k, v in inspect.get_annotations(other).items() if k != "return"}
            assert mine == yours, name
