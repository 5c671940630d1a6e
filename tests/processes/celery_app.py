"""A Celery application with a pool at module level, used by the parent before its workers are forked."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.processes.subjects import make

folder = os.environ["CELERY_FOLDER"]
app: Any = Celery("app", broker="filesystem://", backend=f"file://{folder}")
app.conf.broker_transport_options = {
    "data_folder_in": folder,
    "data_folder_out": folder,
    "store_processed": False,
    "control_folder": f"{folder}/control",
}
app.conf.update(task_serializer="json", result_serializer="json", broker_connection_retry_on_startup=True)

subjects = [make("sqlalchemy", os.environ["PG_URL"]), make("redis", os.environ["REDIS_URL"])]
parents = [os.getpid(), *(subject.use() for subject in subjects)] if os.environ.get("CELERY_ROLE") == "worker" else []


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(number: int) -> dict[str, Any]:
    return {"number": number, "mine": [os.getpid(), *(subject.use() for subject in subjects)], "parents": parents}
