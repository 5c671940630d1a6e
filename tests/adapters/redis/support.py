"""Helpers of the tests of the redis adapter."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from poolkit.testing.servers import RedisServer

PARSERS: list[Any] = []
_names = itertools.count(1)


def unique() -> str:
    """Return a name for the clients of one test, by which the server's list shows them."""
    return f"test-{next(_names)}"


def ports(server: RedisServer, name: str) -> set[int]:
    """Return the local ports of the connections that the server lists under this name."""
    return {int(record["addr"].rpartition(":")[2]) for record in server.client_list(name)}


def in_threads(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run ``work(i)`` in so many threads at once and return the errors."""
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def run(index: int) -> None:
        gate.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
