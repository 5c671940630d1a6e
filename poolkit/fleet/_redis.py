"""The permits of a fleet in Redis: one hash per fleet, updated by one Lua script."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from .._log import logger
from .._numbers import seconds
from .._watchdog import Watchdog
from ..errors import ConfigError, MissingExtra, raw_text, said, shown, without_quotes
from ._ledger import PLAUSIBLE, Ask, Grant
from ._store import StoreDown, StoreError, wait_for_name

__all__ = ("RedisStore",)

# decide() of _ledger.py in Lua. A member is stored as "m:<name>" = "permits want until token". If the server's run_id
# differs from the stored one (a restart, a failover, a new data set), a grace of one ttl starts, in which nothing new
# is granted. Invalid data starts a grace too, because it may have replaced a member's permits: it is deleted, and
# counted in the last number of the answer.
_SCRIPT = """
local key, member = KEYS[1], 'm:' .. ARGV[1]
local held, want, limit, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local garbage, longest = 0, now + PLAUSIBLE * ttl
local function number(text, below)
  local value = string.match(text or '', '^%d+$') and tonumber(text)
  return value and value < below and value
end
local kind = redis.call('TYPE', key).ok
local sound = kind == 'hash'
if sound then
  sound = number(redis.call('HGET', key, 'grace'), longest) and number(redis.call('HGET', key, 'token'), 2 ^ 53)
end
if not sound and kind ~= 'none' then garbage = 1 end
if not sound or redis.call('HGET', key, 'run') ~= run then
  redis.call('DEL', key)
  redis.call('HSET', key, 'run', run, 'grace', now + ttl, 'token', now)
