"""Certificates for loopback, and a front that terminates TLS for a server that was built without it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.errors import MissingExtra
from poolkit.testing.servers._process import ServerError, free_port

if TYPE_CHECKING:
    import trustme

__all__ = ("Certificates", "TLSFront")

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # what libpq sends to ask for TLS


class Certificates:
    """A temporary authority and one certificate for ``127.0.0.1``, ``::1`` and ``localhost``.

    Raises:
        MissingExtra: trustme is not installed.
    """

    def __init__(self) -> None:
        try:
            import trustme
        except ImportError as error:
            raise MissingExtra("certificates need trustme: pip install 'poolkit[demo]'") from error
        self.authority: trustme.CA = trustme.CA()
        self.certificate: trustme.LeafCert = self.authority.issue_cert("127.0.0.1", "::1", "localhost")

    def server_context(self, *alpn: str) -> ssl.SSLContext:
        """Return a server's context that offers the protocols ``alpn``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate.configure_cert(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a client's context that trusts only this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        return context

    def write(self, directory: Path) -> tuple[Path, Path, Path]:
        """Write PEM files into ``directory``; return the paths of authority, certificate chain and key."""
        authority, chain, key = (directory / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.authority.cert_pem.write_to_path(str(authority))
        chain.write_bytes(b"".join(blob.bytes() for blob in self.certificate.cert_chain_pems))
        self.certificate.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return authority, chain, key


class TLSFront:
    """A port that terminates TLS and forwards the plain bytes to a server, in a thread of this process.

    The server sees the port of the front, not that of the client. When one side closes, the front closes the other.

    Args:
        certificates: the certificates that it presents.
        postgres: answer PostgreSQL's request for TLS before the handshake.
    """

    def __init__(self, certificates: Certificates, *, postgres: bool = False) -> None:
        self.certificates = certificates
        self.port = 0
        self._postgres = postgres
        self._target = ("127.0.0.1", 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, host: str, port: int) -> None:
        """Listen on a free port for the server at ``host:port``. If it listens already, only the target changes."""
        self._target = (host, port)
        if self._thread is not None:
            return
        self.port = free_port()
        ready = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(ready))
            except BaseException as error:  # noqa: BLE001 - handed to the starting thread
                failure.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="poolkit-tls-front", daemon=True)
        self._thread.start()
        ready.wait(10)
        if failure:
            self._thread = None
            raise ServerError(f"the TLS front cannot listen on port {self.port}") from failure[0]

    def stop(self) -> None:
        """Close the port and all connections. A second call does nothing."""
        if self._thread is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._thread = self._loop = None

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        context = self.certificates.server_context()
        server: asyncio.AbstractServer
        if self._postgres:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: _AskedForTLS(context, self._accepted), "127.0.0.1", self.port)
        else:
            server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, ssl=context)
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_writer: asyncio.StreamWriter | None = None
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            ways = [
                asyncio.ensure_future(_copy(reader, server_writer)),
                asyncio.ensure_future(_copy(server_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, EOFError):
            pass  # a refused handshake or a lost peer ends only this connection, as in a real server
        finally:
            for each in (writer, server_writer):
                if each is not None:
                    each.close()


class _AskedForTLS(asyncio.Protocol):
    """Waits for PostgreSQL's request for TLS, does the handshake, and passes on the TLS streams."""

    def __init__(
        self,
        context: ssl.SSLContext,
        accepted: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None],
    ) -> None:
        self._context = context
        self._accepted = accepted
        self._received = b""
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received == _SSL_REQUEST:
            # the following bytes belong to the handshake and must not be read here
            self._transport.pause_reading()
            self._transport.write(b"S")
            self._task = asyncio.ensure_future(self._handshake())
        elif not _SSL_REQUEST.startswith(self._received):
            self._transport.abort()

    async def _handshake(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            # StreamWriter.start_tls needs Python 3.11; the loop's method exists everywhere
            secure = await loop.start_tls(self._transport, protocol, self._context, server_side=True)
        except OSError:
            return  # the client refused the certificate, or is gone
        if secure is not None:
            protocol.connection_made(secure)
            self._accepted(reader, asyncio.StreamWriter(secure, protocol, reader, loop))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
