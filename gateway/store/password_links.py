"""One-time links with which a person sets a password, by a SHA-256 of their secret and of what the person was when it was issued."""

from __future__ import annotations

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import password_links

_T = password_links.c


async def put(conn: AsyncConnection, digest: bytes, user_id: str, now_s: float, expires_at: float) -> None:
    """The user's one link: any before it is gone."""
    await delete_of(conn, user_id)
    await conn.execute(insert(password_links).values(digest=digest, user_id=user_id, created_at=now_s, expires_at=expires_at))


async def has(conn: AsyncConnection, digest: bytes, user_id: str, now_s: float) -> bool:
    """Is there such a link of this user that has not run out?"""
    query = select(_T.user_id).where(_T.digest == digest, _T.user_id == user_id, _T.expires_at > now_s)
    return (await conn.execute(query)).first() is not None


async def delete_of(conn: AsyncConnection, user_id: str) -> None:
    await conn.execute(delete(password_links).where(_T.user_id == user_id))


async def purge(conn: AsyncConnection, now_s: float) -> int:
    """Forget links that have run out; returns how many."""
    return (await conn.execute(delete(password_links).where(_T.expires_at <= now_s))).rowcount
