"""Who users are at an OpenID provider. A subject is one user's; a user is at most one subject of an issuer."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Role
from gateway.store.tables import identities

_I = identities.c


@dataclass(frozen=True, slots=True)
class KnownIdentity:
    """`role`: what the provider's claim meant when it was last looked at; None: nothing."""

    user_id: str
    role: Role | None


async def find(conn: AsyncConnection, issuer: str, subject: str) -> KnownIdentity | None:
    row = (await conn.execute(select(_I.user_id, _I.role).where(_I.issuer == issuer, _I.subject == subject))).one_or_none()
    return None if row is None else KnownIdentity(row[0], None if row[1] is None else Role(row[1]))


async def has_one(conn: AsyncConnection, issuer: str, user_id: str) -> bool:
    """Is this user known as a subject of this issuer?"""
    query = select(_I.subject).where(_I.issuer == issuer, _I.user_id == user_id).limit(1)
    return (await conn.execute(query)).scalar() is not None


async def add(conn: AsyncConnection, issuer: str, subject: str, user_id: str, role: Role | None, now_s: float) -> None:
    values = {"issuer": issuer, "subject": subject, "user_id": user_id, "created_at": now_s, "role": role and role.value}
    await conn.execute(insert(identities).values(values))


async def set_role(conn: AsyncConnection, issuer: str, subject: str, role: Role | None) -> None:
    await conn.execute(update(identities).where(_I.issuer == issuer, _I.subject == subject).values(role=role and role.value))
