"""The class of a caller, as a context variable: code between the block and the pool need not pass it on."""

from __future__ import annotations

from contextvars import ContextVar, Token

from .errors import UsageError

__all__ = ("choose", "chosen", "priority")

_chosen: ContextVar[str | None] = ContextVar("poolkit.priority", default=None)

chosen = _chosen.get
"""Return the class that the current thread or task has chosen; None: the default one."""


choose = _chosen.set
"""Choose a class without a block that ends it (simulations)."""


def _usable(name: object) -> bool:
    return name is None or (isinstance(name, str) and name != "")


class priority:  # noqa: N801  it is used like a function
    """``with poolkit.priority("bulk"): ...``: every acquire in this block belongs to the class "bulk".

    This is a context variable (see :pep:`567`). It applies to the calling thread or task and to the tasks that it
    starts, through every driver and adapter. The innermost block counts. A new thread starts without it, but
    ``asyncio.to_thread`` and ``contextvars.copy_context().run`` pass it on. ``None`` chooses the default class again.

    Pools without classes ignore it. A pool with classes raises :class:`~poolkit.ConfigError` at the acquire if it does
    not know the name. Raises :class:`~poolkit.UsageError` for anything but a name or None.
    """

    __slots__ = ("_before", "name")

    def __init__(self, name: str | None) -> None:
        if not _usable(name):
            raise UsageError(f"priority({name!r}): must be the name of a class of callers, or None for the default one")
        self.name = name
        self._before: list[Token[str | None]] = []

    def __enter__(self) -> None:
        self._before.append(_chosen.set(self.name))

    def __exit__(self, *exc: object) -> None:
        _chosen.reset(self._before.pop())
