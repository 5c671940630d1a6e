"""An HTTP/2 server in a thread. A test controls when it responds and when it sends GOAWAY."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import h2.stream

from poolkit.testing.servers import Certificates
from tests.support.loops import LoopThread


class H2Server:
    """``/now`` is answered at once, ``/wait`` by :meth:`answer`; the body says connection and stream: ``b"0:1"``.
    ``/upload`` is answered with the size of the request's body, at its end. Of ``/refuse-upload`` the first part is
    refused, once; ``/stop-upload`` is answered at the first part, and the rest is not wanted.

    ``excess`` counts the streams that a client has opened beyond what the settings allow. The next ``refusals``
    requests are refused, and the next ``goodbyes`` are met by a goodbye of their connection that does not cover them.
    ``lower``: with this request, the limit becomes ``lower_to``. A ``strict`` server refuses the excess.
    """

    def __init__(self, certificates: Certificates, streams: int = 100) -> None:
        self.streams = streams
        self.connections: list[_Connection] = []
        self.excess = 0
        self.requests = 0
        self.refusals = 0
        self.goodbyes = 0
        self.lower, self.lower_to = 0, 0
        self.strict = False
        self.refused_upload = False
        self._context = certificates.server_context()
        self._context.set_alpn_protocols(["h2"])
        self._loop = LoopThread("h2server")

    def __enter__(self) -> H2Server:
        self._loop.start()
        self._server = self._loop.run(self._loop_start())
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _loop_start(self) -> Any:
        return await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", 0, ssl=self._context
        )

    def __exit__(self, *exc: object) -> None:
        self.call(self._server.close)
        self.call(lambda: [one.transport.abort() for one in self.connections])
        self._loop.stop()

    def call(self, work: Any) -> Any:
        """Run ``work()`` in the server's thread."""
        return self._loop.call(work)

    @property
    def waiting(self) -> int:
        """Return the number of streams, over all connections, that wait for :meth:`answer`."""
        return sum(len(one.waiting) for one in list(self.connections))

    def answer(self, connection: int, stream: int) -> None:
        """Answer one stream that waits."""
        self.call(lambda: self.connections[connection].answer(stream))

    def answer_all(self) -> None:
        """Answer all streams that wait."""
        self.call(lambda: [one.answer(stream) for one in self.connections for stream in list(one.waiting)])

    def goaway(self, connection: int, last: int, error_code: int = 0) -> None:
        """Send GOAWAY: streams up to ``last`` are still served."""
        self.call(lambda: self.connections[connection].goaway(last, error_code))

    def ping(self, connection: int) -> None:
        """Send a PING frame."""
        self.call(lambda: self.connections[connection].transport.write(_frame(6, 0, 0, b"12345678")))

    def allow(self, connection: int, streams: int) -> None:
        """Change the number of streams that a connection may have open."""
        self.call(lambda: self.connections[connection].allow(streams))

    def hang_up(self) -> None:
        """Close all connections without GOAWAY."""
        self.call(lambda: [one.transport.abort() for one in self.connections])

    def refuse(self, connection: int, stream: int) -> None:
        """Reset a stream that was not processed."""
        self.call(lambda: self.connections[connection].refuse(stream))


class _Gone:
    """Stands for a transport that is closed."""

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Ignore the data."""


class _Connection(asyncio.Protocol):
    def __init__(self, server: H2Server) -> None:
        self.server = server
        self.h2: Any = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.waiting: list[int] = []
        self.resets: list[tuple[int, int]] = []
        self.open = 0
        self.uploads: dict[int, int] = {}
        self.paths: dict[int, bytes] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport: Any = transport
        self.number = len(self.server.connections)
        self.server.connections.append(self)
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2**31 - 1}
        )
        self.h2.initiate_connection()
        self.h2.data_to_send()  # its own settings: h2 would enforce the limit, but the server must count the excess
        self.allow(self.server.streams)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.open += 1
                self.server.excess += self.open > self.server.streams
                self.server.requests += 1
                path = self.paths[event.stream_id] = dict(event.headers)[b":path"]
                if self.server.requests == self.server.lower:
                    self.server.streams = self.server.lower_to
                    self.allow(self.server.lower_to)
                if self.server.strict and self.open > self.server.streams:
                    self.waiting.append(event.stream_id)
                    self.refuse(event.stream_id)
                elif self.server.refusals:
                    self.server.refusals -= 1
                    self.waiting.append(event.stream_id)
                    self.refuse(event.stream_id)
                elif self.server.goodbyes:
                    self.server.goodbyes -= 1
                    self.open -= 1
                    self.goaway(event.stream_id - 2 if event.stream_id > 1 else 0, 0)
                elif path == b"/wait":
                    self.waiting.append(event.stream_id)
                elif path == b"/head":
                    self.transport.write(_frame(1, 4, event.stream_id, b"\x88"))  # the body never comes
                elif path.endswith(b"upload"):
                    self.uploads[event.stream_id] = 0
                else:
                    self.answer(event.stream_id)
            elif isinstance(event, h2.events.DataReceived):
                self.part_received(event)
            elif isinstance(event, h2.events.StreamEnded):
                size = self.uploads.pop(event.stream_id, None)
                if size is not None:
                    self.answer(event.stream_id, b"%d" % size)
            elif isinstance(event, h2.events.StreamReset):
                self.resets.append((event.stream_id, int(event.error_code)))
                if event.stream_id in self.waiting:
                    self.waiting.remove(event.stream_id)
                    self.open -= 1
        self.flush()

    def part_received(self, event: h2.events.DataReceived) -> None:
        stream, path = event.stream_id, self.paths[event.stream_id]
        self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
        if stream not in self.uploads:
            return
        if path == b"/refuse-upload" and not self.server.refused_upload:
            self.server.refused_upload = True
            del self.uploads[stream]
            self.waiting.append(stream)
            self.refuse(stream)
        elif path == b"/stop-upload":
            del self.uploads[stream]
            self.answer(stream, b"stop")
            self.transport.write(_frame(3, 0, stream, (0).to_bytes(4, "big")))
        else:
            self.uploads[stream] += len(event.data or b"")

    def connection_lost(self, error: Exception | None) -> None:
        self.waiting.clear()
        self.h2, self.transport = None, _Gone()  # a soak creates thousands of half a megabyte each

    def answer(self, stream: int, body: bytes | None = None) -> None:
        with contextlib.suppress(ValueError):
            self.waiting.remove(stream)
        self.open -= 1
        # written by hand, because h2 sends nothing after its own GOAWAY
        if body is None:
            body = b"%d:%d" % (self.number, stream)
        known = self.h2 and self.h2.streams.get(stream)
        if known and known.state_machine.state is h2.stream.StreamState.HALF_CLOSED_REMOTE:
            known.state_machine.state = h2.stream.StreamState.CLOSED  # a body may still arrive otherwise; h2 forgets it
        self.transport.write(_frame(1, 4, stream, b"\x88") + _frame(0, 1, stream, body))

    def goaway(self, last: int, error_code: int) -> None:
        self.transport.write(_frame(7, 0, 0, last.to_bytes(4, "big") + error_code.to_bytes(4, "big")))

    def allow(self, streams: int) -> None:
        self.transport.write(_frame(4, 0, 0, b"\x00\x03" + streams.to_bytes(4, "big")))

    def refuse(self, stream: int) -> None:
        self.waiting.remove(stream)
        self.open -= 1
        self.transport.write(_frame(3, 0, stream, (7).to_bytes(4, "big")))

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
