"""Share the numbers of several processes of one service through a directory.

prometheus_client's own multiprocess mode keeps the values of its own metrics in mapped files and does not support
collectors. Here each process periodically, and when it ends, writes the result of a scrape as one small file that
replaces the previous one. A reader sees the old file or the new one, never a part of it.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._log import logger
from .._numbers import seconds
from ..errors import ConfigError, describe, said, shown
from ..policies.meters import Histogram
from ..runtimes.fork import Stage, restart_after_fork
from ._aside import Once
from .families import FAMILIES, Values, merged

__all__ = ("Board",)

_GAUGES = {family.name for family in FAMILIES if family.kind == "gauge"}


class Board:
    """The directory, and this process' place in it."""

    def __init__(self, directory: str | os.PathLike[str], read: Callable[[], Values], interval: float) -> None:
        seconds("interval", interval, least=0.001)
        self._directory = Path(directory)
        self._read = read
        self._interval = interval
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._post()
        except OSError as error:
            raise ConfigError(f"directory={str(directory)!r}: cannot be written to: {error}", "directory") from error
        self._start()
        restart_after_fork(Stage.WATCHERS, self, _start_again)
        atexit.register(_last_post, weakref.ref(self))

    def _start(self) -> None:
        """Start the thread that writes. Called again in a forked child, which has none of its parent's threads."""
        self._over = threading.Event()
        threading.Thread(target=_write, args=(weakref.ref(self), self._over, self._interval),
                         name="poolkit-metrics", daemon=True).start()  # fmt: skip

    def close(self) -> None:
        """Write the numbers a last time, and end the thread."""
        if not self._over.is_set():
            self._over.set()
            self._post()

    def _post(self) -> None:
        path = self._directory / f"poolkit_{os.getpid()}.json"
        draft = path.with_suffix(f".{threading.get_ident()}.tmp")
        draft.write_text(json.dumps(_packed(self._read())), encoding="utf-8")
        draft.replace(path)

    def total(self) -> Values:
        """Return the sum over all processes, with the current numbers of this one."""
        parts = [self._read()]
        for path in sorted(self._directory.glob("poolkit_*.json")):
            try:
                pid = int(path.stem.rpartition("_")[2])
                if pid == os.getpid():
                    continue
                values = _unpacked(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                logger.warning("%s: cannot be read: %s", shown(path, 1000), said(error))
                continue
            if not _alive(pid):
                values = {name: found for name, found in values.items() if name not in _GAUGES}
            parts.append(values)
        return merged(parts)


def _write(board: weakref.ref[Board], over: threading.Event, interval: float) -> None:
    once = Once("numbers for other processes")
    while not over.wait(interval):
        one = board()
        if one is None:
            return
        try:
            one._post()
        except Exception as error:  # noqa: BLE001 - a full disk, or a choice of pools that raises: told, and tried again
            once.tell("failed", f"cannot be written; the next attempt follows: {describe(error)}")
        del one


def _start_again(board: Board) -> None:
    if not board._over.is_set():
        board._start()


def _last_post(board: weakref.ref[Board]) -> None:
    one = board()
    if one is not None:
        try:
            one.close()
        except Exception:  # noqa: BLE001 - the process ends
            pass  # the directory was removed with the service


def _alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # signal 0 is Ctrl-C there, and would end the process; its post is removed at its own end
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # the process belongs to another user, so it exists
    return True


def _packed(values: Values) -> dict[str, Any]:
    return {
        name: [[labels, [value.counts, value.sum] if isinstance(value, Histogram) else value]
               for labels, value in found.items()]
        for name, found in values.items()
    }  # fmt: skip


def _unpacked(packed: dict[str, Any]) -> Values:
    return {
        name: {
            tuple((shown(key), shown(text)) for key, text in labels):
            Histogram(counts=tuple(value[0]), sum=value[1]) if isinstance(value, list) else value
            for labels, value in found
        }
        for name, found in packed.items()
    }  # fmt: skip
