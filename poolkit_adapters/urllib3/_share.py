"""What the pools of one manager share: settings, names of engines and the limit over all hosts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from poolkit import Budget, ConfigError, Pool, PoolConfig
from poolkit.config import Source, whole
from poolkit.events import Listener
from poolkit.settings import combine, for_connector, layer, layer_of

from .._errors import Table
from ._connector import URLLib3Connector
from ._errors import ERRORS
from ._link import Link
from ._settings import pool_config

__all__ = ("Share",)

_numbers = itertools.count(1)


class Share:
    """Makes the engines of a manager's pools, one for each pool key. Thread-safe.

    ``driver``: the library whose defaults the arguments have. ``errors``: the table of errors. ``max_connections``: the
    most connections that may exist at once over all hosts; None: no limit.
    """

    def __init__(
        self,
        config: PoolConfig | None,
        settings: Mapping[str, Any],
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        max_connections: int | None = None,
        driver: str = "urllib3",
        errors: Table = ERRORS,
    ) -> None:
        layer_of(config)  # raises ConfigError if this is not a PoolConfig
        self._config = config
        self._settings = dict(settings)
        self._listeners = tuple(listeners)
        self._debug = debug
        self._driver = driver
        self.name = f"{driver}-{next(_numbers)}" if name is None else name
        self.errors = errors
        self.budget = self._budget(max_connections)
        self._engines: WeakValueDictionary[str, Pool[Link]] = WeakValueDictionary()

    def _budget(self, limit: Any) -> Budget | None:
        if limit is None:
            return None
        given = {**layer_of(self._config), **layer(self._settings)}.get("budget", (None,))[0]
        if given is not None:
            raise ConfigError(
                f"max_connections={limit!r} and budget= are two limits over all hosts; give only one", "max_connections"
            )
        whole("max_connections", limit, 1)
        return Budget(limit, name=f"{self.name} (max_connections)")

    def config(self, maxsize: Any, block: bool | None, order: str | None = None) -> PoolConfig:
        """Return the settings of a pool with these arguments. Raises ConfigError for a wrong one."""
        found = pool_config(
            self._config, self._settings, maxsize=maxsize, block=block, order=order, driver=self._driver
        )
        found = for_connector(found, URLLib3Connector)
        if self.budget is None:
            return found
        return combine({"budget": (self.budget, Source("keyword max_connections", driver=True))}, base=found)

    def engine(self, connector: URLLib3Connector, label: str, config: PoolConfig) -> Pool[Link]:
        """Make the engine of a pool. ``label``: scheme, host and port."""
        made: Pool[Link] = Pool(
            connector, config, name=self._free(f"{self.name}/{label}"), debug=self._debug, listeners=self._listeners,
        )  # fmt: skip
        self._engines[made.name] = made
        return made

    def _free(self, name: str) -> str:
        """Return a name that is not in use: a host may have several pools, for example with different TLS options."""
        tried = (name if number == 1 else f"{name} ({number})" for number in itertools.count(1))
        return next(one for one in tried if one not in self._engines)

    @property
    def engines(self) -> list[Pool[Link]]:
        """The engines, oldest first."""
        found = [reference() for reference in self._engines.valuerefs()]
        return [engine for engine in found if engine is not None]
