"""Converts the arguments of urllib3's pools to poolkit's settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from urllib3 import HTTPConnectionPool, poolmanager
from urllib3.poolmanager import PoolKey

from poolkit import BackoffConfig, ConfigError, PoolConfig
from poolkit.config import Source, nearest, whole
from poolkit.settings import combine, layer, layer_of, set_aside

from .._options import SETTINGS, argument, by_argument, by_default, driver_default, is_default, refuse_contradiction

__all__ = ("IDLE", "MAXSIZE", "check_words", "effective", "order_of", "pool_config", "words_of", "words_of_keys")

MAXSIZE: int = driver_default(1)
"""urllib3's default."""
IDLE = 60.0
"""Seconds after which an idle connection is closed. Load balancers and servers close theirs after 60 s or later."""

_DRIVER = "urllib3"
_OWN_QUEUE: Any = HTTPConnectionPool.QueueCls
_HOSTS = "has no effect for HTTP: connections belong to hosts, which are unknown before the first request"
_ALIVE = "has no effect for HTTP, which has no ping; poolkit checks the sockets of idle connections instead"
_ATTEMPTS = (
    "has no effect for HTTP: each request makes its own attempts to connect (retries=); use breaker= to stop connects "
    "to a dead server"
)
_UNUSED: dict[str, tuple[Any, str]] = {
    "min_size": (0, _HOSTS),
    "start": ("lazy", _HOSTS),
    "keepalive": (None, _ALIVE),
    "backoff": (BackoffConfig(), _ATTEMPTS),
}
_WORDS = frozenset(name.removeprefix("key_") for name in PoolKey._fields) | {"num_pools", "max_connections", "strict"}
_OURS = ("config", "name", "listeners", "debug")


def pool_config(
    config: PoolConfig | None,
    settings: Mapping[str, Any],
    *,
    maxsize: Any = MAXSIZE,
    block: bool | None = None,
    order: str | None = None,
    driver: str = _DRIVER,
) -> PoolConfig:
    """Return the settings of the pool of one host.

    ``maxsize``, ``block``: urllib3's arguments; ``block=None``: not given. With ``block=True`` ``maxsize`` is the limit
    of connections. Without it, it is the number of idle connections that are kept. ``order``: that of a ``QueueCls``,
    if the pool has one. ``driver``: the library whose defaults apply, for messages. Raises ConfigError for an argument
    that contradicts a setting, and for a setting that has no effect for HTTP.
    """
    whole("maxsize", maxsize, 0)
    if block not in (None, True, False):
        raise ConfigError(f"block={block!r}: must be True or False", "block")
    given = {**layer_of(config), **layer(settings)}
    found: dict[str, tuple[Any, Source]] = {
        **dict.fromkeys(("connect_timeout", "max_connecting"), (None, by_default(driver))),
        "idle_timeout": (IDLE, Source("default of the adapter", written=False)),
    }
    size = argument(driver, "maxsize", maxsize)
    if block:
        if maxsize == 0:
            raise ConfigError("maxsize=0: no request would ever get a connection with block=True", "maxsize")
        if is_default(maxsize):
            found["max_size"] = size
        else:
            refuse_contradiction("maxsize", maxsize, "max_size", given)
            given["max_size"] = size
    else:
        limit, source = given.get("max_size", (None, by_default(driver, "block")))
        if block is False and limit is not None and source.written and not source.shared:
            raise ConfigError(
                f"block=False and max_size={limit!r} (from {source.text}) contradict each other: with a limit callers "
                "have to wait; remove one of them", "max_size",
            )  # fmt: skip
        found["max_size"] = None, by_default(driver, "block")
        if not is_default(maxsize) and maxsize > 0:
            refuse_contradiction("maxsize", maxsize, "max_idle", given)
            given["max_idle"] = min(maxsize, limit) if isinstance(limit, int) else maxsize, size[1]
    if order is not None:
        refuse_contradiction("the order of QueueCls", order, "order", given)
        given["order"] = order, by_argument("QueueCls")
    return combine({**found, **set_aside(given, _UNUSED, driver)}, base=config)


_QUEUES = {"LifoQueue": "lifo", "Queue": "fifo"}
_QUEUE_MODULES = ("queue", "gevent", "eventlet")


def order_of(kind: Any) -> str | None:
    """Return the setting ``order`` for a pool class's ``QueueCls``, or None if it is urllib3's own.

    Raises ConfigError for any other class than ``LifoQueue`` and ``Queue``, of the standard library, gevent or
    eventlet: the pool has no queue in which its code would run.
    """
    if kind is _OWN_QUEUE or kind is None:
        return None
    known = isinstance(kind, type) and kind.__module__.partition(".")[0].lstrip("_") in _QUEUE_MODULES
    order = _QUEUES.get(kind.__name__) if known else None
    if order is None:
        raise ConfigError(
            f"QueueCls={kind!r}: poolkit keeps idle connections and waiting requests itself; use queue.LifoQueue (the "
            "default) or queue.Queue, which mean order='lifo' and order='fifo'", "QueueCls",
        )  # fmt: skip
    return order


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    return pool_config(config, {})


def check_words(options: Mapping[str, Any], known: Collection[str], *, all_known: bool) -> None:
    """Raise ConfigError for a keyword that is most likely misspelt. urllib3 would fail only at the first request.

    ``known``: the names that the class takes. ``all_known``: it takes no other name, so every other one is refused.
    Otherwise a name passes if it resembles no known name: a class of the application may take names that no signature
    lists.
    """
    for name in options:
        hint = nearest(name, _shown(_WORDS, known))
        if name not in known and name not in _WORDS and hint.startswith("did you mean"):
            # without its value, which may be a password
            raise ConfigError(f"{name}: unknown argument or setting; {hint}", name)
    foreign = next((name for name in options if name not in known), None)
    if foreign is not None and all_known:
        raise ConfigError(f"{foreign}: unknown argument or setting; {nearest(foreign, _shown(known))}", foreign)


def _shown(*known: Collection[str]) -> list[str]:
    return sorted({name for name in {*_OURS, *SETTINGS}.union(*known) if not name.startswith("_")})


def words_of(kind: type, *, after: type | None = None) -> tuple[set[str], bool]:
    """Return the names of the arguments of a class, and whether it takes no others.

    An ``__init__`` with ``**kwargs`` passes them to the next class, and may take some that it does not list. ``after``:
    look only at the classes after this one in the method resolution order.
    """
    classes = kind.__mro__
    names: set[str] = set()
    complete = True
    for one in classes if after is None else classes[classes.index(after) + 1 :]:
        if "__init__" not in vars(one):
            continue
        found = inspect.signature(vars(one)["__init__"]).parameters.values()
        names.update(each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))
        if not any(each.kind is each.VAR_KEYWORD for each in found):
            break
        complete = False
    return names - {"self"}, complete


def words_of_keys() -> tuple[set[str], bool]:
    """Return the names that urllib3's pool keys have, and whether a manager takes no others.

    A new manager copies ``key_fn_by_scheme``, which an application may have changed: a key class of its own adds its
    fields, and any other function may accept every name.
    """
    names = {"strict"}  # urllib3 removes it, with a warning
    complete = True
    for make in poolmanager.key_fn_by_scheme.values():
        ours = isinstance(make, functools.partial) and make.func is poolmanager._default_key_normalizer
        fields = getattr(make.args[0], "_fields", None) if ours and make.args else None
        complete = complete and fields is not None
        names.update(name.removeprefix("key_") for name in fields or ())
    return names, complete
