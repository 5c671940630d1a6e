"""What a Pool does on connections: connect, look, check, reset, close; and the threads in which it does that."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from ._core.contract import BrokenContract, verdict_of
from ._core.effects import Do
from ._core.entry import IN_USE, RESETTING, Entry
from ._core.upkeep import pinged
from ._log import logger
from ._shell import Shell
from .connector import Verdict
from .errors import describe, shown_again
from .policies.retire import NEVER
from .runtimes.base import Runtime

__all__ = ("ThreadJobs",)

C = TypeVar("C")


class ThreadJobs(Shell[C]):
    """The half of :class:`~poolkit.Pool` that deals with connections."""

    _runtime: Runtime

    # -- in the calling thread or in the background --------------------------------------------------------------------

    def _connect(self, entry: Entry, limit: float | None) -> tuple[C, int, bool]:
        connection: C
        if self._connect_to is not None:
            connection = self._connect_to(entry.lane.key, limit)
        else:
            connection = self._connector.connect(limit)
        try:
            return self._judged(connection)
        except BaseException:
            self._dispose(connection)
            raise

    def _dispose(self, connection: C) -> None:
        """Close a new connection that the pool cannot use."""
        if connection is not None and not self._aborted(connection) and self._close_method is not None:
            try:
                self._close_method(connection)
            except Exception as failure:  # noqa: BLE001 - told, and the connection goes
                logger.debug("%s: close of a connection failed: %s", self.name, describe(failure))

    def _alive(self, entry: Entry, left: float, *, ask: bool) -> Exception | None:
        try:
            peek = self._peek_method
            if peek is not None and verdict_of(self._connector, "peek", peek(entry.connection)) is False:
                return ConnectionResetError("closed by the peer while idle")
            if ask and self._check_method is not None:
                limit = self._config.check_timeout
                limit = left if limit is None else min(limit, left)
                said = self._check_method(entry.connection, None if limit == NEVER else limit)
                if verdict_of(self._connector, "check", said) is False:
                    return ConnectionAbortedError("the check failed")
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            if isinstance(error, BrokenContract):
                self._complain(error)
            return error
        return None

    def _reset(self, entry: Entry) -> Verdict:
        """Reset what was touched, in the returning thread: whether the connection can be used again."""
        verdict = Verdict.DISCARD
        try:
            if self._dirty(entry):
                entry.move(RESETTING)
                self._reset_method(entry.connection)
                entry.move(IN_USE)
            verdict = Verdict.KEEP
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: reset of connection %d failed: %s", self.name, entry.id, describe(failure))
        return verdict

    # -- background work ----------------------------------------------------------------------------------------------

    def run_due(self) -> None:
        """Housekeeping: called by the runtime when something is due. Does not block."""
        if self._close_in_caller:  # closes would hold up the one thread that looks after all pools
            self._runtime.spawn(super().run_due)
        else:
            super().run_due()

    def _hear(self) -> None:
        if self._close_in_caller:  # closes would hold up another pool's caller, or its event loop
            self._runtime.spawn(super()._hear)
        else:
            super()._hear()

    def _call_later(self, delay: float) -> bool | None:
        return self._runtime.schedule(self, delay) is not False

    def _nudge(self) -> None:
        self._runtime.nudge(self)

    def _begin_job(self, do: Do, entry: Entry) -> None:
        if do is Do.CONNECT:
            self._runtime.spawn(self._connect_job, entry)
        elif do is Do.PING:
            self._runtime.spawn(self._ping_job, entry)
        elif self._close_method is None:
            self._abort_now(entry)
        elif self._close_in_caller:
            self._close_job(entry)
        else:
            self._runtime.spawn(self._close_job, entry)

    def _connect_job(self, entry: Entry) -> BaseException | None:
        """Connect for whoever comes first; the error, if it failed."""
        try:
            self._refuse_closed()  # since this was decided
            opened = self._connect(entry, self._connect_limit())
        except BaseException as error:  # noqa: BLE001  handed to the waiters
            self._connect_failed(self._core, entry, error)
            return error
        found = self._gate.step(self._arrived, entry, opened)
        return found if isinstance(found, BrokenContract) else None

    def _connect_limit(self) -> float | None:
        """Seconds for a connect that no caller bounds; where callers connect for lack of threads, not above what a
        caller waits.
        """
        limits = (self._config.connect_timeout, self._config.acquire_timeout if self._gate.alone else None)
        return min((limit for limit in limits if limit is not None), default=None)

    def _close_job(self, entry: Entry) -> None:
        try:
            self._close_method(entry.connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: close of connection %d failed: %s", self.name, entry.id, describe(failure))
        finally:
            self._gone(entry)

    def _ping_job(self, entry: Entry) -> None:
        now = self._clock()
        keepalive = self._config.keepalive
        ask = self._check_method is not None and (
            entry.good_until == 0.0 or (keepalive is not None and now - entry.seen_at >= keepalive)
        )
        error: Exception | None = ConnectionAbortedError("check interrupted")
        try:
            error = self._alive(entry, NEVER, ask=ask)
        finally:
            self._gate.step(pinged, self._core, entry, error, ask, self._clock())

    def _name_of(self, holder: Hashable) -> str:
        return shown_again(self._runtime.name_of(holder))
