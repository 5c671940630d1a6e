"""What the application's ``connect`` and ``init`` have left in a new session: each reset comes back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg

__all__ = ("FRESH", "OTHER_SERVER", "Initial", "initial_state", "look")

_IDENTITY = "RESET SESSION AUTHORIZATION;\nRESET ROLE;\n"
_TABLES, _SEQUENCES = "\nDISCARD TEMP;", "\nDISCARD SEQUENCES;"
"""What asyncpg's reset query leaves behind: the identity of the session, temporary tables, ``lastval()``."""

# lastval() fails if the session has used no sequence. The setting lasts until the end of this text.
_LASTVAL = """DO $look$ BEGIN
  PERFORM pg_catalog.set_config('poolkit.lastval', pg_catalog.lastval()::pg_catalog.text, true);
EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END $look$;
"""
# COPY, because the application's codecs do not change its values; in hexadecimal, because COPY escapes characters
_LOOK = """COPY (SELECT pg_catalog.encode(pg_catalog.convert_to(part, 'UTF8'), 'hex') FROM (VALUES
  (1, pg_catalog.format('SET SESSION AUTHORIZATION %I', session_user)),
  (2, CASE pg_catalog.current_setting('role') WHEN 'none' THEN 'SET ROLE NONE'
      ELSE pg_catalog.format('SET ROLE %I', pg_catalog.current_setting('role')) END),
  (3, (SELECT pg_catalog.string_agg(classid || '.' || objid, ' ' ORDER BY classid, objid) FROM pg_catalog.pg_depend
       WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
       AND refobjid = pg_catalog.pg_my_temp_schema())),
  (4, pg_catalog.current_setting('poolkit.lastval', true))
) AS look (place, part) ORDER BY place) TO STDOUT"""
_UNKNOWN = ("42", "0A")  # classes of SQLSTATE: syntax or access rule, feature not supported


@dataclass(frozen=True, slots=True)
class Initial:
    """What a reset executes before and after asyncpg's own query.

    ``kept`` is not None if the session has temporary objects, or has used a sequence, before its first lease. A reset
    that discards either would discard these as well. So afterwards ``look()`` must return ``kept``.
    """

    before: str
    after: str
    kept: tuple[str, ...] | None = None


FRESH = Initial(_IDENTITY, _TABLES + _SEQUENCES)
"""A session in which the application has executed nothing."""
OTHER_SERVER = Initial("", "")
"""A session of a server that only resembles PostgreSQL: asyncpg's own query has to do."""


async def look(connection: Any) -> tuple[str, ...]:
    """Return the user and the role of the session as SQL, its temporary objects and its ``lastval()``."""
    received: list[bytes] = []

    async def output(data: bytes) -> None:
        received.append(data)

    # not the application's own method; two statements in one text are one transaction and one round trip
    await connection._protocol.copy_out(_LASTVAL + _LOOK, output, None)
    lines = b"".join(received).decode("ascii").split("\n")[:4]
    return tuple("" if line == r"\N" else bytes.fromhex(line).decode() for line in lines)


async def initial_state(connection: Any) -> Initial:
    """Return what a reset of this new session comes back to."""
    if connection._protocol.is_in_transaction():
        return FRESH  # the transaction that the application has begun is rolled back with all that it has set
    try:
        kept = await look(connection)
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_UNKNOWN):
            return OTHER_SERVER
        raise
    user, role, objects, used = kept
    after = ("" if objects else _TABLES) + ("" if used else _SEQUENCES)
    return Initial(f"{_IDENTITY}{user};\n{role};\n", after, kept if objects or used else None)
