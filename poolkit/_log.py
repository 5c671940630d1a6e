"""The logger "poolkit", without the price of importing logging for those to whom there is nothing to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logging import Logger

__all__ = ("logger",)


class _Lazy:
    """Stands in for the logger until the first message."""

    def __getattr__(self, name: str) -> Any:
        import logging

        return getattr(logging.getLogger("poolkit"), name)


logger: Logger = _Lazy()  # type: ignore[assignment]
