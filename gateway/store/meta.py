"""Small facts about this installation, by name."""

from __future__ import annotations

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.secret_key import SecretKeys, fingerprint
from gateway.store.tables import meta

KEY_FINGERPRINT = "secret_key_fingerprint"


async def get(conn: AsyncConnection, name: str) -> str | None:
    return (await conn.execute(select(meta.c.value).where(meta.c.name == name))).scalar()


async def put_if_absent(conn: AsyncConnection, name: str, value: str) -> str:
    """The value in force: `value`, or what was there before."""
    known = await get(conn, name)
    if known is None:
        await conn.execute(insert(meta).values(name=name, value=value))
    return value if known is None else known


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
    """Everything is encrypted with this one now."""
    await put(conn, KEY_FINGERPRINT, fingerprint(secret_key))
