"""One rule for the names of all adapters; ``docs/adapters/index.md`` states it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import poolkit
import poolkit_adapters
from poolkit import errors
from poolkit.cluster import NoNodeAvailable
from tests.adapters.errors.test_tables import TABLES

ADAPTERS = sorted(path.parent.name for path in Path(poolkit_adapters.__file__).parent.glob("*/__init__.py"))
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adapters" / "index.md").read_text(encoding="utf-8")

OF_ONE_CASE = {
    "LeaseCut": errors.NotLeased,
    "RequestRefused": errors.ConnectFailed,
    "UnsupportedProtocol": errors.UsageError,
    "InvalidConninfo": errors.ConfigError,
}
"""Errors for a special case of one of poolkit's errors. The rule gives them their own names."""
OURS = {"role_of", "role_of_async", "pool_of"}
"""Functions that no driver has."""
WITHOUT_A_DRIVERS_CLASS = {"PooledDatabase", "PooledConnection", "PooledCursor"}
"""PEP 249 has no classes that these could be named after."""


def adapter(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"poolkit_adapters.{name}")
    except errors.MissingExtra as error:
        pytest.skip(str(error))


def exported(module: ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


def driver_of(name: str) -> list[ModuleType]:
    """Return the modules in which users find the driver's interface."""
    places = {"psycopg": ["psycopg_pool"], "sqlalchemy": ["sqlalchemy", "sqlalchemy.pool"], "urllib3": ["urllib3"]}
    return [importlib.import_module(place) for place in places.get(name, [name])]


def test_no_adapter_is_left_out() -> None:
    installed = {name for name in ADAPTERS if importlib.util.find_spec(f"poolkit_adapters.{name}")}
    assert installed == set(ADAPTERS)
    for name in ADAPTERS:
        assert f"poolkit_adapters.{name}" in PAGE, f"{name} is not in the table of adapters"
        assert f"poolkit_adapters.{name}`" in str(poolkit_adapters.__doc__), (
            f"{name}: not in poolkit_adapters' docstring"
        )


@pytest.mark.parametrize("name", TABLES)
def test_an_error_has_the_name_of_the_error_of_poolkit_that_it_is(name: str) -> None:
    named = {row.bases[0]: False for row in TABLES[name]}
    for row in TABLES[name]:
        base, kind = row.bases[0], row.error
        if not kind.__module__.startswith("poolkit_adapters."):
            named[base] = True  # poolkit's own class, or the driver's with poolkit's type added
        elif kind.__name__ in OF_ONE_CASE:
            assert base is OF_ONE_CASE[kind.__name__]
            named[base] = named[base] or base is errors.ConfigError
        else:
            assert kind.__name__ == ("NoServerAvailable" if base is NoNodeAvailable else base.__name__)
            named[base] = True
    assert all(named.values()), f"{[base for base, done in named.items() if not done]} have no class by the rule"


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_class_is_named_after_the_drivers_class_in_whose_place_it_stands(name: str) -> None:
    module = adapter(name)
    names = exported(module)
    for word, value in names.items():
        if inspect.isclass(value) and issubclass(value, BaseException):
            continue
        drivers = [getattr(place, word, None) for place in driver_of(name)] if name != "dbapi" else []
        if any(drivers):  # a function that replaces the driver's has the driver's name
            assert all(value is not one for one in drivers)
        elif inspect.isclass(value):
            assert re.match("(Async)?Poolkit[A-Z]", word) or word in WITHOUT_A_DRIVERS_CLASS, word
        else:
            assert word in OURS, word
        if word.startswith("Async"):
            assert word.removeprefix("Async") in names, f"{word} has no synchronous twin"


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_former_name_means_the_same_class_and_is_not_exported(name: str) -> None:
    module = adapter(name)
    for word, value in vars(module).items():
        if inspect.isclass(value) and value.__module__.startswith("poolkit_adapters.") and word not in module.__all__:
            assert getattr(module, value.__name__) is value, word
            assert issubclass(value, poolkit.PoolError)


def test_the_former_names_are_there() -> None:
    from poolkit_adapters import asyncpg, psycopg, redis, sqlalchemy

    assert redis.RedisConnectFailed is redis.ConnectFailed
    assert redis.RedisNoServerAvailable is redis.NoServerAvailable
    assert sqlalchemy.PoolConnectFailed is sqlalchemy.ConnectFailed
    assert psycopg.TooManyRequests is psycopg.PoolBusy
    assert asyncpg.ForeignConnection is asyncpg.NotLeased
