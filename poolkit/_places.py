"""Where a lease was taken: the line of the application that asked for it."""

from __future__ import annotations

from functools import lru_cache
from types import FrameType

from ._core.slots import Held
from .errors import shown

__all__ = ("packages_of", "place_of", "place_outside")


def place_of(record: Held) -> str | None:
    """Return where the lease was taken, as file:line, if that is recorded."""
    return None if record.place is None else _place(record.place)


@lru_cache(2048)  # places are few and repeat in every snapshot
def _place(place: tuple[str, int]) -> str:
    return shown("{}:{}".format(*place), 1000)


_PACKAGES = ("poolkit.", "poolkit_adapters.", "contextlib.")


def packages_of(connector: object) -> tuple[str, ...]:
    """Return the prefixes of modules that do not count as callers: this package, its adapters and the driver."""
    return _PACKAGES + tuple(f"{name}." for name in getattr(connector, "packages", ()))


def place_outside(frame: FrameType | None, packages: tuple[str, ...], runtime: object) -> tuple[str, int] | None:
    """Return file and line of the nearest frame outside ``packages``. ``runtime`` may know where the stack of a caller
    continues below its first frame (greenlets).
    """
    while frame is not None:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(packages):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
        if frame is None:
            beyond, runtime = getattr(runtime, "outer_frame", None), None
            frame = None if beyond is None else beyond()
    return None
