"""The base of all servers: a temporary directory, a free port, a log, bounded start and stop."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from poolkit.testing.servers._guard import guard

__all__ = ("ServerError", "ServerProcess", "free_port")

Self = TypeVar("Self", bound="ServerProcess")


class ServerError(RuntimeError):
    """A server did not start or stop. The message contains the end of its log."""


def free_port() -> int:
    """Return a TCP port that is free on 127.0.0.1.

    The port is below the range that the kernel uses for clients. Otherwise a client that connects to a stopped server
    could get this port and be connected to itself. The restarted server would then find its port in use.
    """
    for _ in range(1000):
        port = random.randint(15000, 30000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("no free TCP port between 15000 and 30000 on 127.0.0.1")


class ServerProcess:
    """One server program as a context manager.

    ``start()`` returns when the server answers. The process has a group of its own and is ended by its number. If the
    starting process is killed, the server ends too, and its directory is removed.

    Args:
        start_timeout: seconds until a start counts as failed.
        stop_timeout: seconds for an orderly stop before the process is killed.
    """

    name = "server"
    host = "127.0.0.1"
    _stop_signal = signal.SIGTERM
    _guard_signal = signal.SIGTERM

    def __init__(self, *, start_timeout: float = 30.0, stop_timeout: float = 10.0) -> None:
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    # -- implemented by each server

    def _prepare(self) -> None:
        """Prepare the directory before the first start."""

    def _command(self) -> list[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def _environment(self) -> dict[str, str] | None:
        return None

    def _popen_options(self) -> dict[str, Any]:
        return {}

    def _ready(self) -> bool:
        """Return whether the server answers. May raise OSError while it does not yet."""
        raise NotImplementedError

    def _started(self) -> None:
        """Hook that runs after each start."""

    # -- for users

    @property
    def directory(self) -> Path:
        """The server's temporary directory, removed by :meth:`stop`."""
        if self._directory is None:
            raise ServerError(f"{self.name} is not started")
        return self._directory

    @property
    def running(self) -> bool:
        """Whether the server process exists."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def start(self: Self) -> Self:
        """Start the server and wait until it answers. Does nothing if it runs.

        Raises:
            ServerError: the server did not answer within ``start_timeout``. Nothing is left behind.
        """
        if self.running:
            return self
        first = self._directory is None
        try:
            if first:
                self._directory = Path(tempfile.mkdtemp(prefix="poolkit-", dir=self._parent_directory()))
                guard.watch_directory(str(self._directory))
                self._prepare()
            for attempts_left in (2, 1, 0):
                if not self.port:
                    self.port = free_port()
                try:
                    self._launch()
                    break
                except ServerError:
                    # Another process may have taken the port since free_port() checked it.
                    if not (first and attempts_left and "address already in use" in self.log().lower()):
                        raise
                    self.port = 0
            self._started()
        except BaseException:
            self._end(signal.SIGKILL)
            if first:
                self._remove_directory()
            raise
        return self

    def stop(self) -> None:
        """Stop the server, kill it after ``stop_timeout``, and remove the directory. A second call does nothing."""
        self._end(self._stop_signal)
        self._remove_directory()
        self.port = 0

    def restart(self, *, down: float = 0.0) -> None:
        """Stop, wait ``down`` seconds, and start again on the same port with the same data."""
        self._end(self._stop_signal)
        if down > 0:
            time.sleep(down)
        self.start()

    def kill(self) -> None:
        """End the process at once with SIGKILL. :meth:`start` starts it again on the same port."""
        self._end(signal.SIGKILL)

    def log(self, last: int = 40) -> str:
        """Return the ``last`` lines that the server wrote."""
        if self._directory is None:
            return ""
        try:
            text = (self._directory / "server.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-last:])

    def __enter__(self: Self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"{self.host}:{self.port} pid {self.pid}" if self.running else "stopped"
        return f"<{type(self).__name__} {state}>"

    # -- implementation

    def _parent_directory(self) -> str | None:
        return None

    def _launch(self) -> None:
        environment = dict(os.environ)
        environment.update(self._environment() or {})
        with open(self.directory / "server.log", "ab") as log:
            self._process = process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
                **self._popen_options(),
            )
        guard.watch(process.pid, self._guard_signal)
        deadline = time.monotonic() + self.start_timeout
        while True:
            code = process.poll()
            if code is not None:
                guard.unwatch(process.pid)
                self._process = None
                raise ServerError(f"{self.name} ended at its start with code {code}; its log:\n{self.log()}")
            try:
                if self._ready():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise ServerError(
                    f"{self.name} did not answer on {self.host}:{self.port} within {self.start_timeout:g} s; "
                    f"its log:\n{self.log()}"
                )
            time.sleep(0.01)

    def _end(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self._signal(process, number)
            try:
                process.wait(self.stop_timeout)
            except subprocess.TimeoutExpired:
                self._signal(process, signal.SIGKILL)
                process.wait()
        # processes that the program has started end too
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        guard.unwatch(process.pid)
        self._process = None

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def _remove_directory(self) -> None:
        if self._directory is not None:
            path, self._directory = self._directory, None
            shutil.rmtree(path, ignore_errors=True)
            guard.unwatch_directory(str(path))
