"""What a pool keeps after ``dispose()``, until it is used again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import ConnectionPoolEntry

from poolkit import PoolConfig
from poolkit.config import Source, sources_of
from poolkit.settings import DEFAULT, combine

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("Rest",)


class Rest:
    """Keeps no ``min_size`` in a pool that was disposed of or replaced, until its next checkout."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool
        self._own: dict[str, tuple[Any, Source]] = {}  # the pool's own settings meanwhile
        self.emptied = False
        """Whether the pool was disposed of since its last checkout."""

    def config(self) -> PoolConfig:
        """Return the pool's own settings, even while it rests."""
        config = self._pool.poolkit.config
        return combine(self._own, base=config) if self._own else config

    def begin(self, *, succeeded: bool = False) -> None:
        """Keep no ``min_size`` until the next checkout from the pool.

        ``succeeded``: another pool has replaced it, so connections in use are closed when they are returned.
        After dispose() the pool keeps nothing at all, because a connect in progress would stay open in the old pool.
        """
        own, pool = self.config(), self._pool
        changes: dict[str, Any] = {"min_size": 0, "max_idle": 0} if succeeded and self.emptied else {"min_size": 0}
        changes = {name: value for name, value in changes.items() if getattr(own, name) != value}
        if not changes and not succeeded:
            return
        known = sources_of(own)
        self._own.update({name: (getattr(own, name), known.get(name, DEFAULT)) for name in changes})
        # in the pool's own namespace, so that a pool that does not rest has nothing to ask
        if succeeded and "_do_return_conn" not in pool.__dict__:
            pool.__dict__["_do_return_conn"] = partial(pool._do_return_conn, discard=True)
        pool.__dict__["_do_get"] = self._get
        if changes:
            pool.poolkit.reconfigure(**changes)

    def _get(self) -> ConnectionPoolEntry:
        """End the rest with the first checkout after it."""
        pool = self._pool
        pool.__dict__.pop("_do_get", None)
        pool.__dict__.pop("_do_return_conn", None)
        self.emptied = False
        own, self._own = self._own, {}
        if own:
            pool.poolkit.reconfigure(**{name: value for name, (value, _) in own.items()})
        return pool._do_get()
