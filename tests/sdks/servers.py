"""Servers that answer the SDKs as their services do, on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from tests.support.loops import LoopServer

__all__ = ("MODEL", "SDKServer")

MODEL = "model"


class SDKServer(LoopServer):
    """Answers the routes of several services. A request for a stream gets ``parts`` events, ``pause`` seconds apart.

    ``requests`` counts requests, ``broken_off`` counts streams that the client left.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__("sdk-server", context=context)
        self.requests = self.broken_off = 0
        self.parts, self.pause = 3, 0.0

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://{self.host}:{self.port}"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            self.requests += 1
            method, path, *_ = head.decode().split(" ", 2)
            length = next(
                (int(line.partition(":")[2]) for line in head.decode().split("\r\n")
                 if line.lower().startswith("content-length:")), 0,
            )  # fmt: skip
            body = json.loads(await reader.readexactly(length) or b"{}")
            await self._answer(writer, method, path.partition("?")[0], body)

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
