"""From what a caller gave as ``timeout`` to the moment when its call must end."""

from __future__ import annotations

from typing import Any

from .config import PoolConfig
from .errors import ConfigError
from .policies.retire import NEVER

__all__ = ("DEFAULT", "Default", "deadline_of")


class Default:
    """Type of the marker for "the pool's own setting" where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "<the pool's setting>"


DEFAULT = Default()


def deadline_of(timeout: float | Default | None, config: PoolConfig, now: float) -> float:
    """When a call that begins now must end; a timeout of None never does."""
    if isinstance(timeout, Default):
        timeout = config.acquire_timeout
    elif timeout is not None and not _is_duration(timeout):
        raise ConfigError(f"timeout={timeout!r}: must be a time in seconds, 0 or more (or None: for ever)", "timeout")
    return NEVER if timeout is None else now + timeout


def _is_duration(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value >= 0
