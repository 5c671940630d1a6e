"""The loggers of the engine, without the price of importing logging for those to whom there is nothing to say."""

from __future__ import annotations

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

        return getattr(logging.getLogger(self._name), name)


logger: Logger = _Lazy("poolkit")  # type: ignore[assignment]
churn_logger: Logger = _Lazy("poolkit.churn")  # type: ignore[assignment]
