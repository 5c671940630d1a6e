"""Structured log entries for rare and important events, each kind limited in its rate. Standard library only."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from .._registry import watch_pools
from ..errors import ConfigError, describe, masked, shown, shown_key
from ..events import Event, EventKind
from ..policies.rate import Allowance
from ._aside import Aside, Once
from .families import require

__all__ = ("LEVELS", "EventLog", "JsonFormatter", "fields_of", "log_events")

LEVELS: dict[EventKind, int] = {
    EventKind.POOL_CREATED: logging.DEBUG,
    EventKind.POOL_SUSPENDED: logging.INFO,
    EventKind.POOL_RECONFIGURED: logging.INFO,
    EventKind.POOL_RESIZED: logging.INFO,
    EventKind.POOL_CLEARED: logging.INFO,
    EventKind.POOL_CLOSED: logging.INFO,
    EventKind.CONNECTION_READY: logging.DEBUG,
    EventKind.CONNECTION_CLOSED: logging.DEBUG,
    EventKind.CONNECT_FAILED: logging.WARNING,
    EventKind.ACQUIRE_FAILED: logging.WARNING,
    EventKind.LEASE_LEAKED: logging.WARNING,
    EventKind.BREAKER_OPENED: logging.ERROR,
    EventKind.BREAKER_CLOSED: logging.INFO,
}
"""The kinds that are logged, with their levels: none that every acquire emits."""


MOST = 4096
"""Rates that a log remembers, each of one pool and kind. Beyond that it forgets the one that was used longest ago."""


class EventLog:
    """A listener that writes log entries: at most ``burst`` at once, and ``burst`` per minute, of each kind and pool.
    The next entry that is written says how many were suppressed.

    The message of an entry is one line; its fields are in ``record.poolkit``, a dict (see :class:`JsonFormatter`). The
    first error of a handler is logged, and the handler gets later entries as well. Thread-safe. As a listener of a pool
    it writes in the thread or task of the event, so a blocking handler delays that; :func:`log_events` avoids this.
    Raises ConfigError for an invalid ``burst`` or ``levels``.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        burst: int = 10,
        levels: Mapping[EventKind, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require("burst", burst, (int,), 1, None, "a number of log entries, 1 or more")
        chosen: Any = LEVELS if levels is None else levels
        if not isinstance(chosen, Mapping):
            raise ConfigError(f"levels={levels!r}: must map each EventKind to a level", "levels")
        for kind, level in chosen.items():
            if not isinstance(kind, EventKind) or isinstance(level, bool) or not isinstance(level, int):
                right = "must have a level, such as logging.INFO, for an EventKind"
                raise ConfigError(f"levels={{{kind!r}: {level!r}}}: {right}", "levels")
        self._logger = logger or logging.getLogger("poolkit.events")
        self._burst = burst
        self._clock = clock
        self.levels: dict[EventKind, int] = dict(chosen)
        self.kinds = frozenset(self.levels)
        self._allowances: dict[tuple[str, EventKind], Allowance] = {}
        self._lock = threading.Lock()
        self._once = Once("the log of events")
        self._aside: Aside | None = None

    def __call__(self, event: Event) -> None:
        """Write the entry for an event if its kind is wanted, its level is enabled, and it is not too frequent."""
        level = self.levels.get(event.kind)
        if level is None or not self._logger.isEnabledFor(level):
            return
        with self._lock:
            now = self._clock()
            key = (event.pool, event.kind)
            allowance = self._allowances.pop(key, None) or Allowance(self._burst, 60.0, now)
            self._allowances[key] = allowance  # last: it was used last
            if len(self._allowances) > MOST:
                del self._allowances[next(iter(self._allowances))]
            held_back = allowance.take(now)
        if held_back is None:
            return
        fields = fields_of(event)
        if held_back:
            fields["held_back"] = held_back
        text = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items() if name not in ("pool", "event"))
        write = partial(self._logger.log, level, "%s: %s%s", event.pool, event.kind.value, f" {text}" if text else "",
                        extra={"poolkit": fields})  # fmt: skip
        if self._aside is not None:
            self._aside.do(partial(copy_context().run, write))  # filters may look for whom it happens to
            return
        try:
            write()
        except Exception as error:  # noqa: BLE001 - a handler's: a listener that raises would be dropped for it
            self._once.tell("raised", f"failed; later calls are still made: {describe(error)}", exc_info=True)


def fields_of(event: Event) -> dict[str, Any]:
    """Return the fields of an event, without those that do not apply; errors as masked and escaped text."""
    found: dict[str, Any] = {"pool": event.pool, "event": event.kind.value}
    if event.connection_id is not None:
        found["connection"] = event.connection_id
    if event.duration is not None:
        found["seconds"] = round(event.duration, 6)
    if event.reason is not None:
        found["reason"] = event.reason.value
    if event.error is not None:
        found["error"] = describe(event.error)
    if event.detail is not None:
        found["detail"] = shown(event.detail, 1000)
    if event.key is not None:
        found["key"] = shown_key(event.key)
    return found


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text else text


class JsonFormatter(logging.Formatter):
    """One JSON object for each entry: time, level, logger, message, and the fields of pool events."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry as one line of JSON."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "poolkit", {}),
        }
        if record.exc_info:
            entry["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)


def log_events(logger: logging.Logger | None = None, **options: Any) -> Callable[[], None]:
    """Log the events of all pools of the process, including later ones. Returns a function that stops the logging.

    ``options`` as for :class:`EventLog`. Pools stay as fast as without it, because events of every acquire are not
    requested. A thread writes the entries, so a blocking handler delays no caller. The returned function waits up to 5
    s for entries that are not written yet, the end of the process up to 1 s. Thread-safe.
    """
    log = EventLog(logger, **options)
    log._aside = aside = Aside("the log of events")
    end = watch_pools(lambda pool: pool.add_listener(log))

    def stop() -> None:
        end()
        aside.close()
        log.levels = {}

    return stop
