"""RQ jobs on a pool at module level: ``rq worker --url $REDIS_URL reports``.

RQ forks a process for each job. The pool starts empty in each, and the process closes its sessions when it ends.
"""

from __future__ import annotations

from sqlalchemy import text

from examples.shop.web import database

engine = database()


def count() -> int:
    """Return the number of orders."""
    try:
        with engine.connect() as connection:
            return connection.scalar(text("select count(*) from orders")) or 0
    finally:
        engine.dispose()  # RQ ends the process without running exit handlers
