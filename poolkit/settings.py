"""Settings from defaults, a file, the environment and keywords. Later sources win; each value keeps its source."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ._log import logger
from .config import (
    AutoscaleConfig,
    BackoffConfig,
    BreakerConfig,
    ClassConfig,
    OverloadConfig,
    PoolConfig,
    PoolSettings,
    Source,
    nearest,
    sources_of,
    unknown,
    with_sources,
)
from .errors import ConfigError, MissingExtra, said

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

__all__ = (
    "DEFAULT",
    "KEYWORD",
    "Layer",
    "Setting",
    "combine",
    "described",
    "for_connector",
    "layer",
    "layer_of",
    "load",
    "merge",
    "of_one_pool",
    "on_demand",
    "read_file",
    "read_tables",
    "reconfigured",
    "set_aside",
    "tables_of",
    "variable_prefix",
    "variables_of",
    "without_effect",
)

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NESTED: dict[str, type] = {
    "backoff": BackoffConfig,
    "breaker": BreakerConfig,
    "autoscale": AutoscaleConfig,
    "overload": OverloadConfig,
}
_HINTS = get_type_hints(PoolConfig)
_KNOWN = tuple(f.name for f in fields(PoolConfig))
_ENDS = tuple(f"_{name}" for name in _KNOWN)


@dataclass(frozen=True)
class Setting:
    """The value of a setting in effect, and its source.

    ``source``: "default", "config" (an argument of :class:`PoolConfig`), "keyword", a file with its table, a variable,
    "replace()" or "reconfigure()". It may also be a text of the adapter: a driver's default or a driver's argument.
    """

    value: object
    source: str


Layer = Mapping[str, tuple[Any, Source]]
"""Some settings by name, each with its value and source."""

DEFAULT = Source("default", written=False)
KEYWORD = Source("keyword")
_RECONFIGURED = Source("reconfigure()")
_AT_START = {"start": "it takes effect when the pool is made; call warm_up() instead"}


def layer(values: Mapping[str, Any], source: Source = KEYWORD) -> dict[str, tuple[Any, Source]]:
    """The settings of one source, with nested tables converted to objects. Raises ConfigError for an unknown name."""
    found = {}
    for name, value in values.items():
        if name not in _KNOWN:
            raise unknown(name, value, f" (from {source.text})", name, _KNOWN)
        try:
            found[name] = _nested(name, value), source
        except ConfigError as error:
            raise ConfigError(f"{error} (from {source.text})", error.setting) from None
    return found


def layer_of(config: PoolConfig | None) -> dict[str, tuple[Any, Source]]:
    """The explicit settings of a config (None: none). Raises ConfigError if it is not a PoolConfig."""
    if config is None:
        return {}
    if not isinstance(config, PoolConfig):
        raise ConfigError(f"config={config!r}: must be a PoolConfig", "config")
    return {name: (getattr(config, name), source) for name, source in sources_of(config).items()}


def combine(*layers: Layer, base: PoolConfig | None = None) -> PoolConfig:
    """Return a config like ``base`` (None: the defaults) with the settings of all layers; later layers win.

    Settings of several sources are combined only here, so each value keeps its source. Values are checked together,
    because the value of one source may be invalid only in combination with another; ConfigError names the sources.
    """
    base = PoolConfig() if base is None else base
    found = {name: entry for one in layers for name, entry in one.items()}
    values = {field.name: getattr(base, field.name) for field in fields(base) if field.init}
    values |= {name: value for name, (value, _) in found.items()}
    sources = sources_of(base) | {name: source for name, (_, source) in found.items()}
    try:
        return with_sources(type(base)(**values), sources)
    except ConfigError as error:
        text = str(error)
        involved = [name for name in _KNOWN if name in sources and (name == error.setting or name in text)]
        if not involved:
            raise
        if involved == [error.setting]:
            origin = sources[error.setting].text
        else:
            origin = ", ".join(f"{name} from {sources[name].text}" for name in involved)
        raise ConfigError(f"{text} ({'' if ' from ' in origin else 'from '}{origin})", error.setting) from None


def merge(config: PoolConfig | None, keywords: Mapping[str, Any]) -> PoolConfig:
    """The settings of a pool from its ``config=`` and its individual keywords, which win."""
    written = layer_of(config)
    if config is not None and not keywords:
        return config
    return combine(written, layer(keywords), base=config)


def reconfigured(config: PoolConfig, changes: Mapping[str, Any]) -> PoolConfig:
    """The config of a live pool with some values replaced. Raises ConfigError for a value that cannot apply to it."""
    known, found = sources_of(config), {}
    for name, (value, source) in layer(changes, _RECONFIGURED).items():
        before = known.get(name, DEFAULT)
        reason = before.fixed or _AT_START.get(name, "")
        if not reason:
            found[name] = value, _muted(source, before.mute, name, value, "") if before.mute else source
        elif value != getattr(config, name):
            raise ConfigError(f"{name}={value!r}: {reason} (from {source.text})", name)
    return combine(_smaller_defaults(config, found), base=config)


def _smaller_defaults(config: PoolConfig, changes: Layer) -> Layer:
    """Return the changes with the sizes that nobody has given: each default, or a limit for it that is smaller."""
    known, found = sources_of(config), dict(changes)
    for name, limits in (("max_idle", ("max_size",)), ("min_size", ("max_size", "max_idle"))):
        source, value = known.get(name, DEFAULT), getattr(config, name)
        default, origin = source.lowered or (value, source)
        if default is None or source.written or name in changes:
            continue
        sizes = {limit: found[limit][0] if limit in found else getattr(config, limit) for limit in limits}
        sizes = {limit: size for limit, size in sizes.items() if type(size) is int and 0 <= size < default}
        if sizes:
            limit = min(sizes, key=lambda one: sizes[one])
            lowered = replace(origin, text=f"{origin.text}, lowered to {limit}", lowered=(default, origin))
            found[name] = sizes[limit], lowered
        elif source.lowered:
            found[name] = default, origin
    return found


def described(config: PoolConfig) -> dict[str, Setting]:
    """Each setting by name, with the value in effect and its source."""
    sources = sources_of(config)
    return {name: Setting(getattr(config, name), sources.get(name, DEFAULT).text) for name in _KNOWN}


_said: set[str] = set()
_PLAIN = PoolConfig()


def set_aside(
    given: Layer,
    unused: Mapping[str, tuple[Any, str]],
    adapter: str,
    *,
    portable: Collection[str] = (),
    origin: str = "not used by",
    fixed: bool = True,
) -> dict[str, tuple[Any, Source]]:
    """Return the layer with the settings that cannot apply under ``adapter`` replaced by the values in effect there.

    ``unused``: the names of these settings, each with the value in effect and the reason. A setting that was given for
    this pool raises ConfigError. A setting that was given for every pool is set aside, and the log says so once per
    process. ``portable``: settings that other drivers under the same adapter can apply. A config or a table may serve
    several drivers (SQLite in tests, PostgreSQL elsewhere), so there they are set aside as well; a keyword is an error.
    ``origin``: how ``describe()`` names the adapter as the source of the value in effect. ``fixed``: whether
    ``reconfigure()`` refuses another value.
    """
    found = dict(given)
    for name, (value, reason) in unused.items():
        asked, source = given.get(name, (value, None))
        final = reason if fixed else ""
        if source is None:
            found[name] = value, Source(f"{origin} {adapter}", written=False, fixed=final)
        elif source.written and asked != value:
            if not source.shared and (name not in portable or source == KEYWORD):
                raise ConfigError(f"{name}={asked!r}: {reason} (from {source.text})", name)
            text = f"{origin} {adapter} ({name}={asked!r} in {source.text})"
            found[name] = value, Source(text, written=False, fixed=final)
            _say_once(f"{name}={asked!r} (from {source.text}) is set aside for {adapter}: {reason}")
        elif asked == value:
            found[name] = value, replace(source, fixed=final)
    return found


def without_effect(given: Layer, names: Iterable[str], reason: str, adapter: str) -> dict[str, tuple[Any, Source]]:
    """Return the layer with a note in the source of settings that have no effect under ``adapter``.

    Such settings are harmless, so they are not refused; the log names the explicit ones once per process.
    """
    found = dict(given)
    for name in names:
        value, source = given.get(name, (getattr(_PLAIN, name), DEFAULT))
        found[name] = value, _muted(source, adapter, name, value, reason)
    return found


def _muted(source: Source, adapter: str, name: str, value: object, reason: str) -> Source:
    if source.written:
        because = f": {reason}" if reason else ""
        _say_once(f"{name}={value!r} (from {source.text}) has no effect for {adapter}{because}")
    return replace(source, text=f"{source.text}, without effect for {adapter}", mute=adapter)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)


_KEYED = {"min_size": (0, "a keyed pool cannot keep connections open, because it does not know for which key")}
_LAZY = {"min_size": (0, "the pool cannot keep connections open, because their first users open them")}


def on_demand(config: PoolConfig, *, keyed: bool) -> PoolConfig:
    """The config without settings that cannot apply where each connection is opened for a caller: in ``keyed`` pools,
    and where its first user opens it. Raises ConfigError if one was given for this pool.
    """
    if not config.min_size:
        return config
    unused, what = (_KEYED, "keyed pools") if keyed else (_LAZY, "lazy connections")
    return combine(set_aside(layer_of(config), unused, what), base=config)


def for_connector(config: PoolConfig, connector: object) -> PoolConfig:
    """The config with ``connect_in_caller=True`` if the connector requires it (``Connector.connect_in_caller``).

    Raises ConfigError if False was given for this pool. A False that was given for every pool has no effect here.
    """
    if not getattr(connector, "connect_in_caller", False):
        return config
    driver = next(iter(getattr(connector, "packages", ())), type(connector).__name__)
    needed = {"connect_in_caller": (True, f"{driver} requires that each caller opens its own connection")}
    return combine(set_aside(layer_of(config), needed, driver, origin="required by"), base=config)


def tables_of(file: str | os.PathLike[str]) -> list[str]:
    """The names of the tables in a file of settings. Raises ConfigError if it cannot be read."""
    return list(_tables(file))


def _tables(file: str | os.PathLike[str], name: str | None = None) -> dict[str, dict[Any, Any]]:
    """The tables of a file of settings by name. What is neither a table nor a setting belongs to the application.

    Raises ConfigError for a setting outside a table, and for what cannot be read of ``[default]`` and of ``name``.
    """
    from pathlib import Path  # imported only if there is a file

    found: dict[str, dict[Any, Any]] = {}
    for key, table in read_tables(Path(file)).items():
        if isinstance(key, bool):  # in YAML: on, yes, true
            if name is not None and _WORDS.get(name.lower()) is key:
                raise ConfigError(f"{file}: [{key}]: the name of a table must be a text; put it in quotes", "file")
            continue
        if _is_setting(key, table):
            right = "must be in a table: [default] for every pool, [orders-db] for the pool 'orders-db'"
            raise ConfigError(f"{file}: {key}={table!r}: {right}", str(key))
        own = key == "default" or (name is not None and str(key) == name)
        if isinstance(table, dict) or table is None:
            found[str(key)] = table or {}  # in YAML, a table whose lines are all commented out is null
        elif own:
            raise ConfigError(f"{file}: [{key}] must be a table of settings", str(key))
        for part, value in found[str(key)].items() if own else ():
            if isinstance(value, dict) and part not in _KNOWN:
                why = f"no such setting (a name with a dot goes in quotes); {nearest(str(part), _KNOWN)}"
                raise ConfigError(f"{file}: [{key}.{part}]: {why}", str(part))
    return found


def _is_setting(key: object, value: Any) -> bool:
    """Whether an entry outside all tables is a setting, not a table of a pool or of the application with that name."""
    if not isinstance(value, dict):
        return key in _KNOWN
    kind = ClassConfig if key == "classes" else _NESTED.get(str(key))
    if kind is None or (value and all(part in _KNOWN for part in value)):  # a pool may have the name "breaker"
        return False
    tables = [table for table in value.values() if isinstance(table, dict)] if kind is ClassConfig else [value]
    return any(field.name in table for field in fields(kind) for table in tables)


def _own_table(
    name: str, file: str | os.PathLike[str], tables: Mapping[str, dict[Any, Any]], environ: Mapping[str, str]
) -> None:
    """Tell that the pool has no table although one has a similar name. Raises ConfigError if it must be the pool's."""
    if name in tables:
        return
    others = [table for table in tables if table != "default"]
    same = next((table for table in others if variable_prefix(table) == variable_prefix(name)), None)
    if same is not None:
        raise ConfigError(f"{file} has no table [{name}]; did you mean {same!r}?", "file")
    dotted = _dotted(variable_prefix(name), tables)
    if dotted is not None:
        text = f"{file} has no table [{name}]; [{dotted}] is another: a name with a dot goes in quotes"
        raise ConfigError(text, "file")
    if others and not any(variable.startswith(variable_prefix(name)) for variable in environ):
        from difflib import get_close_matches  # imported only if there is no table

        for near in get_close_matches(name, others, n=1, cutoff=_ALIKE):
            if re.sub(r"\d", "", near) != re.sub(r"\d", "", name):  # shard-1 and shard-2 are no misspellings
                _say_once(f"{file} has no table [{name}]: [{near}] does not apply to this pool; check the name, or add"
                          f" an empty table [{name}]")  # fmt: skip


