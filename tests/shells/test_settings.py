"""Settings: each mistake raises an error at once, with the value, its source and what would be right."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import (
    AsyncConnector,
    AsyncPool,
    BackoffConfig,
    BreakerConfig,
    ConfigError,
    Connector,
    NotLeased,
    Pool,
    PoolClosed,
    PoolConfig,
    PoolConfigWarning,
    load,
)
from poolkit.testing import AsyncFakeConnector, FakeConnector

COUNTS = {"min_size": 0, "max_size": 1, "max_idle": 0, "max_waiting": 0, "max_connecting": 1}
TIMES = {
    "acquire_timeout": True,  # may be 0
    "connect_timeout": False,
    "check_timeout": False,
    "max_lifetime": False,
    "idle_timeout": False,
    "keepalive": False,
    "check_after_idle": True,
    "leak_after": False,
    "barging_window": True,
}


def _pickled(config: PoolConfig, protocol: int) -> PoolConfig:
    again = pickle.loads(pickle.dumps(config, protocol))
    assert isinstance(again, PoolConfig)
    return again


def refused(text: str, **settings: Any) -> None:
    """Check that PoolConfig, keywords of a pool and reconfigure() raise the same error."""
    with pytest.raises(ConfigError, match=text):
        PoolConfig(**settings)
    with pytest.raises(ConfigError, match=text) as caught:
        Pool(FakeConnector(), **settings)
    assert caught.value.setting in {*settings, "min_size", "max_idle"}
    with pytest.raises(ConfigError, match=text):
        AsyncPool(AsyncFakeConnector(), **settings)


@pytest.mark.parametrize("name", sorted(COUNTS))
@pytest.mark.parametrize("value", [-1, 1.5, "5", True, math.nan, [], 2**0.5])
def test_counts_are_whole_numbers(name: str, value: object) -> None:
    refused(rf"{name}=.*: must be a whole number, {COUNTS[name]} or more", **{name: value})


@pytest.mark.parametrize("name", [name for name, low in sorted(COUNTS.items()) if low == 1])
def test_counts_that_cannot_be_zero(name: str) -> None:
    refused(f"{name}=0: must be", **{name: 0})


@pytest.mark.parametrize("name", sorted(TIMES))
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf, "5", True, 1j, [], {}])
def test_times_are_seconds(name: str, value: object) -> None:
    refused(rf"{name}=.*: must be a time in seconds", **{name: value})


@pytest.mark.parametrize(("name", "zero"), sorted(TIMES.items()))
def test_zero_seconds_where_that_means_something(name: str, zero: bool) -> None:
    if zero:
        assert getattr(PoolConfig(**{name: 0}), name) == 0
    else:
        refused(f"{name}=0: must be a time in seconds, above 0", **{name: 0})


@pytest.mark.parametrize("name", sorted([*TIMES, "max_size", "max_idle", "max_waiting", "max_connecting"]))
def test_none_is_possible_and_means_something(name: str) -> None:
    assert getattr(PoolConfig(**{name: None}), name) is None


def test_min_size_needs_a_number() -> None:
    refused("min_size=None: must be a whole number", min_size=None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"min_size": 11}, r"min_size=11: must be at most max_size \(10\)"),
        ({"min_size": 3, "max_size": 2}, r"min_size=3: must be at most max_size \(2\)"),
        ({"max_idle": 11}, r"max_idle=11: must be at most max_size \(10\)"),
        ({"min_size": 5, "max_idle": 4}, r"min_size=5: must be at most max_idle \(4\)"),
        ({"order": "random"}, "order='random': must be 'lifo' or 'fifo'"),
        ({"order": None}, "order=None"),
        ({"start": "later"}, "start='later': must be 'lazy' or 'eager'"),
        ({"lifetime_jitter": 1}, "lifetime_jitter=1: must be a share"),
        ({"lifetime_jitter": -0.1}, "lifetime_jitter=-0.1"),
        ({"lifetime_jitter": math.nan}, "lifetime_jitter=nan"),
        ({"backoff": 5}, "backoff=5: must be a BackoffConfig"),
        ({"breaker": True}, "breaker=True: must be a BreakerConfig, or None"),
    ],
)
def test_impossible_values(settings: dict[str, Any], text: str) -> None:
    refused(text, **settings)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BackoffConfig(base=0), r"backoff\.base=0"),
        (lambda: BackoffConfig(base=2, cap=1), r"backoff\.cap=1: must be at least backoff\.base \(2\)"),
        (lambda: BreakerConfig(failure_threshold=0), r"breaker\.failure_threshold=0"),
        (lambda: BreakerConfig(reset_timeout=-1), r"breaker\.reset_timeout=-1"),
    ],
)
def test_parts_are_checked_too(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(
    ("wrong", "right"), [("max_sise", "max_size"), ("idle_time", "idle_timeout"), ("connectTimeout", "connect_timeout")]
)
def test_the_error_for_an_unknown_name_has_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"{wrong}=3 .*no such setting; did you mean '{right}'"):
        Pool(FakeConnector(), **{wrong: 3})
    with pytest.raises(ConfigError, match=f"did you mean '{right}'"):
        PoolConfig().replace(**{wrong: 3})
    with pytest.raises(ConfigError, match=f"did you mean '{right}'"):
        load(**{wrong: 3})


def test_the_error_for_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(ConfigError, match="known: min_size, max_size"):
        Pool(FakeConnector(), zzz=1)


@pytest.mark.parametrize("config", [{"max_size": 3}, 3, "max", PoolConfig])
def test_config_must_be_a_config(config: Any) -> None:
    with pytest.raises(ConfigError, match="must be a PoolConfig"):
        Pool(FakeConnector(), config)


def test_a_config_error_is_a_value_error_and_survives_pickling() -> None:
    with pytest.raises(ValueError, match="max_size=0") as caught:
        PoolConfig(max_size=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.setting == "max_size"


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PoolConfig().max_size = 3  # type: ignore[misc]
    assert PoolConfig().replace(max_size=3).max_size == 3
    assert PoolConfig(max_size=3) == PoolConfig(max_size=3)


# -- who wrote what -----------------------------------------------------------------------------------------------


def sources(config: PoolConfig) -> dict[str, str]:
    """Return the source of each setting that is not a default."""
    described = Pool(FakeConnector(), config).describe()
    return {name: setting.source for name, setting in described.items() if setting.source != "default"}


def test_a_config_knows_what_was_written_even_if_it_equals_a_default() -> None:
    config = PoolConfig(max_size=10, keepalive=None)
    assert sources(config) == {"max_size": "config", "keepalive": "config"}
    assert sources(PoolConfig()) == {}


def test_to_know_what_was_written_changes_nothing_else() -> None:
    written, plain = PoolConfig(max_size=10), PoolConfig()
    assert written == plain
    assert hash(written) == hash(plain)
    assert repr(written) == repr(plain)
    assert dataclasses.asdict(written) == dataclasses.asdict(plain)
    assert list(inspect.signature(PoolConfig).parameters) == [field.name for field in dataclasses.fields(PoolConfig)]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, *[partial(_pickled, protocol=n) for n in range(pickle.HIGHEST_PROTOCOL + 1)]],
)
def test_a_copy_of_a_config_knows_it_too(copied: Callable[[PoolConfig], PoolConfig]) -> None:
    again = copied(PoolConfig(max_size=10))
    assert again == PoolConfig()
    assert sources(again) == {"max_size": "config"}


def test_replace_adds_to_what_was_written() -> None:
    config = PoolConfig(max_size=10)
    assert sources(config.replace(min_size=0)) == {"max_size": "config", "min_size": "replace()"}
    assert sources(config) == {"max_size": "config"}
    if sys.version_info >= (3, 13):
        assert sources(copy.replace(config, min_size=0)) == {"max_size": "config", "min_size": "replace()"}
    # this one has only values
    assert sources(dataclasses.replace(config, min_size=1, max_size=11)) == {"max_size": "config", "min_size": "config"}


def test_the_defaults_of_a_subclass_count_as_written() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Small(PoolConfig):
        max_size: int | None = 3
        note: str = ""

    config = Small(acquire_timeout=30.0, note="ours")
    assert sources(config) == {"max_size": "config", "acquire_timeout": "config"}
    with Pool(FakeConnector(), config, min_size=1) as pool:
        assert pool.config == Small(acquire_timeout=30.0, note="ours", min_size=1)


def test_reconfigure_with_the_same_value_is_a_source_too() -> None:
    with Pool(FakeConnector(), PoolConfig(max_size=7)) as pool:
        pool.reconfigure(max_size=7, keepalive=None)
        assert (pool.describe()["max_size"].source, pool.describe()["keepalive"].source) == ("reconfigure()",) * 2


# -- combinations that are hardly meant ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"connect_timeout": 30}, "connect_timeout=30 is not below acquire_timeout=30.0: one slow connect uses up"),
        ({"connect_timeout": None}, "connect_timeout=None is not below"),
        ({"keepalive": 600}, "keepalive=600 is not below idle_timeout=600.0: .* before their first heartbeat"),
        ({"idle_timeout": 1800}, "idle_timeout=1800 is not below max_lifetime=1800.0: it can never take effect"),
        ({"check_timeout": 30}, "check_timeout=30 is not below acquire_timeout"),
    ],
)
def test_doubtful_combinations_warn_where_the_pool_is_made(settings: dict[str, Any], text: str) -> None:
    for make in (lambda: Pool(FakeConnector(), **settings), lambda: AsyncPool(AsyncFakeConnector(), **settings)):
        with pytest.warns(PoolConfigWarning, match=text) as caught:
            make()
        assert caught[0].filename == __file__


def test_a_written_default_is_doubted_like_any_other_value() -> None:
    assert PoolConfig(connect_timeout=10.0, acquire_timeout=5).doubts() != []
    assert PoolConfig(acquire_timeout=5).doubts() == []


def test_the_defaults_raise_no_doubts() -> None:
    assert PoolConfig().doubts() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pool(FakeConnector())


def test_reconfigure_warns_too() -> None:
    pool = Pool(FakeConnector())
    with pytest.warns(PoolConfigWarning, match="keepalive"):
        pool.reconfigure(keepalive=700)


# -- files, environment, keywords ---------------------------------------------------------------------------------

TOML = """
[default]
max_size = 20
idle_timeout = 60
max_lifetime = "none"

