"""Time that goes by for hosts on one database, which know it by the database's clock."""

from __future__ import annotations

import json

from sqlalchemy import select, update

from gateway.store.engine import Database
from gateway.store.tables import meta


async def later(db: Database, seconds: float) -> None:
    """All that hosts have said is as much older."""
    async with db.write() as conn:
        for name, value in (await conn.execute(select(meta.c.name, meta.c.value).where(meta.c.name.startswith("host:")))).all():
            known = json.loads(value)
            known |= {"since": known["since"] - seconds, "seen": known["seen"] - seconds}
            await conn.execute(update(meta).where(meta.c.name == name).values(value=json.dumps(known)))