def _dotted(prefix: str, tables: Mapping[Any, Any], before: str = "") -> str | None:
    """The table within tables whose dotted name is that of the pool with this prefix of variables: [orders.db]."""
    for part, table in tables.items():
        name = f"{before}{part}"
        if isinstance(table, dict) and prefix.startswith(variable_prefix(name)) and not (before and part in _KNOWN):
            found = name if prefix == variable_prefix(name) else _dotted(prefix, table, f"{name}.")
            if found is not None:
                return found
    return None


def _default_table(name: str | None, file: str | os.PathLike[str], tables: Collection[str]) -> None:
    """Tell that a table seems to be meant for every pool. Raises ConfigError if this pool has no other table."""
    others = {table.lower(): table for table in tables if table != name and table.isalpha()}
    if "default" in tables or not others:
        return
    from difflib import get_close_matches  # imported only if there is no table for every pool

    for near in get_close_matches("default", others, 1, _MISSPELT):
        text = f"{file}: [{others[near]}]: the table for every pool is [default]"
        if near in ("default", "defaults") and name not in tables:
            raise ConfigError(text, "file")
        _say_once(text)


def load(
    name: str | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **keywords: Unpack[PoolSettings],
) -> PoolConfig:
    """Load a :class:`PoolConfig` from a file, the environment and keywords; later sources win.

    ``file``: TOML or YAML with one table for each pool, ``[orders-db]``, and optionally ``[default]`` for all pools.
    Environment: ``POOLKIT_ORDERS_DB_MAX_SIZE`` for the pool "orders-db", ``POOLKIT_MAX_SIZE`` for every pool. The word
    "none" means None in the environment and in TOML, which has no null. Settings for every pool that cannot apply under
    a driver are set aside there, and the log says so once. An empty variable counts as not set. Raises ConfigError that
    names setting, value and source.
    """
    layers: list[Layer] = []
    environ = variables_of(os.environ if environ is None else environ)
    if file is not None:
        tables = _tables(file, name)
        _default_table(name, file, tables)
        if name is not None:
            _own_table(name, file, tables, environ)
        for table in ("default", name):
            if table is not None and table in tables:
                values = {key: _none(key, value) for key, value in tables[table].items()}
                layers.append(layer(values, Source(f"{file} [{table}]", shared=table == "default")))
    _refuse_mistyped(environ)
    own = None if name is None else variable_prefix(name)
    for prefix in (_EVERY_POOL,) if own is None else (_EVERY_POOL, own):
        for setting in _KNOWN:
            variable = prefix + setting.upper()
            if variable in environ:
                value = _parse(setting, environ[variable], variable)
                layers.append(layer({setting: value}, Source(variable, shared=prefix == _EVERY_POOL)))
    if own is not None:
        _refuse_unknown(own, environ)
    layers.append(layer(keywords))
    return combine(*layers)