[orders-db]
max_size = 30
[orders-db.backoff]
base = 0.5
cap = 2
"""
YAML = """
default:
  max_size: 20
  idle_timeout: 60
  max_lifetime: null
orders-db:
  max_size: 30
  backoff: {base: 0.5, cap: 2}
"""


@pytest.fixture(params=["pools.toml", "pools.yaml", "pools.yml"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_text(TOML if path.suffix == ".toml" else YAML)
    return path


def test_later_sources_win(file: Path) -> None:
    environ = {"POOLKIT_ORDERS_DB_MAX_SIZE": "40", "POOLKIT_MIN_SIZE": "2", "OTHER": "x"}
    config = load("orders-db", file=file, environ=environ, acquire_timeout=7)
    assert (config.max_size, config.min_size, config.idle_timeout, config.acquire_timeout) == (40, 2, 60, 7)
    assert config.backoff == BackoffConfig(base=0.5, cap=2)
    assert config.max_lifetime is None
    described = Pool(FakeConnector(), config, max_waiting=9).describe()
    sources = {name: described[name].source for name in described}
    assert sources["max_size"] == "POOLKIT_ORDERS_DB_MAX_SIZE"
    assert sources["min_size"] == "POOLKIT_MIN_SIZE"
    assert sources["idle_timeout"] == f"{file} [default]"
    assert sources["backoff"] == f"{file} [orders-db]"
    assert sources["acquire_timeout"] == "keyword"
    assert sources["max_waiting"] == "keyword"
    assert sources["keepalive"] == "default"
    assert described["max_size"].value == 40
    assert list(described) == [field.name for field in dataclasses.fields(PoolConfig)]


def test_the_sources_of_a_config_given_in_code() -> None:
    described = AsyncPool(AsyncFakeConnector(), PoolConfig(max_size=3), min_size=1).describe()
    assert (described["max_size"].source, described["min_size"].source) == ("config", "keyword")


def test_a_pool_that_no_file_names_gets_the_default_table(file: Path) -> None:
    assert load("unknown", file=file, environ={}).max_size == 20
    assert load(file=file, environ={}).max_size == 20


def test_what_only_fits_together_may_come_from_two_sources(file: Path) -> None:
    """min_size=25 contradicts the default max_size, but the pool's own table allows 30."""
    config = load("orders-db", file=file, environ={"POOLKIT_MIN_SIZE": "25"})
    assert (config.min_size, config.max_size) == (25, 30)
    config = load(environ={"POOLKIT_MIN_SIZE": "15", "POOLKIT_MAX_SIZE": "20"})
    assert (config.min_size, config.max_size) == (15, 20)
    with pytest.raises(ConfigError, match=r"min_size=35: must be at most max_size \(30\)") as caught:
        load("orders-db", file=file, environ={"POOLKIT_MIN_SIZE": "35"})
    assert "min_size from POOLKIT_MIN_SIZE" in str(caught.value)
    assert f"max_size from {file} [orders-db]" in str(caught.value)


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKIT_JOBS_MAX_SIZE", "7")
    assert load("jobs").max_size == 7


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("POOLKIT_DB_MAX_SIZE", "many", r"max_size='many' \(from POOLKIT_DB_MAX_SIZE\): must be a whole number"),
        ("POOLKIT_DB_MAX_SIZE", "2.5", "must be a whole number"),
        ("POOLKIT_DB_MAX_SIZE", "-1", r"max_size=-1: must be .*\(from POOLKIT_DB_MAX_SIZE\)"),
        ("POOLKIT_DB_IDLE_TIMEOUT", "nan", r"idle_timeout=nan.*\(from POOLKIT_DB_IDLE_TIMEOUT\)"),
        ("POOLKIT_DB_IDLE_TIMEOUT", "10s", "must be a number"),
        ("POOLKIT_DB_MIN_SIZE", "none", "min_size='none'"),
        ("POOLKIT_DB_ORDER", "up", r"order='up'.*\(from POOLKIT_DB_ORDER\)"),
        ("POOLKIT_DB_BREAKER", "5", "use a file or a keyword"),
        ("POOLKIT_DB_MAX_SISE", "5", "POOLKIT_DB_MAX_SISE='5': no such setting; did you mean 'max_size'"),
    ],
)
def test_mistakes_in_the_environment(variable: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load("db", environ={variable: value})


@pytest.mark.parametrize("name", ["db", None])
@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("POOLKIT_MAX_SZIE", "max_size"),
        ("POOLKIT_ACQUIRE_TIMOUT", "acquire_timeout"),
        ("POOLKIT_TIMEOUT", "idle_timeout"),
    ],
)
def test_a_mistyped_variable_for_every_pool_is_told(name: str | None, variable: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}='5': no such setting; did you mean '{right}'"):
        load(name, environ={variable: "5"})


