"""Booking: raw rows, what they add to the roll-ups, and how far their ledger segment is shipped, in one transaction.

Rows go to the drivers in bulk and past SQLAlchemy, whose own insert spends more time on a row than the database does. SQLite takes many
rows in one statement (handing values over row by row costs as much as storing them), PostgreSQL one list for each column.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain, compress, count
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store import days
from gateway.store.days import COLUMNS, DAY_S, day_table
from gateway.store.rollups import USED, as_values, fold, weeks_of
from gateway.store.rows import Columns, digests, normal, repeated
from gateway.store.tables import usage_by_day, usage_by_hour, usage_of_each_day, usage_of_each_week, usage_totals

_REQUEST_ID, _STARTED_AT = COLUMNS.index("request_id"), COLUMNS.index("started_at")
_VALUES_AT_ONCE = 900  # in one statement; any SQLite takes 999
_ROWS_AT_ONCE = 32
_LARGE = 500  # rows
_CHUNK = 500
_OF_VALUES = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, ValueError, TypeError)
_FORWARD = (  # a batch sent again must not turn the offset back
    'INSERT INTO ledger_segments (name, "offset", updated_at) VALUES ({}, {}, {}) ON CONFLICT (name) DO UPDATE '
    'SET "offset" = excluded."offset", updated_at = excluded.updated_at WHERE excluded."offset" > ledger_segments."offset"'
)


async def insert_usage(conn: AsyncConnection, rows: Sequence[Mapping[str, Any]], segment: str, offset: int) -> int:
    """`insert_columns` of rows by column name (a missing column is NULL), and the tables they need."""
    await days.create(conn, {days.day_of(row["started_at"]) for row in rows})
    return await insert_columns(conn, [[row.get(name) for row in rows] for name in COLUMNS], segment, offset)


async def insert_columns(conn: AsyncConnection, columns: Columns, segment: str, offset: int) -> int:
    """Add rows and note that `segment` is shipped up to `offset` bytes.

    In the caller's one transaction; the tables of the rows' days are there. A row whose request_id is known already changes nothing,
    neither rows nor roll-ups, so a batch may be sent again. Returns how many were new.
    """
    # first: it locks the segment, so that two shippers of it go one after the other
    marks = "???" if conn.dialect.name == "sqlite" else ("$1", "$2", "$3")
    await _execute(conn, _FORWARD.format(*marks), [(segment, offset, time.time())])
    by_day = [await _insert_day(conn, day_table(day), of_day) for day, of_day in _by_day(normal(columns)).items()]
    new = by_day[0] if len(by_day) == 1 else [[value for of_day in by_day for value in of_day[at]] for at in range(len(COLUMNS))]
    if not new[0]:
        return 0
    folded = fold(new)
    for table, cells in (
        (usage_by_hour, folded.hours),
        (usage_by_day, folded.days),
        (usage_totals, folded.totals),
        (usage_of_each_day, folded.of_each),
        (usage_of_each_week, weeks_of(folded.of_each)),
    ):
        await _insert(conn, table, as_values(cells), {}, _adding_up(table))
    return len(new[0])


def is_of_the_rows(error: Exception) -> bool:
    """Is it a fault of what a row holds (too large a number, a character that no text may have, nothing where something must be)?

    All else (a table that is gone, a disk that fails) would be the same with any row.
    """
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        cause = getattr(error.orig, "__cause__", None)
        return isinstance(error, IntegrityError) or state[:2] in ("22", "23") or isinstance(cause, _OF_VALUES)
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return "binding parameter" in str(error)
    return isinstance(error, _OF_VALUES) or (isinstance(error, OSError) and error.errno == errno.EOVERFLOW)  # a day beyond the calendar


def _by_day(columns: Columns) -> dict[int, Columns]:
    """The rows of each day, the days in order."""
    started_at = columns[_STARTED_AT]
    found = sorted(days.days_of(started_at))
    if len(found) == 1:
        return {found[0]: columns}
    of_rows = [int(at_s // DAY_S) for at_s in started_at]
    return {day: [list(compress(column, map(day.__eq__, of_rows))) for column in columns] for day in found}


async def _insert_day(conn: AsyncConnection, table: Table, columns: Columns) -> Columns:
    """Store the rows of one day that are not there yet; returns these."""
    await _execute(conn, "SAVEPOINT new_rows")
    try:
        await _insert_rows(conn, table, columns)
    except (sqlite3.IntegrityError, IntegrityError):  # some are there already, a batch sent again; or a request is named twice
        await _execute(conn, "ROLLBACK TO SAVEPOINT new_rows")
        columns = await _unknown(conn, table, columns)
        if columns[0]:
            await _insert_rows(conn, table, columns)
    return columns


async def _insert_rows(conn: AsyncConnection, table: Table, columns: Columns) -> None:
    """With their digests. What all rows of a large batch share is handed over once; a small one is not worth a statement of its own."""
    shared = repeated(columns) if len(columns[_REQUEST_ID]) >= _LARGE else {}
    shared.pop(_REQUEST_ID, None)
    own = [column for at, column in enumerate(columns) if at not in shared]
    last: Iterable[Any] = digests(columns, shared)
    if conn.dialect.name == "sqlite":
        last = map(bytearray, last)  # the driver looks for an adapter of bytes, each time, and finds none
    await _insert(conn, table, list(chain.from_iterable(zip(*own, last, strict=True))), shared)


async def _execute(conn: AsyncConnection, statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
    """A statement, or one for each row. With SQLite by the driver itself: SQLAlchemy goes to the driver's thread three times for each."""
    if conn.dialect.name == "sqlite":
        driver: Any = (await conn.get_raw_connection()).driver_connection
        await (driver.execute(statement) if rows is None else driver.executemany(statement, rows))
    else:
        await conn.exec_driver_sql(statement, rows)


