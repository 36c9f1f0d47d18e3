"""Booking: raw rows, what they add to the roll-ups, and how far their ledger segment is shipped, in one transaction.

Rows go to the drivers in bulk and past SQLAlchemy, whose own insert spends more time on a row than the database does. SQLite takes many
rows in one statement (handing values over row by row costs as much as storing them), PostgreSQL one list for each column.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store import days
from gateway.store.days import COLUMNS, DAY_S, day_table
from gateway.store.rollups import USED, as_values, fold
from gateway.store.rows import WIDTH, digest, normal
from gateway.store.tables import usage_by_day, usage_by_hour, usage_of_each, usage_totals

_STARTED_AT = COLUMNS.index("started_at")
_VALUES_AT_ONCE = 900  # in one statement; any SQLite takes 999
_CHUNK = 500
_OF_VALUES = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, ValueError, TypeError)
_FORWARD = (  # a batch sent again must not turn the offset back
    'INSERT INTO ledger_segments (name, "offset", updated_at) VALUES ({}, {}, {}) ON CONFLICT (name) DO UPDATE '
    'SET "offset" = excluded."offset", updated_at = excluded.updated_at WHERE excluded."offset" > ledger_segments."offset"'
)


async def insert_usage(conn: AsyncConnection, rows: Sequence[Mapping[str, Any]], segment: str, offset: int) -> int:
    """`insert_values` of rows by column name (a missing column is NULL), and the tables they need."""
    await days.create(conn, {days.day_of(row["started_at"]) for row in rows})
    return await insert_values(conn, [row.get(name) for row in rows for name in COLUMNS], segment, offset)


async def insert_values(conn: AsyncConnection, values: list[Any], segment: str, offset: int) -> int:
    """Add rows and note that `segment` is shipped up to `offset` bytes. `values`: of row after row, each in the order of `COLUMNS`.

    In the caller's one transaction; the tables of the rows' days are there. A row whose request_id is known already changes nothing,
    neither rows nor roll-ups, so a batch may be sent again. Returns how many were new.
    """
    # first: it locks the segment, so that two shippers of it go one after the other
    marks = "???" if conn.dialect.name == "sqlite" else ("$1", "$2", "$3")
    await _execute(conn, _FORWARD.format(*marks), [(segment, offset, time.time())])
    new: list[Any] = []
    for day, of_day in _by_day(normal(values)).items():
        new += await _insert_day(conn, day_table(day), of_day)
    if not new:
        return 0
    folded = fold(new)
    for table, cells in (
        (usage_by_hour, folded.hours),
        (usage_by_day, folded.days),
        (usage_totals, folded.totals),
        (usage_of_each, folded.of_each),
    ):
        await _insert(conn, table, as_values(cells), _adding_up(table))
    return len(new) // WIDTH


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


def _by_day(values: list[Any]) -> dict[int, list[Any]]:
    """The values of each day's rows, the days in order."""
    starts = values[_STARTED_AT::WIDTH]
    if not starts:
        return {}
    first, last = int(min(starts) // DAY_S), int(max(starts) // DAY_S)
    if first == last:
        return {first: values}
    found: dict[int, list[Any]] = {day: [] for day in sorted({int(start // DAY_S) for start in starts})}
    for row, start in enumerate(starts):
        found[int(start // DAY_S)] += values[row * WIDTH : (row + 1) * WIDTH]
    return found


async def _insert_day(conn: AsyncConnection, table: Table, values: list[Any]) -> list[Any]:
    """Store the rows of one day that are not there yet; returns their values."""
    await _execute(conn, "SAVEPOINT new_rows")
    try:
        await _insert(conn, table, _with_digests(values))
    except (sqlite3.IntegrityError, IntegrityError):  # some are there already, a batch sent again; or a request is named twice
        await _execute(conn, "ROLLBACK TO SAVEPOINT new_rows")
        values = await _unknown(conn, table, values)
        if values:
            await _insert(conn, table, _with_digests(values))
    return values


def _with_digests(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for at in range(0, len(values), WIDTH):
        row = values[at : at + WIDTH]
        found += row
        found.append(digest(row))
    return found


async def _execute(conn: AsyncConnection, statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
    """A statement, or one for each row. With SQLite by the driver itself: SQLAlchemy goes to the driver's thread three times for each."""
    if conn.dialect.name == "sqlite":
        driver: Any = (await conn.get_raw_connection()).driver_connection
        await (driver.execute(statement) if rows is None else driver.executemany(statement, rows))
    else:
        await conn.exec_driver_sql(statement, rows)


async def _insert(conn: AsyncConnection, table: Table, values: list[Any], conflict: str = "") -> None:
    """`values`: of row after row, each in the order of the table's columns. `conflict`: what is to be done with a row that is there."""
    width = len(table.c)
    if conn.dialect.name != "sqlite":
        columns = tuple(values[column::width] for column in range(width))
        await conn.exec_driver_sql(_by_columns(table) + conflict, columns)
        return
    start = 0
    for rows in (_VALUES_AT_ONCE // width, 1):
        length = rows * width
        parts = [tuple(values[at : at + length]) for at in range(start, len(values) - length + 1, length)]
        if parts:
            await _execute(conn, _by_rows(table, rows) + conflict, parts)
            start += len(parts) * length


async def _unknown(conn: AsyncConnection, table: Table, values: list[Any]) -> list[Any]:
    """The values of those rows that are not there yet, each row once."""
    rows = {values[at]: values[at : at + WIDTH] for at in range(0, len(values), WIDTH)}
    request_ids, column = list(rows), table.c.request_id
    for start in range(0, len(request_ids), _CHUNK):
        known = await conn.execute(select(column).where(column.in_(request_ids[start : start + _CHUNK])))
        for request_id in known.scalars():
            del rows[request_id]
    return [value for row in rows.values() for value in row]


# Statements. They hold names of our own tables and columns only.


@cache
def _by_rows(table: Table, rows: int) -> str:
    """SQLite: so many rows, value by value."""
    columns = table.c.keys()
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"  # noqa: S608


@cache
def _by_columns(table: Table) -> str:
    """PostgreSQL: any number of rows, a list for each column."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # its __init__ is not annotated
    lists = ", ".join(f"${number}::{column.type.compile(dialect)}[]" for number, column in enumerate(table.c, 1))
    return f"INSERT INTO {table.name} ({', '.join(table.c.keys())}) SELECT * FROM unnest({lists})"  # noqa: S608


@cache
def _adding_up(table: Table) -> str:
    sums = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in USED)
    return f" ON CONFLICT ({', '.join(table.primary_key.columns.keys())}) DO UPDATE SET {sums}"
