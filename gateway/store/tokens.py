"""Refresh tokens, by their SHA-256.

`created_at` is when the login was: each token takes it over from the one before, so that it outlives the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import refresh_tokens

_T = refresh_tokens.c


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """Times are Unix seconds. `began_at`: when the login was that it descends from; `used_at`: when its successor took over."""

    family: str
    user_id: str
    token_epoch: int
    began_at: float
    expires_at: float
    used_at: float | None


async def add(
    conn: AsyncConnection, digest: bytes, *, family: str, user_id: str, token_epoch: int, began_at: float, expires_at: float
) -> None:
    values = {"family": family, "user_id": user_id, "token_epoch": token_epoch, "created_at": began_at, "expires_at": expires_at}
    await conn.execute(insert(refresh_tokens).values(digest=digest, used_at=None, **values))


async def find(conn: AsyncConnection, digest: bytes) -> RefreshRow | None:
    query = select(_T.family, _T.user_id, _T.token_epoch, _T.created_at, _T.expires_at, _T.used_at).where(_T.digest == digest)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else RefreshRow(*row)


async def use(conn: AsyncConnection, digest: bytes, now_s: float) -> bool:
    """Mark it used. False: it was used before (or is gone); of two at once only one gets True."""
    result = await conn.execute(update(refresh_tokens).where(_T.digest == digest, _T.used_at.is_(None)).values(used_at=now_s))
    return result.rowcount == 1


async def is_live(conn: AsyncConnection, family: str, now_s: float) -> bool:
    """Is there a token of this login that could still be exchanged?"""
    query = select(_T.family).where(_T.family == family, _T.used_at.is_(None), _T.expires_at > now_s)
    return (await conn.execute(query.limit(1))).first() is not None


async def revoke_family(conn: AsyncConnection, family: str) -> None:
    await conn.execute(delete(refresh_tokens).where(_T.family == family))


async def revoke_user(conn: AsyncConnection, user_id: str) -> None:
    await conn.execute(delete(refresh_tokens).where(_T.user_id == user_id))


async def purge(conn: AsyncConnection, now_s: float) -> int:
    """Forget tokens that have run out; returns how many."""
    return (await conn.execute(delete(refresh_tokens).where(_T.expires_at <= now_s))).rowcount
