"""A real HTTP server on loopback, in its own process: HTTP/1.1, or HTTP/2 over TLS."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import poolkit.errors
from poolkit.errors import ConfigError, MissingExtra
from poolkit.testing.servers._process import ServerProcess
from poolkit.testing.servers.tls import Certificates

__all__ = ("HTTPServer", "HTTPStats")


@dataclass(frozen=True)
class HTTPStats:
    """The server's counters since its start. Reading them does not change them."""

    accepted: int
    """TCP connections accepted."""
    open: int
    """TCP connections open now."""
    max_open: int
    """Most TCP connections open at the same time."""
    requests: int
    """Requests started."""
    max_active: int
    """Most requests in progress at the same time."""


class HTTPServer(ServerProcess):
    """An HTTP server with a few routes that have known behaviour.

    ``/`` and ``/echo?key=`` answer at once, ``/sleep?ms=`` later, ``/stream?chunks=&ms=`` in pieces. ``/bytes?n=``
    answers with n bytes, ``/status?code=`` with that status, ``/upload`` with the length that was sent. ``/close``
    closes the connection after the answer, ``/close-all`` every connection. ``/stats`` returns the counters. Each JSON
    body has ``client_port`` and ``http_version``. All answers have the header ``x-client-port``.

    Args:
        tls: certificates; the server then speaks TLS only.
        http2: offer HTTP/2 by ALPN; needs ``tls``.
        fast: the small HTTP/1.1 server of this package instead of hypercorn, several times as fast.
        max_streams: requests that one HTTP/2 connection may have in progress.
        keep_alive: seconds after which an idle connection is closed by the server (hypercorn only).
        start_timeout: seconds until a start counts as failed.
        stop_timeout: seconds for an orderly stop before the process is killed.

    Raises:
        ConfigError: ``http2`` without ``tls``, or with ``fast``.
        MissingExtra: hypercorn is not installed.
    """

    name = "the HTTP server"
    _stop_signal = signal.SIGTERM

    def __init__(
        self,
        *,
        tls: Certificates | None = None,
        http2: bool = False,
        fast: bool = False,
        max_streams: int = 100,
        keep_alive: float = 60.0,
        start_timeout: float = 60.0,
        stop_timeout: float = 5.0,
    ) -> None:
        super().__init__(start_timeout=start_timeout, stop_timeout=stop_timeout)
        if http2 and (fast or tls is None):
            raise ConfigError("HTTPServer: http2=True needs tls= (HTTP/2 is chosen by ALPN) and not fast=True")
        if not fast and importlib.util.find_spec("hypercorn") is None:
            raise MissingExtra("HTTPServer needs hypercorn: pip install 'poolkit[demo]', or give fast=True")
        self.certificates = tls
        self.http2 = http2
        self.fast = fast
        self.max_streams = max_streams
        self.keep_alive = keep_alive

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port`` or ``https://127.0.0.1:port``, without a slash at the end."""
        return f"{'https' if self.certificates else 'http'}://{self.host}:{self.port}"

    @property
    def ca_path(self) -> str:
        """PEM file of the authority that signed the certificate."""
        return str(self.directory / "ca.pem")

    @property
    def client_context(self) -> ssl.SSLContext | None:
        """A context that trusts this server, as httpx's ``verify=``; None without TLS."""
        return self.certificates.client_context() if self.certificates else None

    def stats(self) -> HTTPStats:
        """Return the server's counters."""
        return HTTPStats(**self._ask("stats"))

    def close_connections(self) -> None:
        """Close every open connection from the server's side, 20 ms from now."""
        self._ask("close")

    def _ask(self, word: str) -> dict[str, int]:
        # a control socket beside HTTP, so that its requests are not counted as connections
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(10)
            control.connect(str(self.directory / "control.sock"))
            control.sendall(word.encode() + b"\n")
            with control.makefile("rb") as file:
                answer: dict[str, int] = json.loads(file.read())
        return answer

    def _prepare(self) -> None:
        if self.certificates:
            self.certificates.write(self.directory)

    def _command(self) -> list[str]:
        settings = {
            "host": self.host,
            "control": str(self.directory / "control.sock"),
            "port": self.port,
            "fast": self.fast,
            "http2": self.http2,
            "max_streams": self.max_streams,
            "keep_alive": self.keep_alive,
            "certificate": str(self.directory / "cert.pem") if self.certificates else "",
            "key": str(self.directory / "key.pem") if self.certificates else "",
        }
        module = f"{__package__}._http_main"
        return [sys.executable, "-m", module, json.dumps(settings)]

    def _environment(self) -> dict[str, str]:
        # the process imports the same poolkit as this one
        root = str(Path(poolkit.errors.__file__).parents[1])
        path = os.environ.get("PYTHONPATH")
        return {"PYTHONPATH": os.pathsep.join([root, path] if path else [root]), "PYTHONWARNINGS": "ignore"}

    def _ready(self) -> bool:
        # The control socket is made after the listening one; a server killed before left its file here.
        self._ask("stats")
        return True
