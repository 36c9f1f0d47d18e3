"""From where people have logged in: such an address goes ahead of strangers when many try."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import login_addresses, users

KEPT_PER_USER = 32
_T = login_addresses.c


async def has(conn: AsyncConnection, user_id: str, address: str) -> bool:
    return (await conn.execute(select(_T.at).where(_T.user_id == user_id, _T.address == address))).first() is not None


async def since(conn: AsyncConnection, at: float) -> list[tuple[str, str]]:
    """(e-mail, address) of those from which somebody has logged in since then."""
    query = select(users.c.email, _T.address).join(users, users.c.id == _T.user_id).where(_T.at >= at)
    return [(email, address) for email, address in (await conn.execute(query)).all()]


async def put(conn: AsyncConnection, user_id: str, address: str, now_s: float) -> None:
    """This user has just logged in from there. Of more than 32 addresses of a user the oldest are forgotten."""
    mine = _T.user_id == user_id
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(login_addresses)
    values = statement.values(user_id=user_id, address=address, at=now_s)
    await conn.execute(values.on_conflict_do_update(index_elements=["user_id", "address"], set_={"at": now_s}))
    if (await conn.execute(select(func.count()).where(mine))).scalar_one() > KEPT_PER_USER:
        kept = select(_T.address).where(mine).order_by(_T.at.desc(), _T.address).limit(KEPT_PER_USER)
        await conn.execute(delete(login_addresses).where(mine, _T.address.not_in(kept)))


async def purge(conn: AsyncConnection, before_s: float) -> int:
    """Forget those that nobody came from since; returns how many."""
    return (await conn.execute(delete(login_addresses).where(_T.at < before_s))).rowcount