_EVERY_POOL = "POOLKIT_"
_NEARLY = 0.7
"""Similarity from which a variable counts as a misspelt setting: POOLKIT_MAX_SZIE does, POOLKIT_WORKERS does not."""
_ALIKE = 0.8
"""Similarity from which a table may be meant for a pool: [cahce] for "cache", not [users] for "orders"."""
_MISSPELT = 0.85
"""Similarity from which a table may be meant as [default]: [defualt] may, [fault] may not."""
_KUBERNETES = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""The variables that Kubernetes sets for each service, here for services whose names begin with "poolkit".

One that ends in the name of a setting is that of a pool: POOLKIT_SERVICE_PORT_MAX_SIZE of "service-port"."""


def variables_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that may hold settings. An empty one counts as not set: ``${UNSET}`` in a file of a deployment."""
    return {
        variable: value
        for variable, value in environ.items()
        if variable.startswith(_EVERY_POOL) and value.strip()
        if variable.lower().endswith(_ENDS) or not _KUBERNETES.fullmatch(variable)
    }


def variable_prefix(name: str) -> str:
    """The prefix of the variables of the pool ``name``: ``POOLKIT_ORDERS_DB_`` for "orders-db"."""
    return _EVERY_POOL + "".join(c if c.isalnum() else "_" for c in name).upper() + "_"


