"""A pool for any PEP 249 module: ``connect()`` returns a connection, and its ``close()`` gives it back to the pool.

::

    import sqlite3
    from poolkit_adapters.dbapi import PooledDatabase

    db = PooledDatabase(sqlite3, "app.db", max_size=5)
    with db.connect() as connection:
        connection.execute("insert into t values (1)")

PEP 249: https://peps.python.org/pep-0249/
"""

from __future__ import annotations

from ._database import PooledDatabase
from ._proxies import PooledConnection, PooledCursor

__all__ = ("PooledConnection", "PooledCursor", "PooledDatabase")
