"""A server for the tests of valkey-py."""

from __future__ import annotations

from poolkit.testing.servers import RedisServer
from poolkit.testing.servers._binaries import find_valkey

__all__ = ("ValkeyServer",)


class ValkeyServer(RedisServer):
    """A real Valkey where its program is installed, else Redis, which speaks the same protocol."""

    name = "Valkey"

    def _command(self) -> list[str]:
        command = super()._command()
        program = find_valkey()
        return command if program is None else [str(program), *command[1:]]