@pytest.mark.parametrize(
    "variable",
    ["POOLKIT_SERVICE_HOST", "POOLKIT_SERVICE_PORT_HTTP", "POOLKIT_PORT", "POOLKIT_PORT_80_TCP_ADDR", "POOLKIT_WORKERS",
     "POOLKIT_VERSION", "POOLKIT_LOG_LEVEL", "POOLKIT_OTHER_DB_MAX_SIZE", "POOLKIT_OTHER_DB_MAX_SZIE"],
)  # fmt: skip
def test_other_variables_are_no_mistake(variable: str) -> None:
    """Kubernetes sets some for a service with the name "poolkit"; others belong to other pools."""
    assert load("db", environ={variable: "5"}) == PoolConfig()


def test_none_in_the_environment() -> None:
    config = load(
        "db", environ={"POOLKIT_DB_MAX_SIZE": "None", "POOLKIT_IDLE_TIMEOUT": "none", "POOLKIT_DB_ORDER": "fifo"}
    )
    assert (config.max_size, config.idle_timeout, config.order) == (None, None, "fifo")


@pytest.mark.parametrize("name", ["max_size", "acquire_timeout", "min_size", "order", "breaker", "no_setting_at_all"])
@pytest.mark.parametrize("prefix", ["POOLKIT_", "POOLKIT_DB_"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_not_set(name: str, prefix: str, value: str) -> None:
    """``${UNSET}`` in the file of a deployment must not mean a pool without a limit."""
    assert sources(load("db", environ={prefix + name.upper(): value})) == {}


@pytest.mark.parametrize("pool", ["db", None])
@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("BREAKER_FAILURE_THRESHOLD", "breaker.failure_threshold"),
        ("BREAKER_FAILURE_TRESHOLD", "breaker.failure_threshold"),
        ("OVERLOAD_MAX_WAIT", "overload.max_wait"),
        ("AUTOSCALE_TARGET", "autoscale.target"),
        ("BACKOFF_CAP", "backoff.cap"),
        ("CLASSES_WEB_WEIGHT", "classes.web.weight"),
    ],
)
def test_a_setting_in_a_table_cannot_be_set_by_a_variable(pool: str | None, variable: str, setting: str) -> None:
    for prefix in ("POOLKIT_", "POOLKIT_DB_") if pool else ("POOLKIT_",):
        text = rf"{setting}='3' \(from {prefix}{variable}\): cannot be set in the environment; use a file or a keyword"
        with pytest.raises(ConfigError, match=text):
            load(pool, environ={prefix + variable: "3"})
    assert load("other", environ={f"POOLKIT_DB_{variable}": "3"}) == PoolConfig()


