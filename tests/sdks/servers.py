"""Servers that answer the SDKs as their services do, on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
from types import TracebackType
from typing import Any

from tests.support.loops import LoopThread

__all__ = ("MODEL", "SDKServer")

MODEL = "model"


class SDKServer:
    """Answers the routes of several services. A request for a stream gets ``parts`` events, ``pause`` seconds apart.

    ``accepted`` counts connections, ``requests`` counts requests, ``broken_off`` counts streams that the client left.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._loop = LoopThread("sdk-server")
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = self.requests = self.broken_off = 0
        self.parts, self.pause = 3, 0.0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> SDKServer:
        self._loop.start()
        self._loop.run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._close())
        self._loop.stop()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                method, path, *_ = head.decode().split(" ", 2)
                length = next(
                    (int(line.partition(":")[2]) for line in head.decode().split("\r\n")
                     if line.lower().startswith("content-length:")), 0,
                )  # fmt: skip
                body = json.loads(await reader.readexactly(length) or b"{}")
                await self._answer(writer, method, path.partition("?")[0], body)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: dict[str, Any]) -> None:
        if body.get("stream"):
            await self._stream(writer, path)
            return
        await asyncio.sleep(self.pause)
        content = json.dumps(_whole(path)).encode()
        length = 0 if method == "HEAD" else len(content)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (length, content[:length])
        )
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, path: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            *events, last = (b"%x\r\n%b\r\n" % (len(event), event) for event in _events(path, self.parts))
            for event in events:
                writer.write(event)
                await writer.drain()
                await asyncio.sleep(self.pause)
            writer.write(last + b"0\r\n\r\n")  # the end arrives with the last event
            await writer.drain()
        except OSError:
            self.broken_off += 1
            raise


def _whole(path: str) -> Any:
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": "hello"}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL,
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
    if path.endswith("/messages"):
        return _message([{"type": "text", "text": "hello"}])
    return {"id": "org/model", "modelId": "org/model", "tags": [], "siblings": []}  # the hub


def _message(content: list[Any]) -> dict[str, Any]:
    return {"id": "1", "type": "message", "role": "assistant", "model": MODEL, "content": content,
            "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip


def _events(path: str, parts: int) -> list[bytes]:
    if path.endswith("/messages"):
        text = {"type": "text_delta", "text": "hello"}
        events: list[tuple[str, dict[str, Any]]] = [
            ("message_start", {"message": _message([])}),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
            *(("content_block_delta", {"index": 0, "delta": text}) for _ in range(parts)),
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}),
            ("message_stop", {}),
        ]
        return [f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode() for kind, data in events]
    part = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [{"index": 0, "delta": {"content": "hello"}}]}  # fmt: skip
    return [f"data: {json.dumps(part)}\n\n".encode() for _ in range(parts)] + [b"data: [DONE]\n\n"]
