"""What the application's ``connect`` and ``init`` have left in a new session: each reset comes back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg

__all__ = ("FRESH", "Initial", "initial_state", "is_not_its_sql", "look")

_IDENTITY = "RESET SESSION AUTHORIZATION;\nRESET ROLE;\n"
_TABLES, _SEQUENCES = "\nDISCARD TEMP;", "\nDISCARD SEQUENCES;"
"""What asyncpg's reset query leaves behind: the identity of the session, temporary tables, ``lastval()``."""

# lastval() fails if the session has used no sequence. The setting lasts until the end of this text.
_LASTVAL = """DO $look$ BEGIN
  PERFORM pg_catalog.set_config('poolkit.lastval', pg_catalog.lastval()::pg_catalog.text, true);
EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END $look$;
"""
# COPY, because the application's codecs do not change its values; in hexadecimal, because COPY escapes characters
_PARTS = """COPY (SELECT pg_catalog.encode(pg_catalog.convert_to(part, 'UTF8'), 'hex') FROM (VALUES
  (1, pg_catalog.format('SET SESSION AUTHORIZATION %I', session_user)),
  (2, CASE pg_catalog.current_setting('role') WHEN 'none' THEN 'SET ROLE NONE'
      ELSE pg_catalog.format('SET ROLE %I', pg_catalog.current_setting('role')) END)"""
_OBJECTS = """,
  (3, (SELECT pg_catalog.string_agg(classid || '.' || objid, ' ' ORDER BY classid, objid) FROM pg_catalog.pg_depend
       WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
       AND refobjid = pg_catalog.pg_my_temp_schema())),
  (4, pg_catalog.current_setting('poolkit.lastval', true))"""
_END = "\n) AS look (place, part) ORDER BY place) TO STDOUT"
_NO_ANSWER = ("08", "53", "57")  # classes of SQLSTATE: connection, insufficient resources, operator intervention
_NOT_ITS_SQL = ("0A", "42601", "42704")  # feature not supported, syntax error, unknown setting


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
"""A session in which the application has executed nothing, or which nothing is known of."""


def is_not_its_sql(error: asyncpg.PostgresError) -> bool:
    """Return whether the server does not know a statement, because it only resembles PostgreSQL."""
    return (error.sqlstate or "").startswith(_NOT_ITS_SQL)


async def _copied(connection: Any, text: str) -> list[str]:
    received: list[bytes] = []

    async def output(data: bytes) -> None:
        received.append(data)

    await connection._protocol.copy_out(text, output, None)  # not the application's own method
    lines = b"".join(received).decode("ascii").splitlines()
    return ["" if line == r"\N" else bytes.fromhex(line).decode() for line in lines]


async def look(connection: Any) -> tuple[str, ...]:
    """Return the user and the role of the session as SQL, its temporary objects and its ``lastval()``."""
    # two statements in one text are one transaction and one round trip
    return tuple(await _copied(connection, _LASTVAL + _PARTS + _OBJECTS + _END))


async def initial_state(connection: Any) -> Initial:
    """Return what a reset of this new session comes back to."""
    if connection._protocol.is_in_transaction():
        return FRESH  # the transaction that the application has begun is rolled back with all that it has set
    try:
        kept = await look(connection)
    except asyncpg.PostgresError:
        return await _initial_identity(connection)
    user, role, objects, used = kept
    after = ("" if objects else _TABLES) + ("" if used else _SEQUENCES)
    return Initial(_identity(user, role), after, kept if objects or used else None)


async def _initial_identity(connection: Any) -> Initial:
    """Return what a reset comes back to if the session may not use PL/pgSQL or read the catalog.

    A server that only resembles PostgreSQL is a reason as well. Whether it knows the statements for the identity shows
    here, not in a reset.
    """
    try:
        user, role = await _copied(connection, _PARTS + _END)
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_NO_ANSWER):
            raise
        return FRESH
    before = _identity(user, role)
    try:
        await connection._protocol.query(before, None)  # changes nothing
    except asyncpg.PostgresError as error:
        if is_not_its_sql(error) or isinstance(error, asyncpg.InternalServerError):
            return FRESH
    return Initial(before, FRESH.after)


def _identity(user: str, role: str) -> str:
    return f"{_IDENTITY}{user};\n{role};\n"
