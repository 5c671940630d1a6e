"""The faults, caused by the proxy between client and server or at the servers themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.reliability.world import PASSWORD, ROLE, World
from tests.faults.proxy import FaultProxy, Mode

__all__ = ("FAULTS", "Fault")

Act = Callable[[World, FaultProxy], object]


@dataclass(frozen=True)
class Fault:
    """A fault: what happens, for which kinds of server, and for how many seconds (0: a single event)."""

    name: str
    what: str
    kinds: tuple[str, ...]
    begin: Act
    end: Act | None = None
    seconds: float = 0.0
    way: Literal["", "name", "tls"] = ""
    """How clients connect for this fault: by a name that is looked up, or with TLS."""


def _mode(mode: Mode, *, reset: bool = False) -> Act:
    def act(_: World, proxy: FaultProxy) -> None:
        proxy.mode = mode
        if reset:
            proxy.reset()

    return act


def _latency(seconds: float) -> Act:
    def act(_: World, proxy: FaultProxy) -> None:
        proxy.latency = seconds

    return act


def _partial(_: World, proxy: FaultProxy) -> None:
    proxy.reply_limit = 3


def _whole(_: World, proxy: FaultProxy) -> None:
    proxy.reply_limit = None
    proxy.reset()


def _silent_resolver(world: World, proxy: FaultProxy) -> None:
    world.resolver.hang()
    proxy.reset()


def _restart(world: World, _: FaultProxy, kind: str = "postgres") -> None:
    getattr(world, kind).restart(down=0.3)


def _sql(*statements: str, end_sessions: bool = False) -> Act:
    def act(world: World, _: FaultProxy) -> None:
        world.sql(*statements)
        if end_sessions:
            world.end_sessions()

    return act


def _redis_password(world: World, _: FaultProxy) -> None:
    world.redis_command("CONFIG", "SET", "requirepass", "another")
    world.redis.password = "another"  # for those who keep it
    world.redis_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _redis_password_back(world: World, _: FaultProxy) -> None:
    world.redis_command("CONFIG", "SET", "requirepass", "")
    world.redis.password = None


WIRE = ("postgres", "redis", "http")
LASTS = 0.7
HANGS = 3.0
"""Longer than the sum of a caller's timeouts for a connection and for a connect."""

FAULTS = (
    Fault("latency", "30 ms more in each direction", WIRE, _latency(0.03), _latency(0), LASTS),
    Fault("cut", "every connection is closed (FIN)", WIRE, lambda _, proxy: proxy.cut()),
    Fault("reset", "every connection is broken (RST)", WIRE, lambda _, proxy: proxy.reset()),
    Fault("silence", "half-open: nothing passes; at the end the old connections are broken (RST)", WIRE,
          _mode("silent"), _mode("pass", reset=True), LASTS),
    Fault("partial", "three more bytes of answers on each connection, then silence; at the end RST", WIRE,
          _partial, _whole, LASTS),
    Fault("refused", "connections are broken, new ones refused", WIRE,
          _mode("refuse", reset=True), _mode("pass"), LASTS),
    Fault("unanswered", "connections are broken, new ones accepted and not answered", WIRE,
          _mode("silent", reset=True), _mode("pass"), LASTS),
    Fault("silent host", "packets of the old connections are lost for 3 s, then those are broken; new ones are served",
          WIRE, lambda _, proxy: proxy.freeze(), lambda _, proxy: proxy.thaw(), HANGS),
    Fault("stalled TLS", "connections are broken; new ones are accepted, and for 3 s no TLS handshake is answered",
          ("redis", "http2"), _mode("silent", reset=True), _mode("pass"), HANGS, way="tls"),
    Fault("hanging DNS", "connections are broken, and the resolver does not answer for 3 s", WIRE,
          _silent_resolver, lambda world, _: world.resolver.answer(), HANGS, way="name"),
    Fault("no primary", "roles move from one server to another; for 0.3 s none takes writes", ("cluster",),
          lambda world, _: world.step_down(), lambda world, _: world.promote(), 0.3),
    Fault("sessions ended", "`pg_terminate_backend` for all", ("postgres",), lambda world, _: world.end_sessions()),
    Fault("restart", "the server stops, is down for 0.3 s, and starts", ("postgres",), _restart),
    Fault("too many", "sessions ended, no further allowed (SQLSTATE 53300)", ("postgres",),
          _sql(f"alter role {ROLE} connection limit 0", end_sessions=True),
          _sql(f"alter role {ROLE} connection limit -1"), LASTS),
    Fault("read-only", "failover: old sessions only read (SQLSTATE 25006), new ones may write", ("postgres",),
          lambda world, _: world.fail_over()),
    Fault("password", "password changed and sessions ended, then changed back", ("postgres",),
          _sql(f"alter role {ROLE} password 'another'", end_sessions=True),
          _sql(f"alter role {ROLE} password '{PASSWORD}'"), LASTS),
    Fault("CLIENT KILL", "every client is closed by the server", ("redis",),
          lambda world, _: world.redis.kill_clients()),
    Fault("CLIENT PAUSE", "the server answers nobody for 0.7 s", ("redis",),
          lambda world, _: world.redis_command("CLIENT", "PAUSE", "700", "ALL"), lambda world, _: None, LASTS),
    Fault("restart", "the server stops, is down for 0.3 s, and starts", ("redis",),
          lambda world, proxy: _restart(world, proxy, "redis")),
    Fault("password", "a password is asked for and clients are closed, then not any more", ("redis",),
          _redis_password, _redis_password_back, LASTS),
    Fault("keep-alive ends", "the server closes every connection", ("http",),
          lambda world, _: world.http.close_connections()),
    Fault("restart", "the server stops, is down for 0.3 s, and starts", ("http",),
          lambda world, proxy: _restart(world, proxy, "http")),
    Fault("GOAWAY", "the server says goodbye on every connection and still serves the older half of its requests",
          ("http2",), lambda world, _: world.say_goodbye()),
)  # fmt: skip
