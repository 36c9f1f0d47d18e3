"""What was logged of requests and answers: encrypted rows, one for each request, kept for a time of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, delete, func, or_, select, true, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import content_erasures, contents

_C = contents.c
_ABOUT = (
    "request_id", "at", "key_id", "user_id", "team_id", "model", "operation", "status", "ending", "not_kept", "request_type", "answer_type",
    "request_bytes", "answer_bytes", "request_truncated", "answer_truncated",
)  # fmt: skip
_COLUMNS: Final = tuple(column.name for column in contents.columns)
KINDS: Mapping[str, ColumnElement[Any]] = {"key": _C.key_id, "user": _C.user_id, "request": _C.request_id}
"""By what there can be forgetting."""
_AT_ONCE = 20  # rows in one statement


@dataclass(frozen=True, slots=True)
class About:
    """What is known of one logged request beside what was said. `at`: when it began, Unix seconds; sizes as they went over the wire."""

    request_id: str
    at: float
    key_id: str | None
    user_id: str
    team_id: str | None
    model: str
    operation: str
    status: int
    ending: str
    not_kept: str | None
    request_type: str
    answer_type: str
    request_bytes: int
    answer_bytes: int
    request_truncated: bool
    answer_truncated: bool


@dataclass(frozen=True, slots=True)
class Sealed:
    """`request`, `answer`: encrypted; None: not kept."""

    about: About
    request: bytes | None
    answer: bytes | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of whom, and when: [since_s, until_s), Unix seconds. None or empty does not choose, but for `models`: of none is none."""

    key_id: str = ""
    user_id: str = ""
    model: str = ""
    since_s: float | None = None
    until_s: float | None = None
    models: tuple[str, ...] | None = None


async def insert_new(conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Those that are not there yet and were not to be forgotten."""
    rows = await _unforgotten(conn, rows)
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(contents).on_conflict_do_nothing()
    for start in range(0, len(rows), _AT_ONCE):
        await conn.execute(statement, [{name: row[name] for name in _COLUMNS} for row in rows[start : start + _AT_ONCE]])


async def page(conn: AsyncConnection, wanted: Wanted, *, before: tuple[float, str] | None = None, limit: int = 50) -> list[About]:
    """Newest first, those beyond `before` (start, id)."""
    query = select(*(_C[name] for name in _ABOUT)).order_by(_C.at.desc(), _C.request_id.desc()).limit(limit)
    for column, value in ((_C.key_id, wanted.key_id), (_C.user_id, wanted.user_id), (_C.model, wanted.model)):
        if value:
            query = query.where(column == value)
    if wanted.since_s is not None:
        query = query.where(_C.at >= wanted.since_s)
    if wanted.until_s is not None:
        query = query.where(_C.at < wanted.until_s)
    if wanted.models is not None:
        query = query.where(_C.model.in_(wanted.models))
    if before is not None:
        query = query.where(tuple_(_C.at, _C.request_id) < before)
    return [About(*row) for row in (await conn.execute(query)).all()]


async def models(conn: AsyncConnection) -> list[str]:
    """Those that anything is logged of. One look into an index for each, however many rows they have."""
    found: list[str] = []
    query = select(func.min(_C.model))
    while True:
        model = (await conn.execute(query.where(_C.model > found[-1]) if found else query)).scalar()
        if model is None:
            return found
        found.append(model)


async def by_id(conn: AsyncConnection, request_id: str) -> Sealed | None:
    query = select(*(_C[name] for name in _ABOUT), _C.request, _C.answer).where(_C.request_id == request_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else Sealed(About(*row[:-2]), *row[-2:])


async def has_any(conn: AsyncConnection, kind: str, entity_id: str) -> bool:
    """Is there anything of this one? `kind`: one of `KINDS`."""
    return (await conn.execute(select(_C.request_id).where(KINDS[kind] == entity_id).limit(1))).scalar() is not None


async def note_erasure(conn: AsyncConnection, kind: str, entity_id: str, at: float) -> None:
    """What began before `at` is not stored any more, wherever it is now. `kind`: one of `KINDS`."""
    made = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(content_erasures).values(kind=kind, entity_id=entity_id, at=at)
    known = content_erasures.c.at
    later = case((made.excluded.at > known, made.excluded.at), else_=known)
    await conn.execute(made.on_conflict_do_update(index_elements=["kind", "entity_id"], set_={"at": later}))


async def erase(conn: AsyncConnection, kind: str, entity_id: str, before_s: float | None, *, limit: int) -> int:
    """Some of what began before (None: of all); returns how many. Call it until it is less than `limit`."""
    chosen = KINDS[kind] == entity_id
    return await _delete(conn, chosen if before_s is None else and_(chosen, _C.at <= before_s), limit)


async def delete_older(conn: AsyncConnection, than_s: float, *, limit: int) -> int:
    """The same of all that began before."""
    return await _delete(conn, _C.at < than_s, limit)


async def delete_any(conn: AsyncConnection, *, limit: int) -> int:
    """The same of all there are."""
    return await _delete(conn, true(), limit)


async def forget_erasures(conn: AsyncConnection, than_s: float) -> None:
    """Those that nothing can be older than any more."""
    await conn.execute(delete(content_erasures).where(content_erasures.c.at < than_s))


async def erasures(conn: AsyncConnection) -> list[tuple[str, str, float]]:
    """(kind, id, before when) of each."""
    rows = await conn.execute(select(content_erasures.c.kind, content_erasures.c.entity_id, content_erasures.c.at))
    return [(kind, entity_id, at) for kind, entity_id, at in rows.all()]


async def sealed_otherwise(
    conn: AsyncConnection, fingerprint: str, *, after: str, limit: int
) -> list[tuple[str, bytes | None, bytes | None]]:
    """(id, request, answer) of rows that are sealed with another key than this one, in the order of ids."""
    query = select(_C.request_id, _C.request, _C.answer).where(_C.sealed_with != fingerprint, _C.request_id > after)
    return [(row[0], row[1], row[2]) for row in (await conn.execute(query.order_by(_C.request_id).limit(limit))).all()]


async def put_resealed(conn: AsyncConnection, request_id: str, fingerprint: str, request: bytes | None, answer: bytes | None) -> None:
    values = {"sealed_with": fingerprint, "request": request, "answer": answer}
    await conn.execute(update(contents).where(_C.request_id == request_id).values(values))


async def count(conn: AsyncConnection) -> int:
    return int((await conn.execute(select(func.count()).select_from(contents))).scalar_one())


async def count_sealed_otherwise(conn: AsyncConnection, fingerprint: str) -> int:
    query = select(func.count()).select_from(contents).where(or_(_C.sealed_with < fingerprint, _C.sealed_with > fingerprint))
    return int((await conn.execute(query)).scalar_one())


async def _delete(conn: AsyncConnection, which: ColumnElement[bool], limit: int) -> int:
    chosen = select(_C.request_id).where(which).limit(limit)
    return (await conn.execute(delete(contents).where(_C.request_id.in_(chosen)))).rowcount


async def _unforgotten(conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Without what somebody wanted forgotten while it was on its way here."""
    before = {(kind, entity_id): at for kind, entity_id, at in await erasures(conn)}
    if not before:
        return rows
    return [
        row for row in rows if not any(row["at"] <= before.get((kind, row[column.name]), float("-inf")) for kind, column in KINDS.items())
    ]
