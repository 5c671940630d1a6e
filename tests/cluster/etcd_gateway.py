"""The three requests of etcd's JSON gateway that poolkit makes, answered by a server that the test can break.

For what a real etcd does not do on demand: to be silent, to cut a watch, to come back from a backup with an earlier
revision. The answers have the form of etcd 3.5.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import PATIENCE

__all__ = ("EtcdGateway",)


class EtcdGateway:
    """``put`` changes a key; ``cut`` ends all watches; ``silent`` is set while requests get no answer.

    ``drops`` is a path whose answers come in small pieces, for seconds, before they are complete.
    """

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.revision = 10
        self.watching = 0
        self.silent = threading.Event()
        self.drops = ""
        self.logins = 0
        self._changed = threading.Condition()
        self._era = 0  # of watches: a cut begins the next
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if gateway.silent.is_set():
                    gateway.wait(lambda: not gateway.silent.is_set())
                    self.close_connection = True
                elif self.path == gateway.drops:
                    self.drip()
                elif self.path == "/v3/auth/authenticate":
                    gateway.logins += 1
                    self.answer({"token": "t"})
                elif self.path == "/v3/watch":
                    gateway.watch(self, int(body["create_request"]["start_revision"]))
                else:
                    self.answer(gateway.all())

            def answer(self, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def drip(self) -> None:
                """Blanks before a valid answer. A client that waits for each piece alone waits for all of them."""
                text = b" " * 300 + json.dumps({**gateway.all(), "token": "t"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with suppress(OSError):  # the client has gone
                    for byte in text:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.01)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait(self, condition: Any) -> None:
        with self._changed:
            self._changed.wait_for(condition, PATIENCE)

    def change(self, **values: Any) -> None:
        """Set attributes; those who wait look again."""
        with self._changed:
            for name, value in values.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def put(self, key: str, value: str) -> None:
        self.keys[key] = value
        self.change(revision=self.revision + 1)

    def cut(self) -> None:
        self.change(_era=self._era + 1)

    def speak(self) -> None:
        self.silent.clear()
        self.change()

    def all(self) -> dict[str, Any]:
        def coded(text: str) -> str:
            return base64.b64encode(text.encode()).decode()

        pairs = [{"key": coded(key), "value": coded(value)} for key, value in sorted(self.keys.items())]
        return {"header": {"revision": str(self.revision)}, "kvs": pairs}

    def watch(self, handler: Any, start: int) -> None:
        """One line when it stands, one when something has changed; nothing at its end."""
        era = self._era
        handler.send_response(200)
        handler.end_headers()
        header = {"revision": str(self.revision)}
        self._line(handler, {"result": {"header": header, "created": True}})
        self.watching += 1
        self.wait(lambda: self.revision >= start or self._era != era)
        self.watching -= 1  # before the client hears of it
        if self._era == era:
            self._line(handler, {"result": {"header": {"revision": str(self.revision)}, "events": [{}]}})
        handler.close_connection = True

    def _line(self, handler: Any, value: Any) -> None:
        handler.wfile.write(json.dumps(value).encode() + b"\n")

    def close(self) -> None:
        self.speak()
        self.cut()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
