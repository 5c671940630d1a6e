"""The loggers of the engine. They import ``logging`` with the first message, which saves its import time.

An error that a handler of the application raises is printed and does not propagate: it would interrupt a release or a
close of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logging import Logger

__all__ = ("churn_logger", "logger")


class _Lazy:
    """Stands in for a logger until the first message."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import logging

        found = getattr(logging.getLogger(self._name), name)
        return partial(_say, found) if name in _SAYING else found


_SAYING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})


def _say(method: Callable[..., None], *args: Any, **options: Any) -> None:
    try:
        method(*args, stacklevel=2, **options)
    except Exception:  # noqa: BLE001 - raised by the application's handler; logging it would raise again
        import logging
        import traceback

        if logging.raiseExceptions:  # as logging itself handles errors of handlers
            traceback.print_exc()


logger: Logger = _Lazy("poolkit")  # type: ignore[assignment]
churn_logger: Logger = _Lazy("poolkit.churn")  # type: ignore[assignment]
