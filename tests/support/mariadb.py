"""A MariaDB (or MySQL) server on loopback in a temporary directory, where its programs are on PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from poolkit.testing.servers import ServerError, ServerProcess

__all__ = ("MISSING", "MariaDBServer")

_SERVER = shutil.which("mariadbd") or shutil.which("mysqld")
_INSTALL = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db")

MISSING = "" if _SERVER else "needs the program mariadbd or mysqld on PATH"
"""Why no server can be started; empty if one can."""


class MariaDBServer(ServerProcess):
    """``user`` root without a password, database ``app``."""

    name = "MariaDB"

    def _command(self) -> list[str]:
        return [
            str(_SERVER), "--no-defaults", f"--datadir={self.directory / 'data'}", f"--port={self.port}",
            f"--bind-address={self.host}", f"--socket={self.directory / 'socket'}", "--skip-networking=0",
            f"--pid-file={self.directory / 'pid'}", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M", "--skip-log-bin", "--character-set-server=utf8mb4",
            f"--tmpdir={self.directory / 'tmp'}", *self._account(),
        ]  # fmt: skip

    def _account(self) -> list[str]:
        return ["--user=nobody"] if os.geteuid() == 0 else []  # it refuses to run as root

    def _parent_directory(self) -> str | None:
        return "/tmp"

    def _prepare(self) -> None:
        data, scratch = self.directory / "data", self.directory / "tmp"  # for that account
        data.mkdir()
        scratch.mkdir()
        if self._account():
            for folder in (self.directory, data, scratch):
                shutil.chown(folder, "nobody")
        if _INSTALL:
            how = [_INSTALL, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
                   "--skip-test-db", f"--tmpdir={scratch}", *self._account()]  # fmt: skip
        else:
            how = [str(_SERVER), "--no-defaults", "--initialize-insecure", f"--datadir={data}", *self._account()]
        made = subprocess.run(how, capture_output=True, text=True, timeout=120, check=False, cwd=self.directory)
        if made.returncode:
            raise ServerError(f"{Path(how[0]).name} ended with code {made.returncode}:\n{made.stdout}{made.stderr}")

    def _ready(self) -> bool:
        with contextlib.closing(socket.create_connection((self.host, self.port), timeout=1)) as probe:
            return bool(probe.recv(1))  # the protocol's greeting

    def _started(self) -> None:
        import pymysql

        with contextlib.closing(pymysql.connect(**self.arguments(database=None))) as connection:
            connection.cursor().execute("create database if not exists app")

    def arguments(self, database: str | None = "app") -> dict[str, Any]:
        """Keywords for ``connect()`` of any MySQL driver."""
        given = {"host": self.host, "port": self.port, "user": "root", "password": ""}
        return given if database is None else {**given, "database": database}
