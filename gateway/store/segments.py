"""Ledger segments as SQL knows them: how far each is shipped, and which are finished.

A finished segment's name is kept as long as raw rows are, so that a gap in a writer's numbers can be seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import ledger_segments

_SEGMENTS = ledger_segments.c


@dataclass(frozen=True, slots=True)
class Segment:
    """`offset`: bytes shipped. `folder`: the id of the folder of its file; None: not known."""

    name: str
    offset: int
    folder: str | None
    finished: bool

    @property
    def writer(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def number(self) -> int:
        """Its place among its writer's, counted from 0; -1 for a name that is not a segment's."""
        digits = self.name.rpartition("-")[2].partition(".")[0]
        return int(digits) if digits.isascii() and digits.isdigit() else -1


async def open_offsets(conn: AsyncConnection) -> dict[str, int]:
    """Bytes shipped, by segment that is not finished."""
    query = select(_SEGMENTS.name, _SEGMENTS.offset).where(_SEGMENTS.finished_at.is_(None))
    return {name: int(offset) for name, offset in (await conn.execute(query)).all()}


async def see(conn: AsyncConnection, name: str, folder: str) -> int:
    """Note that there is such a segment; returns how many bytes of it are shipped."""
    known = (await conn.execute(select(_SEGMENTS.offset, _SEGMENTS.folder).where(_SEGMENTS.name == name))).one_or_none()
    if known is None:
        await conn.execute(insert(ledger_segments).values(name=name, offset=0, updated_at=time.time(), folder=folder))
        return 0
    if known.folder != folder:
        await conn.execute(update(ledger_segments).where(_SEGMENTS.name == name).values(folder=folder))
    return int(known.offset)


async def finish(conn: AsyncConnection, name: str) -> None:
    """It is wholly shipped; its file goes after this transaction."""
    now_s = time.time()
    await conn.execute(update(ledger_segments).where(_SEGMENTS.name == name).values(finished_at=now_s, updated_at=now_s))


async def all_known(conn: AsyncConnection) -> list[Segment]:
    """Finished ones too."""
    query = select(_SEGMENTS.name, _SEGMENTS.offset, _SEGMENTS.folder, _SEGMENTS.finished_at.is_not(None)).order_by(_SEGMENTS.name)
    return [Segment(name, int(offset), folder, bool(finished)) for name, offset, folder, finished in (await conn.execute(query)).all()]


async def purge(conn: AsyncConnection, before_s: float) -> int:
    """Forget writers all of whose segments were finished before that time; returns how many segments. A writer's are kept whole."""
    query = select(_SEGMENTS.name, func.coalesce(_SEGMENTS.finished_at, before_s))
    last: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for name, finished_at in (await conn.execute(query)).all():
        writer = name.rpartition("-")[0]
        last[writer] = max(last.get(writer, 0.0), finished_at)
        names.setdefault(writer, []).append(name)
    gone = [name for writer, found in names.items() if last[writer] < before_s for name in found]
    for start in range(0, len(gone), 500):
        await conn.execute(delete(ledger_segments).where(_SEGMENTS.name.in_(gone[start : start + 500])))
    return len(gone)