@pytest.mark.parametrize(
    ("name", "setting"), [("max", "max_size"), ("check", "check_timeout"), ("acquire", "acquire_timeout")]
)
def test_a_pool_may_be_named_as_a_setting_begins(name: str, setting: str) -> None:
    assert getattr(load(name, environ={f"POOLKIT_{setting.upper()}": "3"}), setting) == 3
    with pytest.raises(ConfigError, match="no such setting"):
        load(name, environ={f"POOLKIT_{name.upper()}_TIMEOUTS": "3"})


@pytest.mark.parametrize("setting", ["acquire_timeout", "max_waiting", "start", "budget_weight", "connect_timeout"])
@pytest.mark.parametrize("table", ["breaker", "overload", "autoscale", "classes", "backoff"])
@pytest.mark.parametrize("pool", ["{}", "orders-{}", "{}-db"])
def test_a_pool_may_be_named_as_a_table_of_settings(pool: str, table: str, setting: str) -> None:
    name = pool.format(table)
    value = "eager" if setting == "start" else "3"
    environ = {f"POOLKIT_{name.upper().replace('-', '_')}_{setting.upper()}": value}
    assert str(getattr(load(name, environ=environ), setting)).startswith(value)
    for other in ("orders", table):
        if other != name:
            assert load(other, environ=environ) == PoolConfig()


