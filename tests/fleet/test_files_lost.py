"""The files of a file store are deleted or damaged while the fleet runs: the limit holds, and is used again in time."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkit.fleet import Ask, FileStore, Grant, StoreError
from poolkit.fleet import _file as module

fcntl = pytest.importorskip("fcntl", reason="this system lacks: POSIX file locks")

LIMIT, TTL = 12, 10.0


class Member:
    """One process as the store sees it: it holds what it was granted last."""

    def __init__(self, directory: Path, name: str, clock: list[float]) -> None:
        self.store, self.name, self.held = FileStore(directory), name, 0
        self.store._clock = lambda: clock[0]

    def ask(self, want: int) -> Grant:
        grant = self.store.exchange(Ask("f", self.name, self.held, want, LIMIT, TTL))
        self.held = grant.permits
        return grant


class Host:
    """Three members of one fleet in virtual time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = [1000.0]
        self.members = [self.member(name) for name in "abc"]
        for member in self.members:
            assert member.ask(4).permits == 4

    def member(self, name: str) -> Member:
        return Member(self.directory, name, self.now)

    @property
    def held(self) -> int:
        return sum(member.held for member in self.members)

    def rounds(self, seconds: int) -> None:
        """Let all members ask for the whole limit once a second; assert that it is never exceeded."""
        for _ in range(seconds):
            self.now[0] += 1.0
            for member in self.members:
                member.ask(8)
                assert self.held <= LIMIT


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Treat each member as a separate process: its lock excludes the others while its file is at its path.

    (File locks belong to a process; ``test_fleet.py`` has a test with real processes.)
    """
    monkeypatch.setattr(module, "_own_files", {})
    monkeypatch.setattr(module, "_life_sockets", {})

    def alive(store: FileStore, path: Path, member: str) -> bool | None:
        return module._is_at(module._own_files.get(member), path) or (None if not path.exists() else False)

    monkeypatch.setattr(FileStore, "_is_alive", alive)
    yield Host(tmp_path / "fleet")
    module._close_life_sockets()


def delete(host: Host, *, members: bool = False, numbers: bool = False) -> None:
    for path in host.directory.iterdir():
        if numbers if path.name == "f.fleet" else members:
            path.unlink()


@pytest.mark.parametrize(("members", "numbers"), [(True, False), (False, True), (True, True)])
def test_the_limit_holds_when_files_of_the_fleet_are_deleted(host: Host, members: bool, numbers: bool) -> None:
    """Also when they are deleted repeatedly; the permits of a dead member are used again afterwards."""
    for _ in range(3):
        delete(host, members=members, numbers=numbers)
        host.rounds(3)
    gone = host.members.pop()
    os.close(module._own_files.pop(gone.name))  # the process has died: the kernel closes its file and its socket
    if gone.name in module._life_sockets:
        module._life_sockets.pop(gone.name).close()
    host.rounds(2 * int(TTL))
    assert host.held == LIMIT
    assert {path.name for path in host.directory.iterdir()} == {"f.a", "f.b", "f.fleet"}


def test_the_limit_holds_when_the_whole_directory_is_deleted(host: Host) -> None:
    shutil.rmtree(host.directory)
    host.rounds(15)
    assert host.held == LIMIT


def test_a_new_member_gets_nothing_until_the_others_have_reported_what_they_hold(host: Host) -> None:
    """The state file is missing, and the first member to ask does not know that there was one."""
    delete(host, numbers=True)
    late = host.member("d")
    assert late.ask(8).permits == 0
    host.members.append(late)
    host.rounds(1)
    assert [member.held for member in host.members] == [4, 4, 4, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
@pytest.mark.parametrize("whole", [False, True])
def test_a_new_member_gets_nothing_right_after_all_files_were_deleted(host: Host, whole: bool) -> None:
    """It is the first to ask, and no file shows that there are other members."""
    if whole:
        shutil.rmtree(host.directory)
    else:
        delete(host, members=True, numbers=True)
    late = host.member("d")
    assert late.ask(8).permits == 0
    host.members.append(late)
    host.rounds(1)
    assert [member.held for member in host.members] == [4, 4, 4, 0]
    for member in host.members[:3]:
        member.store.leave("f", member.name)
    host.members = [late]
    host.rounds(int(TTL) + 2)
    assert late.held == LIMIT


def test_a_new_fleet_gets_permits_at_once(host: Host, tmp_path: Path) -> None:
    """Members of another fleet in the same directory, or of another directory, do not count."""
    assert FileStore(host.directory).exchange(Ask("g", "one", 0, 4, LIMIT, TTL)).permits == 4
    assert FileStore(tmp_path / "other").exchange(Ask("f", "two", 0, 4, LIMIT, TTL)).permits == 4
    for store, fleet, name in ((FileStore(host.directory), "g", "one"), (FileStore(tmp_path / "other"), "f", "two")):
        store.leave(fleet, name)


def test_a_member_that_is_not_seen_for_a_ttl_without_file_and_socket_is_dead(host: Host) -> None:
    """Its permits are granted to others, and it gets ``lost`` in its next exchange."""
    asleep = host.members.pop()
    if asleep.name in module._life_sockets:
        module._life_sockets.pop(asleep.name).close()  # as in another container, or not on Linux
    delete(host, members=True)
    host.rounds(int(TTL) - 1)
    assert host.held == 8
    host.rounds(2)
    assert host.held == LIMIT
    assert asleep.ask(0).lost


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
@pytest.mark.parametrize("numbers", [False, True], ids=["its file", "all files"])
def test_a_process_that_is_busy_for_longer_than_a_ttl_keeps_its_permits(host: Host, numbers: bool) -> None:
    """Its files are deleted and it reports nothing for long; its socket shows that it is alive."""
    asleep = host.members.pop()
    delete(host, members=True, numbers=numbers)
    host.rounds(3 * int(TTL))
    assert host.held == 8
    host.members.append(asleep)
    assert not asleep.ask(4).lost
    host.rounds(2)
    assert asleep.held == 4
    host.members.remove(asleep)
    asleep.store.leave("f", asleep.name)
    host.rounds(int(TTL) + 2)
    assert host.held == LIMIT


def test_a_grant_from_a_state_that_is_deleted_meanwhile_does_not_count(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process reads the deleted file, while another creates its own file again for the new state.

    The first sees that file before it is locked, so it takes the other for dead and grants its permits.
    """
    first, other = host.members[:2]
    alive, state = FileStore._is_alive, host.directory / "f.fleet"
    seen: list[str] = []

    def unlocked(store: FileStore, path: Path, member: str) -> bool | None:
        if member == other.name and not seen:
            seen.append(member)
            state.unlink()
            return False
        return alive(store, path, member)

    monkeypatch.setattr(FileStore, "_is_alive", unlocked)
    assert first.ask(8).permits == 4
    assert seen
    host.rounds(int(TTL) + 2)
    assert host.held == LIMIT


