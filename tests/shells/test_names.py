"""Names are resolved in poolkit's own threads: callers share a lookup, and a lookup that hangs is limited."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from poolkit.runtimes import names
from poolkit.runtimes.names import MOST_THREADS, addresses, addresses_async
from tests.support.resolver import ANSWERS, SILENT, Resolver
from tests.support.waiting import PATIENCE, until


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver(monkeypatch)
    yield made
    made.over.set()
    until(lambda: not names._threads, "the lookups of this test have ended")


def lookup_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolkit-lookup"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "fe80::1%eth0", "localhost", "", "/run/socket", "@abstract", None]
)
def test_what_is_no_name_is_left_to_the_driver(host: object, resolver: Resolver) -> None:
    assert addresses(host, 1, 1.0) is None


@pytest.mark.parametrize("host", ["db", "db-1", "db.example.com", "1.example.com", "LOCALHOST.example"])
def test_names_are_recognised(host: str) -> None:
    assert names.is_name(host)


def test_addresses_come_in_the_resolvers_order_each_once(resolver: Resolver) -> None:
    resolver.addresses = ["127.0.0.2", "127.0.0.1", "127.0.0.2"]
    assert addresses(ANSWERS, 5432, PATIENCE) == ["127.0.0.2", "127.0.0.1"]


def test_callers_share_one_lookup_and_each_gives_up_at_its_own_time(resolver: Resolver) -> None:
    with ThreadPoolExecutor(8) as executor:
        patient = [executor.submit(addresses, SILENT, 1, PATIENCE) for _ in range(4)]
        for _ in range(4):
            with pytest.raises(TimeoutError, match="resolver has not answered"):
                addresses(SILENT, 1, 0.01)
        until(lambda: [len(lookup.wakers) for lookup in names._lookups.values()] == [4], "all four wait")
        assert resolver.asked == [SILENT]
        resolver.over.set()
        errors = [future.exception() for future in patient]
    assert [type(error) for error in errors] == [socket.gaierror] * 4
    assert len({id(error) for error in errors}) == 4  # a traceback is not shared by threads


def test_a_name_that_hangs_is_looked_up_again_after_a_while_in_a_bounded_number_of_threads(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PATIENCE", 0.0)
    for _ in range(MOST_THREADS * 3):
        with pytest.raises(TimeoutError):
            addresses(SILENT, 1, 0.01)
    until(lambda: len(resolver.asked) == MOST_THREADS)
    assert names._threads == {(SILENT, 1, socket.AF_UNSPEC): MOST_THREADS}


def test_an_old_lookup_that_fails_late_does_not_fail_the_new_one_beside_it(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Future[list[str]]] = []

    def getaddrinfo(host: str, *rest: Any) -> Any:
        answers.append(Future())
        return [(0, 0, 0, "", (address, 0)) for address in answers[-1].result()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(names, "PATIENCE", 0.0)
    with ThreadPoolExecutor(2) as executor:
        callers = [executor.submit(addresses, "name.test", 1, PATIENCE) for _ in range(2)]
        until(lambda: len(answers) == 2)
        answers[0].set_exception(socket.gaierror(socket.EAI_AGAIN, "of before"))
        until(lambda: names._threads == {("name.test", 1, socket.AF_UNSPEC): 1})
        answers[1].set_result(["127.0.0.7"])
        assert [caller.result() for caller in callers] == [["127.0.0.7"]] * 2


def test_a_name_that_hangs_delays_no_other_lookup(resolver: Resolver) -> None:
    with pytest.raises(TimeoutError):
        addresses(SILENT, 1, 0.01)
    assert addresses(ANSWERS, 1, PATIENCE) == ["127.0.0.1"]


def test_lookups_one_after_another_use_one_thread(resolver: Resolver) -> None:
    before = set(lookup_threads())  # of an earlier test
    seen = set()
    for _ in range(20):
        assert addresses(ANSWERS, 1, PATIENCE) == ["127.0.0.1"]
        seen |= set(lookup_threads()) - before
    assert len(seen) <= 1


def test_the_thread_ends_when_there_is_nothing_to_look_up(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_LINGER", 0.01)
    addresses(ANSWERS, 1, PATIENCE)
    until(lambda: not lookup_threads())
    assert addresses(ANSWERS, 1, PATIENCE) == ["127.0.0.1"]


def test_without_a_thread_the_driver_looks_the_name_up_by_itself(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    until(lambda: not lookup_threads(), "the threads of earlier tests have ended")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert addresses(ANSWERS, 1, PATIENCE) is None
    assert not names._threads
    assert addresses(ANSWERS, 1, PATIENCE) == ["127.0.0.1"]


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_leaves_the_lookup_to_the_others(resolver: Resolver) -> None:
    errors = []

    async def wait() -> None:
        try:
            await addresses_async(SILENT, 1, PATIENCE)
        except OSError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        with anyio.move_on_after(0.01):
            await addresses_async(SILENT, 1, None)
        with pytest.raises(TimeoutError):
            await addresses_async(SILENT, 1, 0.01)
        assert [len(lookup.wakers) for lookup in names._lookups.values()] == [1]
        resolver.over.set()
    assert [type(error) for error in errors] == [socket.gaierror]
    assert resolver.asked == [SILENT]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parents(resolver: Resolver) -> None:
    with pytest.raises(TimeoutError):
        addresses(SILENT, 1, 0.01)
    child = os.fork()
    if child == 0:
        resolver.over.set()
        try:
            addresses(SILENT, 1, PATIENCE)
        except socket.gaierror:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
