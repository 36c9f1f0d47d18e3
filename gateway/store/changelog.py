"""The change log: one row per changed thing, read by every process to bring its tables up to date."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import changes

_LOCK = 0x6777_6368  # "gwch", PostgreSQL advisory lock


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """`kind`: user, key, team, revision, secret, signing_key. `entity_id`: what to read again."""

    id: int
    kind: str
    entity_id: str


async def lock(conn: AsyncConnection) -> None:
    """Taken before a transaction writes the log: ids then become visible in their order, so "after id n" misses nothing.

    Held to the end of the transaction. SQLite has one writer and needs none.
    """
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


async def append(conn: AsyncConnection, kind: str, entity_id: str, actor: str, at: float | None = None) -> int:
    """Returns the id of the entry."""
    values = {"at": time.time() if at is None else at, "kind": kind, "entity_id": entity_id, "actor": actor}
    return int((await conn.execute(insert(changes).values(values).returning(changes.c.id))).scalar_one())


async def latest(conn: AsyncConnection) -> int:
    """Id of the newest entry, 0 if there is none."""
    return int((await conn.execute(select(func.max(changes.c.id)))).scalar() or 0)


async def after(conn: AsyncConnection, change_id: int, limit: int | None = None) -> list[ChangeEntry]:
    """Every entry newer than `change_id` (the first `limit` of them), oldest first."""
    query = select(changes.c.id, changes.c.kind, changes.c.entity_id).where(changes.c.id > change_id).order_by(changes.c.id).limit(limit)
    return [ChangeEntry(*row) for row in (await conn.execute(query)).all()]
