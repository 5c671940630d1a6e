"""The state of all pools of the process as text, on demand and on a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from . import _registry
from .errors import ConfigError

__all__ = ("dump", "dump_on_signal")


def dump(file: TextIO | None = None) -> str:
    """Return the state of every live pool of this process: numbers, diagnosis, leases with their holders, waiting
    callers.

    Also writes it to ``file`` if one is given. Thread-safe; waits for no I/O of the pools. Do not call it in a signal
    handler (see :func:`dump_on_signal`).
    """
    pools = sorted(_registry.live_pools(), key=lambda pool: str(pool.name))
    head = f"poolkit: {len(pools)} live pool{'' if len(pools) == 1 else 's'} in process {os.getpid()}"
    text = "\n\n".join([head, *(pool.dump() for pool in pools)]) + "\n"
    if file is not None:
        file.write(text)
        file.flush()
    return text


def dump_on_signal(signum: int | None = None, file: TextIO | None = None) -> Callable[[], None]:
    """Write :func:`dump` to ``file`` (default: stderr) whenever the process gets a signal (default: ``SIGUSR1``).

    Call it in the main thread. A handler that was set before is called too. Returns a function that undoes it. The
    handler only starts a thread, because it may run inside a critical section of a pool. Raises ConfigError for an
    unknown signal and outside of the main thread.
    """
    if signum is None:
        signum = getattr(signal, "SIGUSR1", None)
        if signum is None:
            raise ConfigError("dump_on_signal(): this system has no SIGUSR1; pass another signal", "signum")
    number = signum

    def handler(got: int, frame: Any) -> None:
        try:
            threading.Thread(target=dump, args=(file or sys.stderr,), name="poolkit-dump", daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # raised here, it would interrupt the main thread
            print(f"poolkit: no dump, because no thread can be started: {error}", file=file or sys.stderr)
        if callable(before):
            before(got, frame)

    before: Any = None
    try:
        before = signal.signal(number, handler)
    except (ValueError, OSError, TypeError) as error:
        shown = int(number) if isinstance(number, int) else number
        raise ConfigError(
            f"dump_on_signal({shown!r}): {error}; call it in the main thread, with a signal that can be handled",
            "signum",
        ) from None

    def undo() -> None:
        if signal.getsignal(number) is handler:
            signal.signal(number, before)

    return undo
