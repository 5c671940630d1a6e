"""The process of :class:`HTTPServer`. Its only argument is a JSON object with the settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
from typing import Any

from poolkit.testing.servers._http_app import Application, Book
from poolkit.testing.servers._http_fast import serve_fast


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; from now on no connection is refused."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    listener.setblocking(False)
    return listener


async def _control(path: str, application: Application) -> asyncio.AbstractServer:
    """Answer ``stats`` and ``close`` on a unix socket."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readline()).strip() == b"close":
            application.close_all()
        writer.write(json.dumps(application.book.numbers()).encode())
        writer.close()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return await asyncio.start_unix_server(accepted, path)


async def _serve_hypercorn(settings: dict[str, Any], application: Application, listener: socket.socket) -> None:
    """Serve with hypercorn. Connections are counted where hypercorn makes an object for each."""
    import hypercorn.asyncio.run as run
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    original: Any = vars(run)["TCPServer"]
    book = application.book

    class CountedServer(original):  # type: ignore[misc]  # the base is only known at run time
        async def run(self) -> None:
            address = self.writer.get_extra_info("peername") or ("", 0)
            book.opened(address[1], self.writer)
            try:
                await super().run()
            finally:
                book.closed(address[1])

        async def _read_data(self) -> None:
            await super()._read_data()
            # The client has gone. Without TLS hypercorn would keep the socket until its idle timeout.
            self.writer.close()

    vars(run)["TCPServer"] = CountedServer
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    if settings["certificate"]:
        config.certfile = settings["certificate"]
        config.keyfile = settings["key"]
    config.alpn_protocols = ["h2", "http/1.1"] if settings["http2"] else ["http/1.1"]
    config.h2_max_concurrent_streams = settings["max_streams"]
    config.keep_alive_timeout = settings["keep_alive"]
    config.keep_alive_max_requests = 2**31  # a test, not the server, decides when a connection ends
    config.graceful_timeout = 0.2
    config.errorlog = "-"
    framework: Any = application
    await serve(framework, config)


async def _serve_fast(settings: dict[str, Any], application: Application, listener: socket.socket) -> None:
    context = None
    if settings["certificate"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings["certificate"], settings["key"])
    task = asyncio.ensure_future(serve_fast(application, listener, context))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _main(settings: dict[str, Any]) -> None:
    application = Application(Book())
    listener = _listen(settings["host"], settings["port"])
    control = await _control(settings["control"], application)
    serve = _serve_fast if settings["fast"] else _serve_hypercorn
    await serve(settings, application, listener)
    control.close()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