def test_a_pool_may_be_named_as_kubernetes_names_a_port() -> None:
    environ = {"POOLKIT_SERVICE_PORT_MAX_SIZE": "3"}
    assert load("service-port", environ=environ).max_size == 3
    assert load("service", environ=environ) == PoolConfig()


def test_variables_of_a_pool_with_a_longer_name_are_no_mistake() -> None:
    assert load("orders", environ={"POOLKIT_ORDERS_DB_MAX_SIZE": "5"}).max_size == 10


@pytest.mark.parametrize(
    "variable",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_5432_TCP", "PORT_5432_TCP_PROTO",
     "PORT_5432_TCP_PORT", "PORT_5432_TCP_ADDR", "PORT_53_UDP", "PORT_38412_SCTP_ADDR"],
)  # fmt: skip
def test_the_variables_that_kubernetes_sets_for_a_service_are_no_mistake(variable: str) -> None:
    """For a service "poolkit-orders", beside a pool "orders"."""
    assert load("orders", environ={f"POOLKIT_ORDERS_{variable}": "5"}) == PoolConfig()
    with pytest.raises(ConfigError, match="no such setting"):
        load("orders", environ={f"POOLKIT_ORDERS_X{variable}S": "5"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[db]\nmax_sise = 3", r"max_sise=3 \(from .*a\.toml \[db\]\): no such setting; did you mean"),
        ("a.toml", "[db]\nmax_size = '3'", r"max_size='3': must be a whole number.*\(from .*a\.toml \[db\]\)"),
        ("a.toml", "[db]\nbackoff = 3", "backoff=3: must be a BackoffConfig"),
        ("a.toml", "[db.backoff]\nbsae = 3", r"backoff\.bsae=3: no such setting; did you mean 'base'.*a\.toml"),
        ("a.toml", "[db.breaker]\nreset_timeout = 0", r"breaker\.reset_timeout=0.*a\.toml"),
        ("a.toml", "[db", "not valid TOML"),
        ("a.toml", "db = 3", r"\[db\] must be a table"),
        ("a.toml", "default = 3", r"\[default\] must be a table"),
        ("a.toml", "max_size = 3", r"a\.toml: max_size=3: must be in a table: \[default\] for every pool"),
        ("a.toml", "[breaker]\nfailure_threshold = 3", r"breaker={'failure_threshold': 3}: must be in a table"),
        ("a.toml", "[classes.web]\nweight = 3", r"classes={'web': {'weight': 3}}: must be in a table"),
        ("a.toml", "[DB]\nmax_size = 3", r"a\.toml has no table \[db\]; did you mean 'DB'\?"),
        ("a.toml", "[defaults]\nmax_size = 3", r"\[defaults\]: the table for every pool is \[default\]"),
        ("a.toml", "[Default]\nmax_size = 3", r"\[Default\]: the table for every pool is \[default\]"),
        ("a.toml", "[db.one]\nmax_size = 3", r"\[db\.one\]: no such setting \(a name with a dot goes in quotes\)"),
        (
            "a.toml",
            "[default.a]\nmax_size = 3",
            r"\[default\.a\]: no such setting \(a name with a dot goes in quotes\)",
        ),
        ("a.toml", f"[db]\nmax_size = {'9' * 5000}", "not valid TOML: Exceeds the limit"),
        ("a.yaml", "db:\n  max_size: 2026-06-31", "not valid YAML: day is out of range"),
        ("a.yaml", "db: [", "not valid YAML"),
        ("a.yaml", "- db", "one table of settings"),
        ("a.yaml", "db:\n  1: 2", "1=2 .*no such setting"),
        ("a.json", "{}", r"must be a \.toml, \.yaml or \.yml file"),
        ("", "", "cannot be read"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / (name or "missing.toml")
    if name:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load("db", file=path, environ={})


@pytest.mark.parametrize(
    ("pool", "name", "text", "message"),
    [
        ("eu.db", "a.toml", "[eu.db]\nmax_size = 3", r"no table \[eu\.db\]; \[eu\.db\] is another: a name with a dot"),
        ("a.b.c", "a.toml", "[a.B.c]\nmax_size = 3", r"no table \[a\.b\.c\]; \[a\.B\.c\] is another: a name with a"),
        ("on", "a.yaml", "on:\n  max_size: 3", r"\[True\]: the name of a table must be a text; put it in quotes"),
        (None, "a.toml", "[defaults]\nmax_size = 3", r"\[defaults\]: the table for every pool is \[default\]"),
    ],
)
def test_a_table_that_must_be_meant_for_the_pool(
    tmp_path: Path, pool: str | None, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(pool, file=path, environ={})
    assert load("other", file=path, environ={}) == PoolConfig() if pool else True


def test_a_setting_in_the_table_of_another_pool_is_no_table_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "pools.toml"
    path.write_text("[orders.backoff]\nbase = 0.5\n")
    assert load("orders-backoff", file=path, environ={}) == PoolConfig()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "version: 1\nx-list: [1, 2]\non: push\nnull: 1\n2026-01-01: {}\norders-db:\n  max_size: 7\n"),
        ("a.yaml", "all: &all {me: *all}\norders-db:\n  max_size: 7\n"),
        ("a.toml", "debug = true\n[logging.handlers]\nclass = 'x'\n[orders-db]\nmax_size = 7\n"),
        ("a.toml", "[fault]\nmax_size = 1\n[orders-db]\nmax_size = 7\n"),
        ("a.toml", "[orders.db]\nmax_size = 1\n[orders-db]\nmax_size = 7\n"),
        ("a.toml", "[breaker]\nbrand = 'x'\n[order.lines]\nx = 1\n[classes]\nx = 1\n[orders-db]\nmax_size = 7\n"),
    ],
)
def test_other_entries_belong_to_the_application(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert load("orders-db", file=path, environ={}).max_size == 7
    assert load("users", file=path, environ={}) == PoolConfig()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("defaults", "defaults: &defaults {max_size: 7}\norders-db: {<<: *defaults}\n"),
        ("Default", "Default: {max_size: 6}\norders-db: {max_size: 7}\n"),
        ("defualt", "defualt: {max_size: 6}\norders-db: {max_size: 7}\n"),
    ],
)
def test_what_may_be_meant_as_the_default_table_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """``defaults`` is a common anchor in YAML. A pool without a table would have neither, so that is an error."""
    monkeypatch.setattr(poolkit.settings, "_said", set())
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    for _ in range(2):
        assert load("orders-db", file=path, environ={}).max_size == 7
    told = f"{path}: [{name}]: the table for every pool is [default]"
    assert [record.getMessage() for record in caplog.records] == [told]
    if name != "defualt":
        with pytest.raises(ConfigError, match=rf"\[{name}\]: the table for every pool is \[default\]"):
            load("users", file=path, environ={})
    path.write_text(text + "default: {max_size: 5}\n")
    assert load("users", file=path, environ={}).max_size == 5
    assert len(caplog.records) == 1


