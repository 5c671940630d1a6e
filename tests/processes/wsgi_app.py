"""A WSGI application whose pools are made, and used, when the module is imported: with --preload, before the fork."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.processes.subjects import make

subjects = [make("sqlalchemy", os.environ["PG_URL"]), make("redis", os.environ["REDIS_URL"])]
parents = [os.getpid(), *(subject.use() for subject in subjects)]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    answer = {"mine": [os.getpid(), *(subject.use() for subject in subjects)], "parents": parents}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
