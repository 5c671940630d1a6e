"""The event loop in which the caller runs, of whichever library it is."""

from __future__ import annotations

import sys

from ..errors import UsageError
from . import asyncio_
from .base import AsyncRuntime

__all__ = ("current_runtime", "in_loop")


def current_runtime(any_loop: bool = False) -> AsyncRuntime:
    """The event loop of the calling task; ``any_loop``: it and all others. Raises UsageError outside of one."""
    runtime = _current(any_loop)
    if runtime is None:
        raise UsageError("an AsyncPool needs a running event loop (asyncio or trio); use Pool in threads")
    return runtime


def in_loop() -> bool:
    """Whether the caller runs in an event loop."""
    return _current(False) is not None


def _current(any_loop: bool) -> AsyncRuntime | None:
    runtime: AsyncRuntime | None = asyncio_.current(any_loop)
    if runtime is None and "trio" in sys.modules:
        from . import trio_

        runtime = trio_.current()
    return runtime
