"""One-time codes that a browser's login hands to the command line that began it, by their SHA-256."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import login_codes

_C = login_codes.c


@dataclass(frozen=True, slots=True)
class LoginCode:
    """Whom the code is for, and the PKCE challenge of who may use it."""

    user_id: str
    challenge: str


async def add(conn: AsyncConnection, digest: bytes, code: LoginCode, now_s: float, expires_at: float) -> None:
    """Codes that have run out are forgotten on the way."""
    await conn.execute(delete(login_codes).where(_C.expires_at <= now_s))
    values = {"digest": digest, "user_id": code.user_id, "challenge": code.challenge, "expires_at": expires_at}
    await conn.execute(insert(login_codes).values(values))


async def exists(conn: AsyncConnection, digest: bytes) -> bool:
    return (await conn.execute(select(_C.user_id).where(_C.digest == digest))).scalar() is not None


async def take(conn: AsyncConnection, digest: bytes, now_s: float) -> LoginCode | None:
    """The code, gone from now on; of two at once only one gets it. None: unknown, used or expired."""
    query = delete(login_codes).where(_C.digest == digest).returning(_C.user_id, _C.challenge, _C.expires_at)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None or row.expires_at <= now_s else LoginCode(row.user_id, row.challenge)
