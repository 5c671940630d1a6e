"""An overridden method takes every argument of the driver's method, by position and by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import poolkit_adapters
from poolkit.errors import MissingExtra

PACKAGES = sorted(one.name for one in pkgutil.iter_modules(poolkit_adapters.__path__) if one.ispkg)

OTHER_ARGUMENTS = {
    # the class replaces another class of the driver, whose arguments it has
    "redis._base.PoolBase.__init__": "BlockingConnectionPool",
    "valkey._base.PoolBase.__init__": "BlockingConnectionPool",
    "sqlalchemy._pool.BasePool.__init__": "QueuePool",
    # only the adapter creates these objects
    "asyncpg._proxy.PoolConnectionProxy.__init__": "made by a pool",
    "redis._group.GroupConnectionPool.__init__": "made by a group",
    "redis._group.AsyncGroupConnectionPool.__init__": "made by a group",
    "valkey._group.GroupConnectionPool.__init__": "made by a group",
    "valkey._group.AsyncGroupConnectionPool.__init__": "made by a group",
    "sqlalchemy._record.Record.__init__": "made by a pool",
    "sqlalchemy._io.WatchedRecord.__init__": "made by a pool",
    "sqlalchemy._async_io.AsyncRecord.__init__": "made by a pool",
    "sqlalchemy._fairy.Fairy.__init__": "made by a pool",
    # eleven optional arguments, which redis-py passes by name
    "redis._sync.PoolkitConnectionPool.update_connections_settings": "by name only",
}
"""Methods that are narrower than the driver's, each with the reason."""


def is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"poolkit", "poolkit_adapters"}


def classes_of(package: str) -> Iterator[type]:
    folder = importlib.import_module(f"poolkit_adapters.{package}")
    for one in pkgutil.iter_modules(folder.__path__):
        try:
            module = importlib.import_module(f"{folder.__name__}.{one.name}")
        except MissingExtra:  # PySocks
            continue
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and not issubclass(value, BaseException):
                yield value


def function_of(kind: type, name: str) -> Any:
    found = vars(kind)[name]
    return inspect.unwrap(getattr(found, "__func__", found))


def overridden(kind: type) -> Iterator[tuple[Any, Any]]:
    """Yield the adapter's function and the driver's function of each method that an adapter overrides."""
    for name in sorted({name for one in kind.__mro__ for name in vars(one)}):
        owners = [one for one in kind.__mro__ if name in vars(one) and one.__module__ not in {"builtins", "typing"}]
        theirs = next((one for one in owners if not is_ours(one)), None)
        if theirs is None or not is_ours(owners[0]):
            continue
        pair = function_of(owners[0], name), function_of(theirs, name)
        if all(map(inspect.isfunction, pair)):
            yield pair


def what_is_narrower(ours: Any, theirs: Any) -> list[str]:
    """Return what the driver's function accepts and the adapter's does not."""
    mine, asked = (list(inspect.signature(one).parameters.values())[1:] for one in (ours, theirs))
    kinds = {one.kind for one in mine}
    empty, by_place, by_name = inspect.Parameter.empty, "POSITIONAL_ONLY", "KEYWORD_ONLY"
    either, places, names = "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "VAR_KEYWORD"
    any_place, any_name = (any(kind.name == one for kind in kinds) for one in (places, names))
    in_order = [one.name for one in mine if one.kind.name in (by_place, either)]
    named = {one.name: one for one in mine if one.kind.name in (by_name, either)}
    syntax = ours.__name__.startswith("__") and ours.__name__ != "__init__"  # the interpreter calls it by position
    found = []
    for place, one in enumerate(asked):
        if one.kind.name in (by_place, either):
            wanted = in_order[place] if place < len(in_order) else None
            if not any_place if wanted is None else not syntax and one.kind.name == either and wanted != one.name:
                found.append(f"{one.name} by position")
        if one.kind.name in (by_name, either) and not syntax and one.name not in named and not any_name:
            found.append(f"{one.name} by name")
        if one.default is not empty and one.name in named and named[one.name].default is empty:
            found.append(f"a call without {one.name}")
        if (one.kind.name == places and not any_place) or (one.kind.name == names and not any_name):
            found.append(f"further arguments ({one})")
    known = {one.name for one in asked}
    added = [one for one in mine if one.kind.name not in (places, names) and one.name not in known and not syntax]
    return found + [f"a call without {one.name}" for one in added if one.default is empty]


@pytest.mark.parametrize("package", PACKAGES)
def test_an_overridden_method_takes_what_the_drivers_takes(package: str) -> None:
    try:
        pairs = {pair for kind in classes_of(package) for pair in overridden(kind)}
    except MissingExtra as error:
        pytest.skip(str(error))
    narrower = []
    for ours, theirs in pairs:
        name = f"{ours.__module__}.{ours.__qualname__}".removeprefix("poolkit_adapters.")
        found = what_is_narrower(ours, theirs)
        if found and name not in OTHER_ARGUMENTS:
            narrower.append(f"{name}: does not take what {theirs.__qualname__} takes: {', '.join(found)}")
    assert not narrower, "\n".join(sorted(narrower))


def test_a_narrower_method_is_found() -> None:
    def driver(self: Any, one: int, two: int = 0, *, three: int = 0, **further: int) -> None: ...

    def same(self: Any, *args: int, **given: int) -> None: ...

    def narrow(self: Any, one: int, *, two: int, four: int) -> None: ...

    assert what_is_narrower(same, driver) == []
    assert what_is_narrower(driver, driver) == []
    assert what_is_narrower(narrow, driver) == [
        "two by position", "a call without two", "three by name", "further arguments (**further: 'int')",
        "a call without four",
    ]  # fmt: skip