def test_a_table_with_a_number_for_a_name(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text("5432:\n  max_size: 3\n")
    assert load("5432", file=path, environ={}).max_size == 3


@pytest.mark.parametrize("text", ["db:\n  # max_size: 3\ndefault:\n  max_size: 4", "default: {max_size: 4}\ndb: {}"])
def test_an_empty_table_is_no_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    assert load("db", file=path, environ={}).max_size == 4


def test_a_table_whose_name_is_also_that_of_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "pools.toml"
    path.write_text("[order]\nmax_size = 3\n")
    assert load("order", file=path, environ={}).max_size == 3


@pytest.mark.parametrize(
    ("pool", "table", "told"),
    [
        ("orders-db", "order-db", True),
        ("cache", "cahce", True),
        ("orders", "users", False),
        ("shard-2", "shard-1", False),
        ("orders-db", "default", False),
    ],
)
def test_a_table_with_a_similar_name_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    pool: str, table: str, told: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(poolkit.settings, "_said", set())
    path = tmp_path / "pools.toml"
    path.write_text(f"[{table}]\nmax_idle = 3\n")
    text = f"{path} has no table [{pool}]: [{table}] does not apply to this pool; check the name, or add an empty table"
    for environ in ({}, {}, {f"POOLKIT_{pool.upper().replace('-', '_')}_MIN_SIZE": "1"}):
        load(pool, file=path, environ=environ)
    assert [record.getMessage() for record in caplog.records] == ([f"{text} [{pool}]"] if told else [])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["pools.toml", "pools.yaml"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "bytes"])
