"""One connection limit for many processes and machines, kept in Redis, PostgreSQL or a directory.

>>> budget = FleetBudget(RedisStore("redis://localhost"), "orders-db", limit=100)
"""

from ._budget import FleetBudget, FleetStats
from ._file import FileStore
from ._ledger import Ask, Grant
from ._postgres import PostgresStore
from ._redis import RedisStore
from ._store import Store, StoreDown, StoreError

__all__ = (
    "Ask",
    "FileStore",
    "FleetBudget",
    "FleetStats",
    "Grant",
    "PostgresStore",
    "RedisStore",
    "Store",
    "StoreDown",
    "StoreError",
)