async def _insert(conn: AsyncConnection, table: Table, values: list[Any], shared: dict[int, Any], conflict: str = "") -> None:
    """`values`: of row after row, each in the order of the table's columns, without what all of them share (by the column's place).

    `conflict`: what is to be done with a row that is there.
    """
    width = len(table.c) - len(shared)
    places = tuple(shared)
    if conn.dialect.name != "sqlite":
        columns = tuple(values[column::width] for column in range(width))
        await conn.exec_driver_sql(_by_columns(table, places) + conflict, (*shared.values(), *columns))
        return
    start = 0
    for rows in (min((_VALUES_AT_ONCE - len(shared)) // width, _ROWS_AT_ONCE), 1):
        length = rows * width
        parts = [(*shared.values(), *values[at : at + length]) for at in range(start, len(values) - length + 1, length)]
        if parts:
            await _execute(conn, _by_rows(table, rows, places) + conflict, parts)
            start += len(parts) * length


async def booked(conn: AsyncConnection, started_at: Mapping[str, float]) -> set[str]:
    """Which of these requests (by id, with the moment they began) have a row."""
    of_day: dict[int, list[str]] = {}
    for request_id, at_s in started_at.items():
        of_day.setdefault(int(at_s // DAY_S), []).append(request_id)
    found: set[str] = set()
    for day in await days.existing(conn):
        if day in of_day:
            found |= await _known(conn, day_table(day), of_day[day])
    return found


async def _unknown(conn: AsyncConnection, table: Table, columns: Columns) -> Columns:
    """Those rows that are not there yet, each once: as it was named last."""
    rows = {row[_REQUEST_ID]: row for row in zip(*columns, strict=True)}
    for request_id in await _known(conn, table, list(rows)):
        del rows[request_id]
    return [[row[at] for row in rows.values()] for at in range(len(columns))]


async def _known(conn: AsyncConnection, table: Table, request_ids: Sequence[str]) -> set[str]:
    """Those that the table of their day has."""
    column = table.c.request_id
    found: set[str] = set()
    for start in range(0, len(request_ids), _CHUNK):
        found.update((await conn.execute(select(column).where(column.in_(request_ids[start : start + _CHUNK])))).scalars())
    return found


# Statements. They hold names of our own tables and columns only.


@lru_cache(64)
def _by_rows(table: Table, rows: int, shared: tuple[int, ...]) -> str:
    """SQLite: so many rows, value by value, behind those that they share.

    OR FAIL: what a statement has stored before it fails stays, and is undone with its savepoint or its transaction. Otherwise SQLite copies
    every page into a journal of the statement's own first, to undo it alone: a third of what storing rows costs.
    """
    columns = table.c.keys()
    numbers = count(len(shared) + 1)
    told = ", ".join(
        "(" + ", ".join(f"?{shared.index(at) + 1 if at in shared else next(numbers)}" for at in range(len(columns))) + ")"
        for _ in range(rows)
    )
    return f"INSERT OR FAIL INTO {table.name} ({', '.join(columns)}) VALUES {told}"  # noqa: S608


@lru_cache(64)
def _by_columns(table: Table, shared: tuple[int, ...]) -> str:
    """PostgreSQL: any number of rows, a list for each column, behind the values that they share."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # its __init__ is not annotated
    types = [column.type.compile(dialect) for column in table.c]
    own = [at for at in range(len(types)) if at not in shared]
    lists = ", ".join(f"${number}::{types[at]}[]" for number, at in enumerate(own, len(shared) + 1))
    told = ", ".join(f"${shared.index(at) + 1}::{types[at]}" if at in shared else f"c{at}" for at in range(len(types)))
    names = ", ".join(f"c{at}" for at in own)
    return f"INSERT INTO {table.name} ({', '.join(table.c.keys())}) SELECT {told} FROM unnest({lists}) AS own ({names})"  # noqa: S608


@cache
def _adding_up(table: Table) -> str:
    sums = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in USED)
    return f" ON CONFLICT ({', '.join(table.primary_key.columns.keys())}) DO UPDATE SET {sums}"
