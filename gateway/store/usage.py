"""What the books hold: raw usage rows (one per admitted request), hourly roll-ups, and how far each ledger segment has been shipped.

Reports read roll-ups only, but for those by arm of an experiment; raw rows are read by request id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Column, ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.booking import COUNTERS, HOUR_S
from gateway.store.tables import ledger_segments, usage_rollup
from gateway.store.tables import usage as usage_table
from gateway.store.users import of_team

_DAY_S = 86_400
_CHUNK = 500
# Sums of money are taken in two parts: SQLite raises on a sum that leaves 64 bits, which is 9.2 million USD.
_SPLIT = 1_000_000


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One line of a report. `group`: the key's id ("" = login tokens), the model, the user's id, the day (YYYY-MM-DD, UTC), or the arm.

    `experiment`: what the arm belongs to; None in all other reports.
    """

    group: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_pusd: int
    experiment: str | None = None


async def usage_by(
    conn: AsyncConnection,
    by: Literal["key", "model", "user", "day"],
    *,
    since_s: float = 0,
    until_s: float | None = None,
    user_id: str = "",
    key_id: str = "",
    team_id: str | None = None,
) -> list[UsageLine]:
    """Totals since the hour that `since_s` (Unix seconds) lies in, up to `until_s`, of all, of one user or of one key; sorted by group.

    `team_id`: only what those used who are of this team now; None: all. The hour that `until_s` lies in counts in full, unless `until_s`
    is its very start.
    """
    table = usage_rollup.c
    day = table.hour - table.hour % _DAY_S
    group: ColumnElement[Any] = {"key": table.key_id, "model": table.model, "user": table.user_id, "day": day}[by]
    query = select(group, *_sums()).where(table.hour >= _hour(since_s)).group_by(group).order_by(group)
    if until_s is not None:
        query = query.where(table.hour < until_s)
    if user_id:
        query = query.where(table.user_id == user_id)
    if key_id:
        query = query.where(table.key_id == key_id)
    if team_id is not None:
        query = query.where(table.user_id.in_(of_team(team_id)))
    return [_line(row, by) for row in (await conn.execute(query)).all()]


async def usage_by_arm(
    conn: AsyncConnection,
    *,
    since_s: float = 0,
    until_s: float | None = None,
    user_id: str = "",
    key_id: str = "",
    team_id: str | None = None,
) -> list[UsageLine]:
    """As `usage_by`, by arm of each experiment and canary; requests that were in none do not count. Reads raw rows."""
    table = usage_table.c
    groups = (table.experiment, table.arm)
    chosen = (table.arm.is_not(None), table.started_at >= _hour(since_s))
    query = select(table.arm, func.count(), *_sums(table), table.experiment).where(*chosen).group_by(*groups).order_by(*groups)
    if until_s is not None:
        query = query.where(table.started_at < -_hour(-until_s))
    if user_id:
        query = query.where(table.user_id == user_id)
    if key_id:
        query = query.where(table.key_id == key_id)
    if team_id is not None:
        query = query.where(table.user_id.in_(of_team(team_id)))
    rows = (await conn.execute(query)).all()
    return [UsageLine(str(row[0]), int(row[1]), int(row[2]), int(row[3]), _cost(row[4:6]), row[6]) for row in rows]


async def spent_since(conn: AsyncConnection, windows: Mapping[str, float]) -> dict[str, int]:
    """What each key has spent, in pusd, since its time (Unix seconds, on a whole hour). Keys without spending are absent."""
    return await _spent(conn, windows, usage_rollup.c.key_id)


async def spent_by_logins_since(conn: AsyncConnection, windows: Mapping[str, float]) -> dict[str, int]:
    """The same by user id, of what each user has spent with login tokens: their keys have budgets of their own."""
    return await _spent(conn, windows, usage_rollup.c.user_id, usage_rollup.c.key_id == "")


async def _spent(conn: AsyncConnection, windows: Mapping[str, float], who: Column[Any], *only: ColumnElement[bool]) -> dict[str, int]:
    spent: dict[str, int] = {}
    by_start: dict[float, list[str]] = defaultdict(list)
    for limit_id, since_s in windows.items():
        by_start[since_s].append(limit_id)
    for since_s, ids in by_start.items():
        for start in range(0, len(ids), _CHUNK):
            chosen = (who.in_(ids[start : start + _CHUNK]), usage_rollup.c.hour >= _hour(since_s), *only)
            query = select(who, *_sums()).where(*chosen).group_by(who)
            spent.update((row[0], _cost(row)) for row in (await conn.execute(query)).all())
    return spent


async def usage_row(conn: AsyncConnection, request_id: str) -> dict[str, Any] | None:
    """The raw row of one request, by column name."""
    row = (await conn.execute(select(usage_table).where(usage_table.c.request_id == request_id))).one_or_none()
    return None if row is None else dict(row._mapping)


async def rows_since(
    conn: AsyncConnection, since_s: float, *, after: tuple[float, str] = (0.0, ""), limit: int = 1000
) -> list[dict[str, Any]]:
    """Raw rows in the order of (started_at, request_id), for an export: those that started at `since_s` or later, beyond `after`."""
    table = usage_table.c
    beyond = (table.started_at > after[0]) | ((table.started_at == after[0]) & (table.request_id > after[1]))
    query = select(usage_table).where(table.started_at >= max(since_s, after[0]), beyond)
    rows = await conn.execute(query.order_by(table.started_at, table.request_id).limit(limit))
    return [dict(row._mapping) for row in rows.all()]


async def segment_offsets(conn: AsyncConnection) -> dict[str, int]:
    """Bytes shipped, by segment."""
    rows = (await conn.execute(select(ledger_segments.c.name, ledger_segments.c.offset))).all()
    return {name: int(offset) for name, offset in rows}


async def forget_segment(conn: AsyncConnection, name: str) -> None:
    """After its file is gone."""
    await conn.execute(delete(ledger_segments).where(ledger_segments.c.name == name))


def _hour(at_s: float) -> int:
    return int(at_s // HOUR_S) * HOUR_S


def _sums(table: Any = usage_rollup.c) -> list[ColumnElement[Any]]:
    plain = [func.sum(table[name]) for name in COUNTERS[:3] if name in table]
    return [*plain, func.sum(table.cost_pusd.op("/")(_SPLIT)), func.sum(table.cost_pusd % _SPLIT)]


def _cost(row: Any) -> int:
    return int(row[-2]) * _SPLIT + int(row[-1])


def _line(row: Any, by: str) -> UsageLine:
    group = datetime.fromtimestamp(int(row[0]), UTC).strftime("%Y-%m-%d") if by == "day" else str(row[0])
    return UsageLine(group, int(row[1]), int(row[2]), int(row[3]), _cost(row))
