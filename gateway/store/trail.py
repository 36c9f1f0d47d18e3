"""The audit log: who changed what, when and from where. Append-only, chained (see chain.py); never holds a key, password or secret.

Nothing here changes or deletes an entry, and the database's triggers refuse it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, func, insert, or_, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.chain import Head, Verdict, Walk, link, lock_head, moment, read_head, write_head
from gateway.store.engine import Database
from gateway.store.tables import audit, users

_A = audit.c
_BEFORE, _AFTER = type_coerce(_A.before, Text).label("before"), type_coerce(_A.after, Text).label("after")
_WHO = (_A.actor_user_id, _A.actor_key_id, _A.via, _A.address)
_FIELDS = (_A.id, _A.at, *_WHO, _A.action, _A.entity, _A.entity_id, _BEFORE, _AFTER, _A.hash)
_ENTRIES = select(*_FIELDS, users.c.email.label("actor_email")).select_from(audit.outerjoin(users, users.c.id == _A.actor_user_id))
_PAGE = 1000
SEARCHED = 50_000
"""Entries that one search for words looks at: they have no index."""
MIN_WORDS = 3
"""Characters of such a search: fewer find nearly everything."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. `at`: Unix seconds; `via`: cli, api, file, init; `before` and `after`: what can be shown of the entity, or None.

    `hash`: hex. `actor_key_id`: of the key that was used; None: a login, or no user at all. `actor_email`: as it is now; no part of what is
    hashed.
    """

    id: int
    at: float
    actor_user_id: str | None
    via: str
    address: str | None
    action: str
    entity: str
    entity_id: str
    before: Any = None
    after: Any = None
    hash: str = ""
    actor_key_id: str | None = None
    actor_email: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries; empty: all. `actor`: user id, e-mail or key id; `words`: a part of what, whom or where, in any case.

    Times in Unix seconds.
    """

    entity: str = ""
    entity_id: str = ""
    action: str = ""
    actor: str = ""
    words: str = ""
    since_s: float | None = None
    until_s: float | None = None


ALL = Wanted()


async def append(
    conn: AsyncConnection,
    *,
    at: float,
    actor_user_id: str | None,
    via: str,
    address: str | None,
    action: str,
    entity: str,
    entity_id: str,
    before: Any = None,
    after: Any = None,
    actor_key_id: str | None = None,
) -> int:
    """Returns the entry's id. One after another: from here to the end of its transaction no other one can append.

    Raises `AuditHeadMissing`.
    """
    head = await lock_head(conn)
    who = {"actor_user_id": actor_user_id, "via": via, "address": address}
    what = {"action": action, "entity": entity, "entity_id": entity_id, "before": _plain(before), "after": _plain(after)}
    fields = {"id": head.id + 1, **who, **what} | _if_set(actor_key_id)
    new = Head(head.id + 1, link(head.digest, fields | {"at": moment(at)}), head.count + 1)
    await conn.execute(insert(audit).values(**fields, at=at, hash=new.digest))
    await write_head(conn, new)
    return new.id


