"""A Celery application with a pool at module level that ``install`` looks after."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from sqlalchemy import create_engine, text

from poolkit.frameworks.celery import install
from poolkit_adapters.sqlalchemy import PoolkitPool

app: Any = Celery("app", broker=os.environ["BROKER_URL"], backend=os.environ["BROKER_URL"])
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)

engine = create_engine(os.environ["PG_URL"], poolclass=PoolkitPool, pool_size=2, min_size=1, name="tasks-db")
install(warm_up=True, drain_timeout=5)


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(number: int) -> dict[str, Any]:
    stats = engine.pool.poolkit.stats()  # type: ignore[attr-defined]
    with engine.connect() as connection:
        session = connection.execute(text("select pg_backend_pid()")).scalar()
    return {
        "number": number,
        "process": os.getpid(),
        "session": session,
        "idle": stats.idle,
        "connects": stats.connects,
    }
