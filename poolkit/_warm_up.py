"""The argument and the error of ``warm_up()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._driver import refuse_closed
from .errors import ConfigError, ConnectFailed, describe

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("connections_wanted", "warm_up_error")


def connections_wanted(pool: PoolBase[Any], count: Any) -> int:
    """The ``count`` of ``warm_up(count)``; None: ``min_size``. Raises ConfigError, or PoolClosed."""
    if count is None:
        count = pool._config.min_size
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"warm_up({count!r}): must be a number of connections, 0 or more", "count")
    refuse_closed(pool)
    return count


def warm_up_error(pool: PoolBase[Any], count: int, errors: list[BaseException], late: int) -> ConnectFailed:
    """The error for ``count`` connects of which some have failed with ``errors`` and some were ``late``."""
    parts = [f"{len(errors)} of {count} connects failed"] if errors else []
    if late:
        parts.append(f"{late} of {count} did not finish in time")
    words = "; ".join([", ".join(parts), *dict.fromkeys(describe(error) for error in errors)])
    error = ConnectFailed(f"{pool.name}: warm_up: {words}")
    error.errors = tuple(errors)
    error.__cause__ = errors[0] if errors else None
    return error
