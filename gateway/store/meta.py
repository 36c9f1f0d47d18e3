"""Small facts about this installation, by name."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.secret_key import SecretKeys, fingerprint
from gateway.store.tables import meta

KEY_FINGERPRINT = "secret_key_fingerprint"
KEY_SUCCESSOR = "secret_key_successor"


async def get(conn: AsyncConnection, name: str) -> str | None:
    return (await conn.execute(select(meta.c.value).where(meta.c.name == name))).scalar()


async def put_if_absent(conn: AsyncConnection, name: str, value: str) -> str:
    """The value in force: `value`, or what was there before."""
    known = await get(conn, name)
    if known is not None:
        return known
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(meta).values(name=name, value=value)
    await conn.execute(statement.on_conflict_do_nothing())  # waits for another host's that is about to be there
    return await get(conn, name) or value


async def put(conn: AsyncConnection, name: str, value: str) -> None:
    """The value in force from now on."""
    if await put_if_absent(conn, name, value) != value:
        await conn.execute(update(meta).where(meta.c.name == name).values(value=value))


async def secret_key_fingerprint(conn: AsyncConnection) -> str | None:
    """Of the GATEWAY_SECRET_KEY that everything is encrypted with; None: nothing was set up yet."""
    return await get(conn, KEY_FINGERPRINT)


async def secret_key_is_previous(conn: AsyncConnection, keys: SecretKeys) -> bool:
    """Is everything still encrypted with a key that is being replaced?"""
    return await get(conn, KEY_FINGERPRINT) in {fingerprint(key) for key in keys.previous}


async def remember_secret_key(conn: AsyncConnection, secret_key: str) -> None:
    """Everything is encrypted with this one now, and none replaces it."""
    await put(conn, KEY_FINGERPRINT, fingerprint(secret_key))
    await conn.execute(delete(meta).where(meta.c.name == KEY_SUCCESSOR))


async def admit_secret_key(conn: AsyncConnection, current: str, previous: Collection[str]) -> bool:
    """May something be encrypted with the key of the fingerprint `current`, by whoever opens with those of `previous` too?

    With the one that everything is encrypted with; or, of those who have that too, with the one other that replaces it: the first that is
    asked about. A third would be one that the other hosts do not have. Where none is remembered yet, any.
    """
    known = await secret_key_fingerprint(conn)
    if known is None or known == current:
        return True
    return known in previous and await put_if_absent(conn, KEY_SUCCESSOR, current) == current
