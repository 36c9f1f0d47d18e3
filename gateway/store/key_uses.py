"""When keys were last used, to the minute. No request writes: uses are gathered in memory, and written a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.engine import Database
from gateway.store.tables import key_uses

PERIOD_S = 60.0
_AT_ONCE = 4000  # keys in a transaction: others want to write, too
_CHUNK = 400  # two values each; any SQLite takes 999


class Uses:
    """Uses that wait to be written: each key's at most once a minute, the first one at once. `wall`: Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._waiting: dict[str, float] = {}  # key id -> its last use
        self._written: dict[str, float] = {}  # key id -> when its last use was last written

    def note(self, key_id: str, at: float) -> None:
        """`at`: Unix seconds."""
        if at > self._waiting.get(key_id, 0.0):
            self._waiting[key_id] = at

    def note_all(self, key_ids: Sequence[str | None], times: Sequence[float]) -> None:
        """One pair for each request; None: it came with a login token."""
        waiting, first = self._waiting, key_ids[0] if key_ids else None
        if first is not None and key_ids.count(first) == len(key_ids):
            self.note(first, max(times))
            return
        for key_id, at in zip(key_ids, times, strict=True):
            if key_id is not None and at > waiting.get(key_id, 0.0):
                waiting[key_id] = at

    async def write(self, db: Database, *, everything: bool = False) -> int:
        """Write what is due (`everything`: also what is not); returns how many. Raises `StoreUnavailable`; nothing is lost then."""
        if not self._waiting:
            return 0
        now_s = self._wall()
        self._written = {key_id: at for key_id, at in self._written.items() if 0 <= now_s - at < PERIOD_S}
        due = [key_id for key_id in self._waiting if everything or key_id not in self._written]
        for start in range(0, len(due), _AT_ONCE):
            await self._write({key_id: self._waiting[key_id] for key_id in due[start : start + _AT_ONCE]}, db, now_s)
        return len(due)

    async def _write(self, uses: Mapping[str, float], db: Database, now_s: float) -> None:
        async with db.write() as conn:
            await save(conn, uses)
        self._written.update(dict.fromkeys(uses, now_s))
        for key_id, at in uses.items():
            if self._waiting.get(key_id) == at:  # else it was used again meanwhile
                del self._waiting[key_id]


async def save(conn: AsyncConnection, uses: Mapping[str, float]) -> None:
    """Last uses by key id, Unix seconds. An earlier one than is known changes nothing."""
    # One order for all who write: two transactions over the same keys cannot block each other.
    rows = [{"key_id": key_id, "at": at} for key_id, at in sorted(uses.items())]
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(key_uses)
    later = statement.excluded.at > key_uses.c.at
    for start in range(0, len(rows), _CHUNK):
        values = statement.values(rows[start : start + _CHUNK])
        await conn.execute(values.on_conflict_do_update(index_elements=["key_id"], set_={"at": statement.excluded.at}, where=later))
