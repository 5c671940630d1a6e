"""etcd, from Debian's etcd-server or wherever it is on PATH, with one member on loopback."""

from __future__ import annotations

import base64
import json
import shutil
import urllib.request
from typing import Any

from poolkit.testing.servers import free_port
from poolkit.testing.servers._process import ServerProcess


class EtcdServer(ServerProcess):
    """One etcd; ``put`` and ``delete`` through its JSON gateway."""

    name = "etcd"

    def __init__(self) -> None:
        super().__init__(start_timeout=20.0, stop_timeout=5.0)
        self._peers = free_port()

    @staticmethod
    def installed() -> bool:
        return shutil.which("etcd") is not None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def _command(self) -> list[str]:
        peers = f"http://{self.host}:{self._peers}"
        return [
            str(shutil.which("etcd")), "--name", "one", "--data-dir", str(self.directory / "data"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"one={peers}", "--unsafe-no-fsync",
        ]  # fmt: skip

    def _ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
            return bool(json.load(answer).get("health") == "true")

    def _post(self, path: str, **body: str) -> Any:
        coded = {key: base64.b64encode(value.encode()).decode() for key, value in body.items()}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(coded).encode())
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def put(self, key: str, value: Any) -> None:
        self._post("/v3/kv/put", key=key, value=value if isinstance(value, str) else json.dumps(value))

    def delete(self, key: str) -> None:
        self._post("/v3/kv/deleterange", key=key)