def test_a_state_that_is_deleted_in_each_exchange_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange ends at the timeout of the store; nothing is granted or lost."""
    store, state = host.members[0].store, host.directory / "f.fleet"
    monkeypatch.setattr(store, "_timeout", 0.05)
    write = os.pwrite

    def vanishing(file: int, data: bytes, at: int) -> int:
        state.unlink()
        return write(file, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", vanishing)
        with pytest.raises(StoreError, match="deleted again"):
            host.members[0].ask(8)
    host.rounds(int(TTL) + 2)
    assert host.held == LIMIT


def test_a_member_that_leaves_while_the_lock_is_kept_is_seen_to_be_dead(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = host.members.pop()
    monkeypatch.setattr(gone.store, "_timeout", 0.01)
    with module._thread_lock, pytest.raises(StoreError, match="kept the lock"):
        gone.store.leave("f", gone.name)
    host.rounds(2)
    assert host.held == LIMIT


@pytest.mark.parametrize(
    "text",
    [
        b"garbage", b"\xff\xfe\x00", b"[]", b"null", b"{}", b"[" * 100_000, b"x" * (3 << 20),
        b'{"token": 9, "rows": []}', b'{"token": "x", "rows": {}}', b'{"token": 9, "rows": {"a": 4}}',
        b'{"token": 9, "rows": {"a": [-4, 0, 1, 1]}}', b'{"token": 9, "rows": {"a": ["4", 0, 1, 1]}}',
        b'{"token": 9, "rows": {"a": [4, 0, NaN, 1]}}',
    ],
)  # fmt: skip
def test_a_damaged_state_file_is_replaced_and_logged_once(
    host: Host, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    (host.directory / "f.fleet").write_bytes(text)
    with caplog.at_level(logging.WARNING, "poolkit"):
        host.rounds(int(TTL) + 2)
    assert [record.getMessage().partition("f is")[2] for record in caplog.records] == [
        " damaged; a new one is started, and nothing new is granted for 10 s"
    ]
    host.members.pop().store.leave("f", "c")
    host.rounds(2)
    assert host.held == LIMIT
    assert json.loads((host.directory / "f.fleet").read_bytes())["rows"].keys() == {"a", "b"}


def test_with_a_full_disk_no_permits_are_granted_or_lost(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the state was written only in part; the fleet continues when there is space again."""
    write = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        return write(file, data[:7], at)

    monkeypatch.setattr(os, "pwrite", full)
    for member in host.members:
        with pytest.raises(StoreError, match="could not be written completely"):
            member.ask(8)
        assert not member.store.expires
    monkeypatch.setattr(os, "pwrite", write)
    host.rounds(int(TTL) + 2)
    assert host.held == LIMIT


def test_a_lock_on_a_deleted_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is deleted while a process waits for its lock: the state is read from the file that exists then."""
    store = FileStore(tmp_path)
    store.exchange(Ask("f", "a", 0, 4, LIMIT, TTL))
    lock, path = fcntl.lockf, tmp_path / "f.fleet"
    left = [2]

    def vanishing(file: int, how: int) -> None:
        lock(file, how)
        if left[0] and os.path.samestat(os.fstat(file), os.stat(path)):
            left[0] -= 1
            path.unlink()

    monkeypatch.setattr(fcntl, "lockf", vanishing)
    assert store.exchange(Ask("f", "a", 4, 4, LIMIT, TTL)).permits == 4  # in the grace
    assert json.loads(path.read_bytes())["rows"]["a"][0] == 4
    store.leave("f", "a")


def test_the_files_are_touched_at_each_exchange(tmp_path: Path) -> None:
    """A cleaner removes files that were not used for long."""
    store = FileStore(tmp_path)
    ask = Ask("f", "a", 0, 0, LIMIT, TTL)
    store.exchange(ask)
    for path in tmp_path.iterdir():
        os.utime(path, (1.0, 1.0))
    store.exchange(ask)
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_mtime < 100] == []
    store.leave("f", "a")


def test_a_lease_expires_if_others_cannot_see_that_the_process_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was deleted and cannot be created again."""
    store = FileStore(tmp_path)
    ask = Ask("f", "a", 0, 4, LIMIT, TTL)
    store.exchange(ask)
    (tmp_path / "f.a").unlink()
    really = os.open

    def refused(path: object, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("f.a"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(path, flags, mode)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreError, match="No space left"):
        store.exchange(ask)
    assert store.expires
    monkeypatch.setattr(os, "open", really)
    store.exchange(ask)
    assert not store.expires
    store.leave("f", "a")