def test_what_is_no_regular_file_of_text_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    """The open of a FIFO would wait for a writer, and the read of a device would not end."""
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"[db]\nmax_size = 1 # \xff")
    why = "it is not UTF-8" if kind == "bytes" else "it is not a regular file"
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: cannot be read: {why}"):
        load("db", file=path, environ={})


def test_what_every_pool_has_and_a_keyed_one_cannot_is_set_aside_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poolkit.settings, "_said", set())
    config = load("api", environ={"POOLKIT_MIN_SIZE": "2"})
    for pool in (Pool(FakeConnector(), config, keyed=True), AsyncPool(AsyncFakeConnector(), config, keyed=True)):
        found = pool.describe()["min_size"]
        assert (found.value, found.source) == (0, "not used by keyed pools (min_size=2 in POOLKIT_MIN_SIZE)")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "min_size=2 (from POOLKIT_MIN_SIZE) is set aside for keyed pools"
    ]
    for given in ({"min_size": 2}, {"config": load("api", environ={"POOLKIT_API_MIN_SIZE": "2"})}):
        with pytest.raises(ConfigError, match="min_size=2: a keyed pool cannot keep connections"):
            Pool(FakeConnector(), keyed=True, **given)


# -- connectors and use --------------------------------------------------------------------------------------------


class Sync(Connector[object]):
    pass


class Async(AsyncConnector[object]):
    pass


class Plain:
    """Not a subclass of Connector, but it has ``connect``."""

    def connect(self, timeout: float | None) -> object:
        return object()


class PlainAsync:
    async def connect(self, timeout: float | None) -> object:
        return object()


def test_a_connector_that_cannot_connect() -> None:
    for pool, connector in ((Pool, Sync()), (AsyncPool, Async()), (Pool, object()), (AsyncPool, None)):
        with pytest.raises(ConfigError, match=r"connector: .* has no connect\(timeout\) method"):
            pool(connector)  # type: ignore[arg-type]


