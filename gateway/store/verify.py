"""Do the books agree with themselves? Rows with their digests and prices, roll-ups with the rows, day by day.

Each day is read in one transaction that sees one moment, so that nothing is amiss while rows are being shipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, Table, func, literal, or_, select, text, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.days import COLUMNS, DAY_S, date_of, day_of, day_table, existing, kept_from
from gateway.store.engine import Database
from gateway.store.rollups import BUCKET, JOINT, SPLIT, USED, WEEK_S, Cells, derived, hours_of
from gateway.store.rows import Columns, digest, recomputed_pusd
from gateway.store.tables import usage_by_day, usage_by_hour, usage_of_each_day, usage_of_each_week, usage_totals

MOST_FAULTS = 20
"""Of one day and kind: more are counted, not named."""
_READ_AT_ONCE = 2000
_CHUNK = 500
_PRICE, _COST = COLUMNS.index("price"), COLUMNS.index("cost_pusd")
_PROMPT, _COMPLETION, _CACHED = (COLUMNS.index(name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
_STARTED_AT = COLUMNS.index("started_at")


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind`: row, rollup, day or segment. `where`: the request, the bucket, the day or the segment."""

    kind: str
    where: str
    message: str


@dataclass(slots=True)
class Found:
    """What was looked at, and what is wrong with it. `more`: faults that are not named."""

    rows: int = 0
    faults: list[Fault] = field(default_factory=list)
    more: int = 0

    def add(self, kind: str, where: str, message: str) -> None:
        if sum(fault.kind == kind for fault in self.faults) < MOST_FAULTS:
            self.faults.append(Fault(kind, where, message))
        else:
            self.more += 1


async def days_to_verify(db: Database) -> tuple[list[int], list[Fault]]:
    """The days that have rows, oldest first; and a fault for each that ought to have them and has none."""
    async with db.read() as conn:
        await _one_moment(conn)
        first = await kept_from(conn)
        there = sorted(day for day in await existing(conn) if day >= first)
        totals = usage_totals.c
        query = select(totals.at).where(totals.step_s == DAY_S, totals.kind == "/all", totals.scope == "", totals.at >= first * DAY_S)
        counted = sorted(day_of(at) for at in (await conn.execute(query)).scalars())
    gone = [day for day in counted if day not in set(there)]
    return there, [Fault("day", date_of(day), f"The rows of {date_of(day)} are gone, and were not dropped at their end.") for day in gone]


async def verify_day(db: Database, day: int) -> Found:
    """Read all rows of a day, and every figure that is made of them. Raises `StoreUnavailable`."""
    found = Found()
    try:
        async with db.read() as conn:
            await _one_moment(conn)
            hours = await _rows(conn, day, found)
            stored = [
                await _stored(conn, table, day * DAY_S, (day + 1) * DAY_S)
                for table in (usage_by_hour, usage_by_day, usage_totals, usage_of_each_day)
            ]
    except DBAPIError:
        async with db.read() as conn:
            if await kept_from(conn) > day:
                return Found()  # dropped meanwhile: its end had come
        raise
    wanted = derived(hours)
    for name, should, cells in zip(
        ("by hour", "by day", "totals", "of each"), (wanted.hours, wanted.days, wanted.totals, wanted.of_each), stored, strict=True
    ):
        _compare(name, should, cells, found)
    return found


