"""Celery tasks on the pools of ``web.py``: ``celery --app examples.shop.tasks worker``."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from sqlalchemy import text

from examples.shop.web import database
from poolkit.frameworks.celery import install

app: Any = Celery("shop", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
engine = database()  # at module level: the pool starts empty in each worker process
install(warm_up=True, drain_timeout=5)


@app.task(name="shop.count")
def count() -> int:
    with engine.connect() as connection:
        return connection.scalar(text("select count(*) from orders")) or 0
