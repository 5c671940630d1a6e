"""When a connection to one endpoint may be opened: circuit breaker, backoff, pace; and what failed last.

Knows nothing of requests, permits or other endpoints. It is told how each connect ended and asked before each; the core
turns its answers into ticks and errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..config import PoolConfig
from ..errors import CircuitOpen, ConnectFailed, cannot_connect, describe, remembered
from ..policies.backoff import full_jitter
from ..policies.breaker import Breaker
from ..policies.retire import NEVER
from ..policies.sizing import growth, pace, patience

__all__ = ("OPEN", "At", "Dialer", "Open", "Refuse")


class Open(NamedTuple):
    """A connection may be opened now."""


class At(NamedTuple):
    """Not now."""

    until: float
    """The time at which to ask again; NEVER: when a connect that is going on has ended."""


class Refuse(NamedTuple):
    """Not now, and callers that have no connection to wait for should be told :meth:`Dialer.error` at once."""

    until: float
    """The time at which to ask again."""


OPEN = Open()
_OTHERS_FIRST = At(NEVER)


class Dialer:
    """The connects of one endpoint. Not thread-safe: the pool holds its lock around every call."""

    __slots__ = (
        "breaker", "by_caller", "connect_time", "fatal", "in_use", "last_error", "last_error_at", "last_opened_at",
        "name", "retry_at", "rounds",
    )  # fmt: skip

    def __init__(self, name: str, config: PoolConfig, *, by_caller: bool = False, in_use: bool = False) -> None:
        self.name = name  # of the pool, for messages
        self.by_caller = by_caller  # callers connect themselves: they do not sleep through a backoff
        self.in_use = in_use  # a connection counts as live while its connect is going on
        self.breaker = Breaker(config.breaker)
        self.connect_time: float | None = None  # moving average, seconds
        self.last_opened_at = float("-inf")  # when the last connect began
        self.retry_at = 0.0  # backoff: no connect before
        self.rounds = 0  # attempts in a row that failed; connects that failed together are one
        self.fatal = False  # the last connect failed in a way that trying again cannot repair
        self.last_error: BaseException | None = None
        self.last_error_at = 0.0

    # -- may one be opened? ---------------------------------------------------------------------------------------

    def may_open(
        self, now: float, opening: int, live: int, *, elsewhere: bool = False, queued_at: float = -NEVER
    ) -> Open | At | Refuse:
        """Whether one more connect may begin now.

        ``opening``: connects that are going on; ``live``: connections that callers can wait for; ``elsewhere``: callers
        can go to another pool; ``queued_at``: since when callers queue, if it is for them.
        """
        paced = opening and queued_at > -NEVER and (self.in_use or not self.by_caller)
        if paced and live > (opening if self.in_use else 0):  # others may return a connection sooner
            next_one = queued_at + growth(pace(self.connect_time), opening)
            if now < next_one:
                return At(next_one)
        breaker = self.breaker
        if not breaker.may_open(now, opening):
            if not breaker.is_open(now):
                return _OTHERS_FIRST
            again = now + breaker.retry_after(now)
            return At(again) if live else Refuse(again)
        if self.by_caller:
            return OPEN
        if now < self.retry_at:
            return Refuse(self.retry_at) if self.hopeless(live, elsewhere=elsewhere) else At(self.retry_at)
        if self.rounds and opening:
            return _OTHERS_FIRST  # one at a time, for all together, until the server is back
        return OPEN

    def hopeless(self, live: int, *, elsewhere: bool) -> bool:
        """Whether callers have nothing to wait for while the backoff lasts."""
        return elsewhere or (self.fatal and not live)

    def error(self, now: float) -> ConnectFailed:
        """What a caller is told that has nothing to wait for: a new error each time."""
        return self._circuit_open(now) if self.breaker.is_open(now) else self.connect_error()

    def spoken_for(self, opening: int) -> int:
        """How many of the connects that are going on serve a caller that does not wait: the one that makes it."""
        return opening if self.by_caller else 0

    def late_at(self) -> float:
        """When the last connect counts as late, and those that were to share its connection get another one."""
        return self.last_opened_at + patience(self.connect_time)

    @property
    def remembers(self) -> bool:
        """Whether the breaker has counted failures, for which the endpoint must not be forgotten."""
        return self.breaker.config is not None and self.breaker.failures > 0

    # -- how connects went ----------------------------------------------------------------------------------------

    def succeeded(self, spent: float, *, current: bool) -> bool:
        """A connect took ``spent`` seconds and worked; True if that closed the breaker. ``current``: the endpoint has
        not been cleared since it began.
        """
        self.connect_time = spent if self.connect_time is None else 0.8 * self.connect_time + 0.2 * spent
        return self.forget_failures() if current else False

    def forget_failures(self) -> bool:
        """The server is well, or another one; True if that closed the breaker."""
        self.retry_at, self.rounds, self.fatal = 0.0, 0, False
        return self.breaker.succeeded()

    def note(self, error: BaseException, now: float) -> None:
        """Keep the error of a connect, for messages."""
        apart = self.by_caller or not isinstance(error, Exception)  # it goes on, with a traceback that grows
        self.last_error, self.last_error_at = remembered(error) if apart else error, now

    def failed(
        self, config: PoolConfig, random: Callable[[], float], now: float, *, fatal: bool, together: bool
    ) -> bool:
        """A connect failed; True if that opened the breaker. ``together``: it had begun before the last one failed."""
        self.fatal = fatal
        opened = self.breaker.failed(now)
        if not together:
            self.rounds += 1
            self.retry_at = now + full_jitter(config.backoff, self.rounds, random)
        return opened

    # -- in words -------------------------------------------------------------------------------------------------

    def connect_error(self) -> ConnectFailed:
        """The last connect error, as an error for one caller."""
        return cannot_connect(self.name, self.last_error, fatal=self.fatal)

    def _circuit_open(self, now: float) -> CircuitOpen:
        """What failed, since when, when the next try is."""
        breaker = self.breaker
        error = CircuitOpen(
            f"{self.name}: circuit open: {breaker.failures} connects in a row failed, the last "
            f"{now - self.last_error_at:.1f} s ago with {describe(self.last_error)}; open for "
            f"{now - breaker.opened_at:.1f} s, next try in {breaker.retry_after(now):.1f} s"
        )
        error.__cause__ = self.last_error
        error.retry_after = breaker.retry_after(now)
        return error
