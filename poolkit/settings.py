"""Where settings come from: defaults, a file, the environment, keywords; later ones win, each remembered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from .config import AutoscaleConfig, BackoffConfig, BreakerConfig, ClassConfig, PoolConfig, unknown
from .errors import ConfigError, MissingExtra, said

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Setting", "Settings", "load", "merge", "read_tables", "refuse_for_keyed", "tables_of")

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NESTED: dict[str, type] = {"backoff": BackoffConfig, "breaker": BreakerConfig, "autoscale": AutoscaleConfig}
_HINTS = get_type_hints(PoolConfig)
_KNOWN = tuple(f.name for f in fields(PoolConfig))


@dataclass(frozen=True)
class Setting:
    """One setting in effect and where it came from: "default", "config", "keyword", a file or a variable."""

    value: object
    source: str


@dataclass(frozen=True)
class Settings:
    """A valid configuration together with the sources of its values."""

    config: PoolConfig
    sources: Mapping[str, str]

    def described(self) -> dict[str, Setting]:
        """Each setting by name."""
        return {name: Setting(getattr(self.config, name), self.sources.get(name, "default")) for name in _KNOWN}

    def changed(self, values: Mapping[str, Any], source: str) -> Settings:
        """With some values replaced; ConfigError names the source."""
        known = {name: getattr(self.config, name) for name in _KNOWN}
        sources = {**self.sources, **dict.fromkeys(values, source)}
        return _build(known | _checked(values, source), sources, kind=type(self.config))


def _checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values, nested tables made into what they stand for; ConfigError for an unknown name."""
    found = {}
    for name, value in values.items():
        if name not in _KNOWN:
            raise unknown(name, value, f" (from {source})", name, _KNOWN)
        try:
            found[name] = _nested(name, value)
        except ConfigError as error:
            raise ConfigError(f"{error} (from {source})", error.setting) from None
    return found


def _build(values: Mapping[str, Any], sources: Mapping[str, str], kind: type[PoolConfig] = PoolConfig) -> Settings:
    """Settings out of all values together: what one source sets may fit only with what another does."""
    try:
        return Settings(kind(**values), sources)
    except ConfigError as error:
        text = str(error)
        involved = [name for name in _KNOWN if name in sources and (name == error.setting or name in text)]
        if not involved:
            raise
        if involved == [error.setting]:
            origin = sources[error.setting]
        else:
            origin = ", ".join(f"{name} from {sources[name]}" for name in involved)
        raise ConfigError(f"{text} ({'' if ' from ' in origin else 'from '}{origin})", error.setting) from None


def merge(config: PoolConfig | None, keywords: Mapping[str, Any]) -> Settings:
    """The settings of a pool from its ``config=`` and its single keywords."""
    if config is not None and not isinstance(config, PoolConfig):
        raise ConfigError(f"config={config!r}: must be a PoolConfig", "config")
    default = PoolConfig()
    given = config or default
    loaded: Mapping[str, str] = getattr(given, "_sources", {})
    sources = {
        name: loaded.get(name, "config") for name in _KNOWN if getattr(given, name) != getattr(default, name)
    } | dict(loaded)
    return Settings(given, sources).changed(keywords, "keyword") if keywords else Settings(given, sources)


def refuse_for_keyed(config: PoolConfig) -> None:
    """Raise ConfigError for what means nothing where connections belong to keys."""
    if config.min_size:
        raise ConfigError(
            f"min_size={config.min_size!r}: a keyed pool cannot keep connections, it does not know for which key",
            "min_size",
        )


def tables_of(file: str | os.PathLike[str]) -> list[str]:
    """The names of the tables in a file of settings. Raises ConfigError if it cannot be read."""
    from pathlib import Path

    return [str(name) for name in read_tables(Path(file))]


def load(
    name: str | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **keywords: Any,
) -> PoolConfig:
    """A :class:`PoolConfig` from a file, the environment and keywords; later ones win.

    ``file``: TOML or YAML with one table for each pool, ``[orders-db]``, and optionally ``[default]`` for all.
    Environment: ``POOLKIT_ORDERS_DB_MAX_SIZE`` for pool "orders-db", ``POOLKIT_MAX_SIZE`` for every pool. The word
    "none" stands for None there, and in TOML, which has no other. Raises ConfigError naming setting, value, source.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(found: Mapping[str, Any], source: str) -> None:
        values.update(_checked(found, source))
        sources.update(dict.fromkeys(found, source))

    if file is not None:
        from pathlib import Path  # only for those who have a file

        tables = read_tables(Path(file))
        for table in ("default", name):
            if table is not None and table in tables:
                if not isinstance(tables[table], dict):
                    raise ConfigError(f"{file}: [{table}] must be a table of settings", table)
                take({key: _none(key, value) for key, value in tables[table].items()}, f"{file} [{table}]")
    environ = os.environ if environ is None else environ
    prefixes = ["POOLKIT_"]
    if name is not None:
        prefixes.append("POOLKIT_" + "".join(c if c.isalnum() else "_" for c in name).upper() + "_")
    for prefix in prefixes:
        for setting in _KNOWN:
            variable = prefix + setting.upper()
            if variable in environ:
                take({setting: _parse(setting, environ[variable], variable)}, variable)
    if name is not None:
        _refuse_unknown(prefixes[-1], environ)
    take(keywords, "keyword")
    settings = _build(values, sources)
    object.__setattr__(settings.config, "_sources", sources)
    return settings.config


def _refuse_unknown(prefix: str, environ: Mapping[str, str]) -> None:
    for variable, value in environ.items():
        setting = variable[len(prefix) :].lower()
        if not variable.startswith(prefix) or setting in _KNOWN:
            continue
        # POOLKIT_ORDERS_DB_MAX_SIZE is no mistake of the pool "orders": there may be a pool "orders-db"
        if not any(setting.endswith("_" + known) for known in _KNOWN):
            raise unknown(variable, value, "", setting, _KNOWN)


def _nested(name: str, value: Any) -> Any:
    if name == "classes" and isinstance(value, dict):
        return {each: _table(f"classes.{each}", ClassConfig, one) for each, one in value.items()}
    kind = _NESTED.get(name)
    if kind is None or not isinstance(value, dict):
        return value
    return _table(name, kind, value)


def _table(name: str, kind: type, value: Any) -> Any:
    """A table of settings as what it stands for; anything else as it is."""
    if not isinstance(value, dict):
        return value
    known = [f.name for f in fields(kind)]
    for key in value:
        if key not in known:
            raise unknown(f"{name}.{key}", value[key], "", key, known)
    return kind(**value)


def _may_be_none(setting: str) -> bool:
    return type(None) in get_args(_HINTS[setting])


def _none(setting: str, value: Any) -> Any:
    """None for the word, where that is possible."""
    word = isinstance(value, str) and value.strip().lower() == "none"
    return None if word and setting in _KNOWN and _may_be_none(setting) else value


def _parse(setting: str, text: str, source: str) -> Any:
    """A value from the environment, by the type of its setting."""
    hint = _HINTS[setting]
    kinds = get_args(hint) or (hint,)
    if text.strip().lower() in ("none", "null", "") and _may_be_none(setting):
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
        raise ConfigError(f"{setting}={text!r} (from {source}): give this one in a file or as a keyword", setting)
    return text.strip()


def read_tables(path: Path) -> dict[str, Any]:
    """The content of a TOML or YAML file; ConfigError if it cannot be read or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "file") from error
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
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "file") from error


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra("YAML files need PyYAML: pip install 'poolkit[files]'") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {said(error, 500)}", "file") from error
