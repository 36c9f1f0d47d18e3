"""Which hosts work on this database, and since when: one row of `meta` for each, which its server processes write again and again.

All by the database's clock, so that it does not matter what theirs say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import delete, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.meta import put_if_absent
from gateway.store.tables import meta

FRESH_S = 30.0  # a host that has not written for this long is gone
_KEPT_S = 86_400.0
_LOCK = 0x6777_686F  # "gwho", PostgreSQL advisory lock: of hosts that start together, the second sees the first
_LOCKED = (
    "SELECT set_config('idle_in_transaction_session_timeout', '5000', true), pg_advisory_xact_lock(:key)"  # a host that is cut off frees it
)
_NOW = {
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
}
_PREFIX = "host:"
_INSTALLATION = "installation"


@dataclass(frozen=True, slots=True)
class Host:
    """`since_s`, `seen_s`: Unix seconds of the database's clock. `shares`: it counts its limits together with others."""

    id: str
    since_s: float
    seen_s: float
    shares: bool


async def announce(conn: AsyncConnection, host_id: str, shares: bool, known_since_s: float | None = None) -> tuple[Host, list[Host]]:
    """This host is here; itself and the others that are. It is here since it was last gone, or since `known_since_s`, as one of its
    processes remembers. Others that announce themselves wait until this transaction ends.
    """
    if conn.dialect.name == "postgresql":  # SQLite has one writer
        await conn.execute(text(_LOCKED), {"key": _LOCK})
    now_s = float((await conn.execute(text(_NOW[conn.dialect.name]))).scalar_one())  # after the lock: who comes second is the newer one
    present: dict[str, Host] = {}
    for name, value in await conn.execute(select(meta.c.name, meta.c.value).where(meta.c.name.startswith(_PREFIX))):
        known = json.loads(value)
        host = Host(name.removeprefix(_PREFIX), known["since"], known["seen"], known["shares"])
        if abs(now_s - host.seen_s) < FRESH_S:
            present[host.id] = host
        elif now_s - host.seen_s > _KEPT_S:
            await conn.execute(delete(meta).where(meta.c.name == name))
    before = present.pop(host_id, None)
    since_s = min(time_s for time_s in (before.since_s if before is not None else now_s, known_since_s) if time_s is not None)
    own = Host(host_id, since_s, now_s, shares)
    value = json.dumps({"since": own.since_s, "seen": own.seen_s, "shares": own.shares})
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(meta).values(name=_PREFIX + host_id, value=value)
    await conn.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
    return own, list(present.values())


async def leave(conn: AsyncConnection, host_id: str) -> None:
    """One of its processes ends. Others say again that they are here."""
    await conn.execute(delete(meta).where(meta.c.name == _PREFIX + host_id))


async def installation(conn: AsyncConnection, name: str) -> str:
    """What all hosts of this database call it: `name`, if nobody has named it before."""
    return await put_if_absent(conn, _INSTALLATION, name)