def of_one_pool(setting: str) -> bool:
    """Whether the end of a variable's name is a setting: ``POOLKIT_ORDERS_DB_MAX_SIZE`` may be that of a pool."""
    if setting.endswith(_ENDS):
        return True
    return any(_in_table(setting[place + 1 :]) for place, letter in enumerate(setting) if letter == "_")


def _in_table(setting: str) -> str | None:
    """The dotted name of a setting in a table: "breaker.reset_timeout" for ``POOLKIT_BREAKER_RESET_TIMEOUT``."""
    kind: type | None
    table, _, part = setting.partition("_")
    if f"_{part}".endswith(_ENDS):  # that setting of a pool "breaker" or "breaker-db"
        return None
    if table == "classes":
        name, _, part = part.rpartition("_")
        table, kind = f"classes.{name}", ClassConfig if name else None
    else:
        kind = _NESTED.get(table)
    if kind is None:
        return None
    from difflib import get_close_matches  # imported only if there is such a variable

    near = get_close_matches(part, [field.name for field in fields(kind)], 1, _NEARLY)
    return f"{table}.{near[0]}" if near else None


def _refuse_unknown(prefix: str, environ: Mapping[str, str]) -> None:
    for variable, value in environ.items():
        setting = variable[len(prefix) :].lower()
        if not variable.startswith(prefix) or setting in _KNOWN or variable[len(_EVERY_POOL) :].lower() in _KNOWN:
            continue
        _refuse_in_table(setting, variable, value)
        # POOLKIT_ORDERS_DB_MAX_SIZE is not an error for the pool "orders": there may be a pool "orders-db"
        if not of_one_pool(setting):
            raise unknown(variable, value, "", setting, _KNOWN)