@pytest.mark.parametrize("connector", [AsyncFakeConnector(), PlainAsync()])
def test_a_sync_pool_with_an_async_driver(connector: Any) -> None:
    with pytest.raises(ConfigError, match="use AsyncPool"):
        Pool(connector)


@pytest.mark.parametrize("connector", [FakeConnector(), Plain()])
def test_an_async_pool_with_a_sync_driver(connector: Any) -> None:
    with pytest.raises(ConfigError, match="use Pool"):
        AsyncPool(connector)


@pytest.mark.parametrize(
    ("pool", "connector"),
    [(Pool, FakeConnector), (Pool, Plain), (AsyncPool, AsyncFakeConnector), (AsyncPool, PlainAsync)],
)
def test_the_class_of_a_connector_instead_of_an_object(pool: Any, connector: Any) -> None:
    name = connector.__name__
    with pytest.raises(ConfigError, match=rf"connector={name}: must be an object, not its class: {name}\(\.\.\.\)"):
        pool(connector)


def test_any_object_that_connects_will_do() -> None:
    with Pool(Plain()) as pool:  # type: ignore[arg-type]
        with pool.lease() as connection:
            assert type(connection) is object
        pool.check_books()


def test_wrong_releases_harm_nothing() -> None:
    pool, other = Pool(FakeConnector(), max_size=2, name="a"), Pool(FakeConnector(), name="b")
    connection, foreign = pool.acquire(), other.acquire()
    for wrong in (foreign, object(), None):
        with pytest.raises(NotLeased, match=r"a: release\(\) of a connection that is not leased"):
            pool.release(wrong)  # type: ignore[arg-type]
    pool.release(connection)
    with pytest.raises(NotLeased):
        pool.release(connection)
    lease = pool.lease()
    with pytest.raises(NotLeased, match="belongs to a Lease"):
        pool.release(lease.connection)
    lease.close()
    lease.close()
    with pytest.raises(NotLeased):
        lease.detach()
    with pytest.raises(NotLeased):
        lease.__enter__()
    assert pool.stats().in_use == 0
    other.release(foreign)
    for each in (pool, other):
        each.check_books()
        each.close()


def test_use_after_close() -> None:
    pool = Pool(FakeConnector(), name="db")
    pool.close()
    for call in (pool.acquire, pool.lease, pool.warm_up, pool.__enter__):
        with pytest.raises(PoolClosed, match="db: the pool is closed"):
            call()
    pool.clear()
    pool.suspend()
    pool.resume()
    pool.reconfigure(max_size=3)
    assert pool.drain()
    assert pool.stats().size == 0
    pool.check_books()


@pytest.mark.parametrize("count", [-1, 1.5, "3", True])
def test_warm_up_wants_a_number(count: Any) -> None:
    with Pool(FakeConnector()) as pool, pytest.raises(ConfigError, match="warm_up"):
        pool.warm_up(count)


@pytest.mark.parametrize("timeout", [-1, math.nan, "3"])
def test_close_and_drain_want_a_time(timeout: Any) -> None:
    pool = Pool(FakeConnector())
    with pytest.raises(ConfigError, match="timeout="):
        pool.close(timeout)
    with pytest.raises(ConfigError, match="timeout="):
        pool.drain(timeout)
    assert not pool.closed
    pool.close()


def test_a_key_needs_a_keyed_pool() -> None:
    with Pool(FakeConnector()) as pool:
        pool.release(pool.acquire())
        with pytest.raises(ConfigError, match="keyed=True"):
            pool.lease(key="a")
        pool.check_books()


def test_every_error_is_a_pool_error_and_can_be_pickled() -> None:
    for name in poolkit.errors.__all__:
        kind = getattr(poolkit.errors, name)
        assert issubclass(kind, poolkit.PoolError)
        error = pickle.loads(pickle.dumps(kind("text")))
        assert type(error) is kind
        assert str(error) == "text"


def test_a_subclass_of_the_settings_stays_one() -> None:
    """Adapters pass a PoolConfig of their own, with other defaults and other warnings."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Quiet(PoolConfig):
        def doubts(self) -> list[str]:
            return []

    with Pool(FakeConnector(), Quiet(connect_timeout=None), max_size=3) as pool:
        pool.reconfigure(min_size=1)
        assert type(pool.config) is Quiet