end
local known, taken, members, wants, others = nil, 0, 1, 0, {}
local all = redis.call('HGETALL', key)
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'm:' then
    local p, w, u, t = string.match(all[i + 1], '^(%d+) (%d+) (%d+) (%d+)$')
    p, w, u = number(p, 2 ^ 31), number(w, 2 ^ 31), number(u, longest)
    if not (p and w and u and number(t, 2 ^ 53)) then
      redis.call('HDEL', key, all[i])
      redis.call('HSET', key, 'grace', now + ttl)
      garbage = garbage + 1
    elseif u <= now then
      redis.call('HDEL', key, all[i])
    elseif all[i] == member then
      known = {p, t}
    else
      taken, members, wants = taken + p, members + 1, wants + w
      others[#others + 1] = {p, w}
    end
  end
end
local grace = now < tonumber(redis.call('HGET', key, 'grace'))
local free = limit - taken
if held > free then
  if not known then return {0, 0, members, 0, 0, 1, garbage} end
  free = math.max(free, 0)
end
held = math.min(held, math.max(free, known and known[1] or 0))
local over = math.max(0, held - free)
local floor, poor = math.max(1, math.floor(limit / members)), 0
for _, other in ipairs(others) do poor = poor + math.min(other[2], math.max(0, floor - other[1])) end
local spare = grace and 0 or math.max(0, free - held)
local own = math.min(want, math.max(0, floor - held), spare)
local more = math.min(want - own, math.max(0, spare - own - poor))
local permits = held + own + more
local left = math.max(0, free - permits)
local token = known and known[2] or redis.call('HINCRBY', key, 'token', 1)
redis.call('HSET', key, member, string.format('%d %d %d %s', permits, want - own - more, now + ttl, token))
redis.call('PEXPIRE', key, ttl * 100)
return {permits, tonumber(token), members, math.max(over, wants - left),
        math.max(over, math.min(math.max(0, poor - left), math.max(0, permits - floor))), 0, garbage}
"""


_AGAIN = 0.1
"""Seconds after which an exchange that continues is ended again: redis-py may have opened another socket."""


class _Exchange:
    """One exchange. The watchdog ends it by shutting down its sockets, because redis-py limits only each read."""

    def __init__(self, pool: Any, watchdog: Watchdog, seconds: float) -> None:
        self._pool = pool
        self._watchdog = watchdog
        self._over = False
        self.late = False
        self._number = watchdog.arm(seconds, self)

    def end(self) -> None:
        """Record that the exchange has ended."""
        self._over = True
        self._watchdog.disarm(self._number)

    def hang_up(self) -> None:
        """Shut down the sockets, because the time is over. Called by the watchdog's thread."""
        self.late = True
        for connection in list(self._pool._in_use_connections):
            sock = connection._sock
            if sock is not None:
                with contextlib.suppress(OSError):  # closed meanwhile, or not connected yet
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the socket itself, also under TLS
        if not self._over:
            self._number = self._watchdog.arm(_AGAIN, self)


class RedisStore:
    """Permits in Redis. Needs ``pip install 'poolkit[redis]'``.

    ``url`` and ``options``: as for ``redis.Redis.from_url``; ``prefix``: of the keys. ``timeout``: seconds for one
    exchange, and as many for a connect before it. It should be a fraction of the fleet's ``ttl``.

    A data set that is new to the fleet (first use, restart, failover to a replica) grants nothing for one ``ttl``. Its
    data may be out of date, and processes that hold permits report them in this time. The same holds if the fleet's key
    contains invalid data, which is deleted and logged.

    Raises :class:`~poolkit.ConfigError` for an unusable URL, :class:`~poolkit.MissingExtra` without redis-py.
    """

    expires = True

    def __init__(self, url: str, *, prefix: str = "poolkit:fleet:", timeout: float = 1.0, **options: Any) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise MissingExtra("RedisStore needs redis-py: pip install 'poolkit[redis]'") from None
        seconds("timeout", timeout, above=True)
        self._redis = redis
        self._prefix = prefix
        # no retries: the fleet retries by itself, and must see each refusal
        limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
        try:
            self._client = redis.Redis.from_url(url, **{**limits, **options})
        except ValueError as error:
            raise ConfigError(f"RedisStore: the URL cannot be used: {without_quotes(error)}", "url") from None
        self._timeout = timeout
        self._watchdog = Watchdog(_Exchange.hang_up)
        self._reached = False  # since the last close; if False, the next call connects and resolves the name
        self._script = self._client.register_script(_SCRIPT.replace("PLAUSIBLE", str(PLAUSIBLE)))

    def exchange(self, ask: Ask) -> Grant:
        """See :meth:`poolkit.fleet.Store.exchange`."""
        arguments: list[str | int] = [ask.member, ask.held, ask.want, ask.limit, int(ask.ttl * 1000)]
        permits, token, members, short, owed, lost, invalid = self._call(
            lambda: self._script(keys=[self._prefix + ask.fleet], args=arguments)
        )
        if invalid:  # deleted now, so no other process will log it
            logger.warning(
                "%s: %d invalid entries of the fleet's key in Redis were deleted; nothing new is granted "
                "for %g s", shown(ask.fleet), invalid, ask.ttl,
            )  # fmt: skip
        return Grant(permits, token, members, short, owed, bool(lost))

    def leave(self, fleet: str, member: str) -> None:
        """See :meth:`poolkit.fleet.Store.leave`."""
        self._call(lambda: self._client.hdel(self._prefix + fleet, f"m:{member}"))

    def forget(self) -> None:
        """See :meth:`poolkit.fleet.Store.forget`; redis-py's pool resets itself in a forked child."""
        self._reached = False

    def close(self) -> None:
        """See :meth:`poolkit.fleet.Store.close`."""
        self._watchdog.stop()
        self._drop()

    def _drop(self) -> None:
        self._reached = False
        self._client.connection_pool.disconnect()

    def _call(self, call: Callable[[], Any]) -> Any:
        pool = self._client.connection_pool
        if not self._reached:
            place = pool.connection_kwargs
            wait_for_name(place.get("host"), place.get("port"), self._timeout)
        exchange = _Exchange(pool, self._watchdog, self._timeout * (1 if self._reached else 2))
        try:
            answer = call()
            self._reached = True
            return answer
        except self._redis.exceptions.BusyLoadingError as error:
            raise StoreDown(f"Redis is loading: {said(error)}") from error
        except self._redis.RedisError as error:
            self._drop()
            if exchange.late:
                raise StoreError(f"Redis: no answer in time (timeout={self._timeout:g})") from error
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, ConnectionRefusedError) or "Connection refused" in raw_text(cause):
                    raise StoreDown(f"Redis refuses connections: {said(error)}") from error
                cause = cause.__cause__ or cause.__context__
            raise StoreError(f"Redis: {said(error)}") from error
        finally:
            exchange.end()
            if exchange.late:
                self._drop()
