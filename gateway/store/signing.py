"""The keys that sign login tokens, encrypted like all secrets. The newest one signs; those before it verify until their end."""

from __future__ import annotations

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.signing import Material, SigningKey, from_text, to_text
from gateway.store.errors import SecretUnreadable
from gateway.store.secrets import SecretBox
from gateway.store.tables import signing_keys


async def read_all(conn: AsyncConnection, box: SecretBox, now_s: float) -> list[SigningKey]:
    """Those that have not ended, oldest first. Raises `SecretUnreadable` for the one that signs, or is about to.

    One before it that cannot be opened is left out: its tokens are refused, and everybody gets new ones.
    """
    table = signing_keys.c
    query = (
        select(table.kid, table.algorithm, table.ciphertext, table.created_at, table.expires_at)
        .where(or_(table.expires_at.is_(None), table.expires_at > now_s))
        .order_by(table.created_at, table.kid)
    )
    found: list[SigningKey] = []
    for kid, algorithm, ciphertext, created_at, expires_at in (await conn.execute(query)).all():
        try:
            found.append(_opened(box, kid, algorithm, ciphertext, created_at, expires_at))
        except SecretUnreadable:
            if expires_at is None:
                raise
    return found


async def newest(conn: AsyncConnection) -> tuple[str, str] | None:
    """(kid, algorithm) of the one that signs, or is about to; None where there is none yet."""
    table = signing_keys.c
    query = (
        select(table.kid, table.algorithm).where(table.expires_at.is_(None)).order_by(table.created_at.desc(), table.kid.desc()).limit(1)
    )
    row = (await conn.execute(query)).first()
    return None if row is None else (row.kid, row.algorithm)


async def add(conn: AsyncConnection, box: SecretBox, kid: str, algorithm: str, material: Material, now_s: float) -> None:
    """A new one, which does not end."""
    values = {"kid": kid, "algorithm": algorithm, "ciphertext": box.seal(to_text(material)), "created_at": now_s}
    await conn.execute(insert(signing_keys).values(values))


async def end_all(conn: AsyncConnection, at: float) -> None:
    """None of those that there are now is good for longer than `at`, Unix seconds."""
    table = signing_keys.c
    await conn.execute(update(signing_keys).where(or_(table.expires_at.is_(None), table.expires_at > at)).values(expires_at=at))


async def forget_ended(conn: AsyncConnection, before: float) -> None:
    await conn.execute(delete(signing_keys).where(signing_keys.c.expires_at <= before))


async def remove_all(conn: AsyncConnection) -> int:
    """How many there were."""
    return (await conn.execute(delete(signing_keys))).rowcount


async def reseal_all(conn: AsyncConnection, box: SecretBox, now_s: float) -> int:
    """Encrypt every key anew with the newest GATEWAY_SECRET_KEY; returns how many. Those that have ended are dropped: nobody asks for them
    any more. Raises `SecretUnreadable`.
    """
    await forget_ended(conn, now_s)
    rows = (await conn.execute(select(signing_keys.c.kid, signing_keys.c.ciphertext))).all()
    for kid, ciphertext in rows:
        sealed = box.reseal(_name(kid), ciphertext)
        await conn.execute(update(signing_keys).where(signing_keys.c.kid == kid).values(ciphertext=sealed))
    return len(rows)


def _opened(box: SecretBox, kid: str, algorithm: str, ciphertext: bytes, created_at: float, expires_at: float | None) -> SigningKey:
    text = box.open(_name(kid), ciphertext)
    try:
        return SigningKey(kid, algorithm, from_text(algorithm, text), created_at, expires_at)
    except ValueError:  # opened, but is no key: somebody has changed the row
        raise SecretUnreadable(_name(kid)) from None


def _name(kid: str) -> str:
    return f"signing key {kid}"
