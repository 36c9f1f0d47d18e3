"""Raw rows: one request by its id, those of one key in a short time, and all of them for an export. Nothing else reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.limits.budget import format_usd
from gateway.store.days import COLUMNS, as_row, day_of, day_table, existing, union

LONGEST_S = 86_400.0
_NEXT_S = 0.001
_AT_ONCE = 50  # days in one statement; SQLite takes 500
_NAMES = ", ".join(COLUMNS)


async def usage_row(conn: AsyncConnection, request_id: str) -> dict[str, Any] | None:
    """The raw row of one request, by column name: each day is asked for it, the newest first."""
    days = await existing(conn)
    for start in range(0, len(days), _AT_ONCE):
        query = _by_id(tuple(days[start : start + _AT_ONCE]))
        row = (await conn.execute(query, {"request_id": request_id})).first()
        if row is not None:
            return as_row(row)
    return None


@lru_cache(16)
def _by_id(days: tuple[int, ...]) -> TextClause:
    """Twenty thousand letters, in which SQLAlchemy looks for parameters."""
    return text(union(days, _NAMES, "request_id = :request_id"))


async def of_key(
    conn: AsyncConnection,
    key_id: str | None,
    since_s: float,
    until_s: float,
    *,
    only: Mapping[str, str] | None = None,
    before: tuple[float, str] | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Rows of one key (None: of login tokens), newest first, beyond `before` (start, id): those that began in [since_s, until_s).

    At most `LONGEST_S` lie between the two. `only`: values of other columns that they must have.
    """
    names = sorted(only or {})
    where = f"key_id {'IS NULL' if key_id is None else '= :key_id'} AND started_at >= :since AND started_at < :until"
    where += "".join(f" AND {name} = :{name}" for name in names)
    values: dict[str, Any] = {"since": since_s, "until": until_s} | ({} if key_id is None else {"key_id": key_id}) | dict(only or {})
    if before is not None:
        where += " AND (started_at < :at OR (started_at = :at AND request_id < :id))"
        values |= {"at": before[0], "id": before[1], "until": min(until_s, before[0] + _NEXT_S)}
    found: list[dict[str, Any]] = []
    for day in await existing(conn, since_s, values["until"]):
        if len(found) < limit:
            query = f"{union([day], _NAMES, where)} ORDER BY started_at DESC, request_id DESC LIMIT :limit"
            found += [as_row(row) for row in (await conn.execute(text(query), values | {"limit": limit - len(found)})).all()]
    return found


async def rows_since(
    conn: AsyncConnection, since_s: float, *, after: tuple[float, str] = (0.0, ""), limit: int = 1000
) -> list[dict[str, Any]]:
    """Raw rows in the order of (started_at, request_id), for an export: those that started at `since_s` or later, beyond `after`."""
    start_s = max(since_s, after[0])
    found: list[dict[str, Any]] = []
    for day in reversed(await existing(conn, start_s)):
        if len(found) >= limit:
            break
        found += await _page_of_day(conn, day, start_s, after, limit - len(found))
    return found


async def _page_of_day(conn: AsyncConnection, day: int, start_s: float, after: tuple[float, str], limit: int) -> Sequence[dict[str, Any]]:
    table = day_table(day).c
    beyond = (table.started_at > after[0]) | ((table.started_at == after[0]) & (table.request_id > after[1]))
    query = select(*(table[name] for name in COLUMNS)).where(table.started_at >= start_s)
    if day_of(after[0]) == day:
        query = query.where(beyond)
    rows = await conn.execute(query.order_by(table.started_at, table.request_id).limit(limit))
    return [as_row(row) for row in rows.all()]


def exported(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of an export, in the order in which they are documented; `started_at` is left in Unix seconds."""
    first = ("request_id", "key_id", "user_id", "model", "backend", "revision", "operation", "attempts", "status", "ending")
    counted = ("prompt_tokens", "completion_tokens", "token_source")
    timed = ("duration_ms", "ttft_ms", "queue_ms", "connect_ms")
    last = ("client_request_id", "experiment", "arm", "team_id", "cached_tokens", "reasoning_tokens", "price")
    return (
        {name: row[name] for name in (*first, *counted)}
        | {"cost": format_usd(row["cost_pusd"]), "started_at": row["started_at"]}
        | {name: None if row[name] is None else round(row[name], 3) for name in timed}
        | {name: row[name] for name in last}
        | {"tried": None if row["tried"] is None else json.loads(row["tried"])}
    )
