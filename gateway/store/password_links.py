"""One-time links with which a person sets a password, by a SHA-256 of their secret and of what the person was when it was issued."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import password_links

_T = password_links.c


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who issued a link: a user, and the key they did it with (None: a login). `user_id` None: whoever holds the machine.

    `epoch`: of the user's logins then; None: of nobody who has an account here.
    """

    user_id: str | None = None
    key_id: str | None = None
    epoch: int | None = None


async def put(conn: AsyncConnection, digest: bytes, user_id: str, now_s: float, expires_at: float, issuer: Issuer | None = None) -> None:
    """The user's one link: any before it is gone."""
    await delete_of(conn, user_id)
    issuer = issuer or Issuer()
    issued = {"issued_by": issuer.user_id, "issued_with": issuer.key_id, "issued_epoch": issuer.epoch}
    values = {"digest": digest, "user_id": user_id, "created_at": now_s, "expires_at": expires_at}
    await conn.execute(insert(password_links).values(values | issued))


async def issuer_of(conn: AsyncConnection, digest: bytes, user_id: str, now_s: float) -> Issuer | None:
    """Who issued this link of this user; None: there is no such link, or it has run out."""
    columns = _T.issued_by, _T.issued_with, _T.issued_epoch
    query = select(*columns).where(_T.digest == digest, _T.user_id == user_id, _T.expires_at > now_s)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else Issuer(*row)


async def delete_of(conn: AsyncConnection, user_id: str) -> None:
    await conn.execute(delete(password_links).where(_T.user_id == user_id))


async def delete_issued_with(conn: AsyncConnection, key_id: str) -> None:
    """Those that were issued with this key."""
    await conn.execute(delete(password_links).where(_T.issued_with == key_id))


async def purge(conn: AsyncConnection, now_s: float) -> int:
    """Forget links that have run out; returns how many."""
    return (await conn.execute(delete(password_links).where(_T.expires_at <= now_s))).rowcount
