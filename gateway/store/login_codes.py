"""One-time codes that a browser's login hands to the command line that began it, by their SHA-256.

The epoch of the user's logins stands in a code's text, and so under its digest: whoever ends their logins ends these too.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import login_codes

_C = login_codes.c


@dataclass(frozen=True, slots=True)
class LoginCode:
    """Whom the code is for, the epoch of their logins that it belongs to, and the PKCE challenge of who may use it."""

    user_id: str
    token_epoch: int
    challenge: str


async def add(conn: AsyncConnection, code: LoginCode, now_s: float, expires_at: float) -> str:
    """Its text, which is stored nowhere. Codes that have run out are forgotten on the way."""
    text = f"{secrets.token_urlsafe(32)}.{code.token_epoch}"
    await conn.execute(delete(login_codes).where(_C.expires_at <= now_s))
    values = {"digest": _digest(text), "user_id": code.user_id, "challenge": code.challenge, "expires_at": expires_at}
    await conn.execute(insert(login_codes).values(values))
    return text


async def exists(conn: AsyncConnection, text: str) -> bool:
    return (await conn.execute(select(_C.user_id).where(_C.digest == _digest(text)))).scalar() is not None


async def take(conn: AsyncConnection, text: str, now_s: float) -> LoginCode | None:
    """The code, gone from now on; of two at once only one gets it. None: unknown, used or expired."""
    query = delete(login_codes).where(_C.digest == _digest(text)).returning(_C.user_id, _C.challenge, _C.expires_at)
    row = (await conn.execute(query)).one_or_none()
    epoch = text.rpartition(".")[2]
    if row is None or row.expires_at <= now_s or not epoch.isdecimal():  # none: of a server before this one, a minute ago
        return None
    return LoginCode(row.user_id, int(epoch), row.challenge)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