def _refuse_in_table(setting: str, variable: str, value: str) -> None:
    dotted = _in_table(setting)
    if dotted is not None:
        text = f"{dotted}={value!r} (from {variable}): cannot be set in the environment; use a file or a keyword"
        raise ConfigError(text, dotted.partition(".")[0])


def _refuse_mistyped(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a variable for every pool that is a misspelt setting, such as ``POOLKIT_MAX_SZIE``, or a
    setting in a table. Other variables are ignored: they may belong to another pool, or to the application.
    """
    for variable, value in environ.items():
        setting = variable[len(_EVERY_POOL) :].lower()
        _refuse_in_table(setting, variable, value)
        if setting not in _KNOWN and not of_one_pool(setting):
            from difflib import get_close_matches  # imported only if there is such a variable

            if get_close_matches(setting, _KNOWN, n=1, cutoff=_NEARLY):
                raise unknown(variable, value, "", setting, _KNOWN)


def _nested(name: str, value: Any) -> Any:
    if name == "classes" and isinstance(value, dict):
        return {each: _table(f"classes.{each}", ClassConfig, one) for each, one in value.items()}
    kind = _NESTED.get(name)
    if kind is None or not isinstance(value, dict):
        return value
    return _table(name, kind, value)


def _table(name: str, kind: type, value: Any) -> Any:
    """A table of settings converted to its object; any other value unchanged."""
    if not isinstance(value, dict):
        return value
    known = [f.name for f in fields(kind)]
    for key in value:
        if key not in known:
            raise unknown(f"{name}.{key}", value[key], "", key, known)
    return kind(**{key: None if _is_none(one) else one for key, one in value.items()})


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() == "none"


def _may_be_none(setting: str) -> bool:
    return type(None) in get_args(_HINTS[setting])


def _none(setting: str, value: Any) -> Any:
    """None for the word "none" if the setting may be None."""
    return None if _is_none(value) and setting in _KNOWN and _may_be_none(setting) else value


def _parse(setting: str, text: str, source: str) -> Any:
    """Convert a value from the environment to the type of its setting."""
    hint = _HINTS[setting]
    kinds = get_args(hint) or (hint,)
    if text.strip().lower() in ("none", "null") and _may_be_none(setting):
        return None
    if kinds == (bool,):
        word = text.strip().lower()
        if word not in _WORDS:
            raise ConfigError(f"{setting}={text!r} (from {source}): must be true or false", setting)
        return _WORDS[word]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ConfigError(
                    f"{setting}={text!r} (from {source}): must be {'a whole number' if kind is int else 'a number'}",
                    setting,
                ) from None
    if any(is_dataclass(kind) for kind in kinds) or setting == "classes":
        raise ConfigError(
            f"{setting}={text!r} (from {source}): cannot be set in the environment; use a file or a keyword", setting
        )
    return text.strip()


def read_file(path: Path) -> str:
    """Return the text of a regular file. Raises ConfigError if it is not a regular file or cannot be read.

    Never blocks on a FIFO, whose opening waits for a writer, and never reads a device, which may have no end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{path}: cannot be read: it is not a regular file", "file")
            with open(descriptor, encoding="utf-8", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8: {error.reason}", "file") from error


def read_tables(path: Path) -> dict[Any, Any]:
    """The content of a TOML or YAML file. Raises ConfigError if it cannot be read or has another format."""
    text = read_file(path)
    if path.suffix == ".toml":
        tables = _toml(path, text)
    elif path.suffix in (".yaml", ".yml"):
        tables = _yaml(path, text)
    else:
        raise ConfigError(f"{path}: must be a .toml, .yaml or .yml file", "file")
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: must hold one table of settings for each pool", "file")
    return tables


def _toml(path: Path, text: str) -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra("TOML files need tomli on Python 3.10: pip install 'poolkit[files]'") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also a number with thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}", "file") from error


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra("YAML files need PyYAML: pip install 'poolkit[files]'") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a number with thousands of digits, a day 31 of June
        raise ConfigError(f"{path}: not valid YAML: {said(error, 500)}", "file") from error