async def page(
    conn: AsyncConnection, *, before_id: int | None = None, limit: int = 50, entity: str = "", entity_id: str = "", actor_user_id: str = ""
) -> list[AuditEntry]:
    """Newest first, those older than the id `before_id`."""
    query = _matching(Wanted(entity, entity_id, actor=actor_user_id)).order_by(_A.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(_A.id < before_id)
    return await _entries(conn, query)


async def newest(
    conn: AsyncConnection, wanted: Wanted = ALL, *, before_id: int | None = None, limit: int = 50
) -> tuple[list[AuditEntry], int | None]:
    """(at most `limit` entries older than the id `before_id`, newest first; the `before_id` of the page after, None: this was the last).

    A search for words looks at `SEARCHED` entries, so a page may be short, or empty, and not the last.
    """
    end = before_id if before_id is not None else await _last_id(conn) + 1
    start = max(end - SEARCHED, 1) if wanted.words else 1
    query = _matching(wanted).where(_A.id < end, _A.id >= start).order_by(_A.id.desc()).limit(limit + 1)
    found = await _entries(conn, query)
    if len(found) > limit:
        return found[:limit], found[limit - 1].id
    return found, start if start > 1 else None


async def oldest(
    conn: AsyncConnection, wanted: Wanted = ALL, *, after_id: int = 0, limit: int = _PAGE
) -> tuple[list[AuditEntry], int | None]:
    """The same from the oldest on: (entries newer than the id `after_id`; the `after_id` of the page after, None: this was the last)."""
    last = await _last_id(conn)
    end = min(after_id + SEARCHED, last) if wanted.words else last
    query = _matching(wanted).where(_A.id > after_id, _A.id <= end).order_by(_A.id).limit(limit + 1)
    found = await _entries(conn, query)
    if len(found) > limit:
        return found[:limit], found[limit - 1].id
    return found, end if end < last else None


async def verify(db: Database, anchor: tuple[int, str] | None = None) -> Verdict:
    """Read the whole log and say what is wrong with it. `anchor`: (id, its hash in hex) as kept elsewhere.

    In short transactions: what is appended meanwhile is left for the next time.
    """
    walk = Walk(anchor)
    async with db.read() as conn:
        head = await read_head(conn)
        end = await _last_id(conn)
    if head is None:
        walk.report("The record of where the log ends is missing or unreadable: entries may be missing at the end.")
    after: int | None = 0
    while after is not None and after < end:
        async with db.read() as conn:
            rows = (await conn.execute(_ENTRIES.where(_A.id > after, _A.id <= end).order_by(_A.id).limit(_PAGE))).all()
        for row in rows:
            walk.feed(row.id, _exported(row), _bytes(row.hash))
        after = rows[-1].id if len(rows) == _PAGE else None
    return walk.finish(head)


def exported(entry: AuditEntry) -> dict[str, Any]:
    """A line of an export: what was hashed, and the hash."""
    return _hashed(entry) | {"hash": entry.hash}


def _hashed(entry: AuditEntry) -> dict[str, Any]:
    names = ("action", "actor_user_id", "address", "after", "before", "entity", "entity_id", "id", "via")
    return {name: getattr(entry, name) for name in names} | {"at": moment(entry.at)} | _if_set(entry.actor_key_id)


def _if_set(actor_key_id: str | None) -> dict[str, str]:
    """Where there is none it is no part of what is hashed: entries from before it was kept have the hash that they had."""
    return {} if actor_key_id is None else {"actor_key_id": actor_key_id}


def _exported(row: Row[Any]) -> dict[str, Any] | None:
    try:
        return _hashed(_entry(row))
    except (TypeError, ValueError, OverflowError):  # SQLite keeps any value in any column
        return None


def _matching(wanted: Wanted) -> Select[Any]:
    query = _ENTRIES
    for column, value in ((_A.entity, wanted.entity), (_A.entity_id, wanted.entity_id), (_A.action, wanted.action)):
        if value:
            query = query.where(column == value)
    if wanted.actor:
        # by its address too: an id says nothing to people
        known = select(users.c.id).where(users.c.email == wanted.actor.strip().lower())
        query = query.where(or_(_A.actor_user_id == wanted.actor, _A.actor_user_id.in_(known), _A.actor_key_id == wanted.actor))
    if wanted.words:
        query = query.where(or_(*_holding(wanted.words.lower())))
    if wanted.since_s is not None:
        query = query.where(_A.at >= wanted.since_s)
    if wanted.until_s is not None:
        query = query.where(_A.at < wanted.until_s)
    return query


def _holding(words: str) -> list[ColumnElement[bool]]:
    """`%` and `_` in them stand for themselves. In the JSON they stand as JSON writes them."""
    in_json = json.dumps(words, ensure_ascii=False)[1:-1]
    plain = [
        func.lower(column).contains(words, autoescape=True)
        for column in (_A.action, _A.entity_id, _A.address, _A.actor_key_id, users.c.email)
    ]
    return plain + [func.lower(column).contains(in_json, autoescape=True) for column in (_BEFORE, _AFTER)]


async def _entries(conn: AsyncConnection, query: Select[Any]) -> list[AuditEntry]:
    return [_entry(row) for row in (await conn.execute(query)).all()]


def _entry(row: Row[Any]) -> AuditEntry:
    values = dict(row._mapping)
    shown = {"before": _read(values["before"]), "after": _read(values["after"]), "hash": _bytes(values["hash"]).hex()}
    return AuditEntry(**(values | shown))


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview | bytearray) else b""


def _read(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:  # somebody else wrote it: shown as it is, and `verify` finds it
        return text


async def _last_id(conn: AsyncConnection) -> int:
    return int((await conn.execute(select(func.max(_A.id)))).scalar() or 0)


def _plain(value: Any) -> Any:
    """As it will be read: a tuple is a list, and keys are strings."""
    return None if value is None else json.loads(json.dumps(value))