def weeks_with(days: Iterable[int]) -> list[int]:
    """When the weeks begin that these days are in, epoch seconds."""
    return sorted({day * DAY_S // WEEK_S * WEEK_S for day in days})


async def verify_week(db: Database, start: int) -> Found:
    """The sums of the week that begins at `start`, against those of its days. Raises `StoreUnavailable`."""
    found = Found()
    async with db.read() as conn:
        async for kind, scope, name, team_id, *sums in await conn.stream(_unlike_its_days(start)):
            by_day, by_week = (_cell(half) if half[0] else None for half in (sums[: len(USED)], sums[len(USED) :]))
            _differs(_BY_WEEK, (kind, scope, name, start, team_id), by_day, by_week, found)
    return found


def _unlike_its_days(start: int) -> Select[Any]:
    """(kind, scope, name, team_id, sums of the days, sums of the week) where the two are not the same.

    In one statement, which sees one moment, and in the database: a million names that agree need not be brought here.
    """
    names = ("kind", "scope", "name", "team_id")
    halves = [
        select(
            *(table.c[name] for name in names),
            *((table.c[name] if half is table else literal(0)).label(f"{half.name}_{name}") for half in _DAYS_AND_WEEKS for name in USED),
        ).where(table.c.at >= start, table.c.at < start + WEEK_S)
        for table in _DAYS_AND_WEEKS
    ]
    both = union_all(*halves).subquery().c
    by_day, by_week = [[func.sum(both[f"{half.name}_{name}"]) for name in USED] for half in _DAYS_AND_WEEKS]
    *counts, micro, rest = (one - other for one, other in zip(by_day, by_week, strict=True))
    keys = [both[name] for name in names]
    return select(*keys, *by_day, *by_week).group_by(*keys).having(or_(*(count != 0 for count in counts), micro * SPLIT + rest != 0))


async def missing_or_other(db: Database, columns: Columns) -> list[Fault]:
    """Rows that a segment says are booked and SQL does not have, or has otherwise."""
    wanted: dict[int, dict[str, bytes]] = {}
    for row in zip(*columns, strict=True):
        wanted.setdefault(day_of(row[_STARTED_AT]), {})[row[0]] = digest(row)
    faults = []
    for day, digests in wanted.items():
        async with db.read() as conn:
            if day < await kept_from(conn):
                continue
            stored = await _digests(conn, day, list(digests)) if day in await existing(conn) else {}
        for request_id, expected in digests.items():
            name = f"The row of {request_id} ({date_of(day)})"
            if request_id not in stored:
                faults.append(Fault("row", request_id, f"{name} is gone: its segment says that it was booked."))
            elif stored[request_id] != expected:
                faults.append(Fault("row", request_id, f"{name} is not what its segment says."))
    return faults


async def _digests(conn: AsyncConnection, day: int, request_ids: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    table = day_table(day).c
    for start in range(0, len(request_ids), _CHUNK):
        query = select(table.request_id, table.digest).where(table.request_id.in_(request_ids[start : start + _CHUNK]))
        found |= {request_id: bytes(stored) for request_id, stored in (await conn.execute(query)).all()}
    return found


async def _one_moment(conn: AsyncConnection) -> None:
    """PostgreSQL: all statements of the transaction see what was there at the first. SQLite's do anyway."""
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


async def _rows(conn: AsyncConnection, day: int, found: Found) -> Cells:
    hours: Cells = {}
    table = day_table(day).c
    result = await conn.stream(select(*(table[name] for name in COLUMNS), table.digest))
    async for page in result.partitions(_READ_AT_ONCE):
        for stored in page:
            *row, kept = stored
            _check_row(row, kept, day, found)
        found.rows += len(page)
        hours_of([list(column) for column in zip(*page, strict=True)][:-1], hours)
    return hours


def _check_row(row: list[Any], kept: bytes, day: int, found: Found) -> None:
    request_id = str(row[0])
    if digest(row) != kept:
        found.add("row", request_id, f"The row of {request_id} ({date_of(day)}) is not what was booked.")
    elif day_of(row[_STARTED_AT]) != day:
        found.add("row", request_id, f"The row of {request_id} is of another day than {date_of(day)}.")
    elif row[_PRICE] is not None:
        try:
            cost = recomputed_pusd(row[_PRICE], row[_PROMPT], row[_COMPLETION], row[_CACHED])
        except ValueError:
            found.add("row", request_id, f"The row of {request_id} ({date_of(day)}) has no price that can be read: {row[_PRICE]}")
            return
        if cost != row[_COST]:
            found.add("row", request_id, f"The row of {request_id} ({date_of(day)}) costs {row[_COST]} pusd; by its price it is {cost}.")


async def _stored(conn: AsyncConnection, table: Table, start: int, end: int) -> Cells:
    query = select(*table.c).where(table.c.at >= start, table.c.at < end)
    cells: Cells = {}
    width = len(table.primary_key)
    for row in (await conn.execute(query)).all():
        cells[tuple(row[:width])] = _cell(row[width:])
    return cells


def _cell(sums: Sequence[Any]) -> list[int]:
    *counts, micro, rest = (int(value) for value in sums)
    return [*counts, micro * SPLIT + rest]


def _compare(name: str, should: Mapping[Any, list[int]], stored: Mapping[Any, list[int]], found: Found) -> None:
    for key in should.keys() | stored.keys():
        expected, there = should.get(key), stored.get(key)
        if expected != there:
            _differs(name, key, expected, there, found)


def _differs(name: str, key: Iterable[Any], expected: Sequence[int] | None, there: Sequence[int] | None, found: Found) -> None:
    where = f"{name}: {_told(name, key)}"
    made_of = "days" if name == _BY_WEEK else "rows"
    found.add("rollup", where, f"Roll-up {where}: {_figures(there)}; its {made_of} make {_figures(expected)}.")


def _told(name: str, key: Iterable[Any]) -> str:
    """A bucket in words: what is empty is left out."""
    names = {"by hour": BUCKET, "by day": BUCKET, "totals": ("step", "kind", "scope", "at", "name"), "of each": _OF_DAY, _BY_WEEK: _OF_WEEK}
    told = {part: moment(value) if part == "at" else str(value).replace(JOINT, "/") for part, value in zip(names[name], key, strict=True)}
    return ", ".join(f"{part} {value}" for part, value in told.items() if value not in ("", "0"))


_DAYS_AND_WEEKS = (usage_of_each_day, usage_of_each_week)
_OF_DAY, _OF_WEEK = (tuple(table.primary_key.columns.keys()) for table in _DAYS_AND_WEEKS)
_BY_WEEK = "of each, by week"


def moment(at_s: int) -> str:
    """`2026-03-01T12`: the hour."""
    return f"{date_of(day_of(at_s))}T{at_s % DAY_S // 3600:02d}"


def _figures(cell: Sequence[int] | None) -> str:
    if cell is None:
        return "nothing"
    return f"{cell[0]} requests, {cell[1]}+{cell[2]} tokens ({cell[3]} cached, {cell[4]} reasoning), {cell[5]} pusd"
