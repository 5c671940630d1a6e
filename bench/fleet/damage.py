"""Damage to the store of a running fleet: for each kind of store, by name.

Each is a function of the place of the store that returns what ends it (most are over at once).
"""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
import redis

__all__ = ("DAMAGE", "full_disk")

End = Callable[[], None]
Damage = Callable[[str], End]

KEY = "poolkit:fleet:test"  # of the fleet "test", in tests.fleet.program


def _over() -> None:
    pass


def _files(place: str, chosen: Callable[[Path], bool], do: Callable[[Path], object]) -> End:
    for path in Path(place).iterdir():
        if chosen(path):
            with contextlib.suppress(FileNotFoundError):
                do(path)
    return _over


def _numbers(path: Path) -> bool:
    return path.suffix == ".fleet"


def _member(path: Path) -> bool:
    return not _numbers(path)


def _directory(place: str) -> End:
    shutil.rmtree(place, ignore_errors=True)
    return _over


def _redis(place: str, *commands: tuple[str, ...]) -> End:
    client: Any = redis.Redis.from_url(place)
    # several commands in one transaction, or a process of the fleet may come in between
    with contextlib.closing(client), client.pipeline(transaction=len(commands) > 1) as together:
        for command in commands:
            together.execute_command(*command)
        together.execute()
    return _over


def _redis_full(place: str) -> End:
    _redis(place, ("CONFIG", "SET", "maxmemory", "1"))

    def end() -> None:
        _redis(place, ("CONFIG", "SET", "maxmemory", "0"))

    return end


def _sql(place: str, *statements: str) -> End:
    with psycopg.connect(place, autocommit=True) as connection:
        for statement in statements:
            while True:
                try:
                    connection.execute(statement.encode())
                except psycopg.errors.DeadlockDetected:
                    continue  # a process of the fleet was updating the same rows, in another order
                except psycopg.errors.UndefinedTable:
                    pass  # dropped before and not created since
                break
    return _over


DAMAGE: dict[str, dict[str, Damage]] = {
    "file": {
        "all files deleted": lambda place: _files(place, lambda _: True, Path.unlink),
        "the members' files deleted": lambda place: _files(place, _member, Path.unlink),
        "the numbers deleted": lambda place: _files(place, _numbers, Path.unlink),
        "the directory deleted": _directory,
        "garbage": lambda place: _files(place, _numbers, lambda path: path.write_bytes(b"\xff garbage")),
        "wrong types": lambda place: _files(place, _numbers, lambda path: path.write_text('{"rows": 1, "token": []}')),
        "emptied": lambda place: _files(place, _numbers, lambda path: path.write_bytes(b"")),
    },
    "redis": {
        "FLUSHALL": lambda place: _redis(place, ("FLUSHALL",)),
        "garbage": lambda place: _redis(place, ("HSET", KEY, "m:stranger", "garbage", "grace", "soon")),
        "wrong types": lambda place: _redis(place, ("DEL", KEY), ("LPUSH", KEY, "1")),
        "full": _redis_full,
    },
    "postgres": {
        "TRUNCATE": lambda place: _sql(place, "TRUNCATE poolkit_fleet"),
        "DROP": lambda place: _sql(place, "DROP TABLE IF EXISTS poolkit_fleet"),
        "garbage": lambda place: _sql(place, "UPDATE poolkit_fleet SET permits = -1, until = 'infinity'"),
    },
}


def full_disk(processes: Iterable[int]) -> End:
    """Let these processes write no more files, as on a full disk (the error is EFBIG). Linux only."""
    before = {}
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            before[process] = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, before[process][1]))

    def end() -> None:
        for process, limit in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limit)

    return end
