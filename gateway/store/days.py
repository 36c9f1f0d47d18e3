"""Raw rows of the ledger: one table for each UTC day of `started_at` (`usage_20260301`), made when the first row of that day comes and
dropped whole at the end of retention.

A request's start is the same in its BEGIN, its END and a batch that is sent again, so all of them go to the same table, whose primary key
makes a second one impossible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from gateway.store import meta, tables
from gateway.store.columns import Time
from gateway.store.engine import Database
from gateway.store.tables import metadata

DAY_S = 86_400
_PREFIX = "usage_"
_LOCK = 0x6777_6461  # "gwda", PostgreSQL advisory lock: two hosts that meet a new day at once make its table one after the other
_LOCK_WAIT_MS = 5000
_FORGOTTEN = "usage_forgotten_before"  # in `meta`: the rows of days before that of this table were dropped
_EXISTING = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'usage_[0-9]*' ORDER BY name DESC",
    "postgresql": "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace "
    "AND relname ~ '^usage_[0-9]{8}$' ORDER BY relname DESC",
}


@cache
def day_table(day: int) -> Table:
    """The table of a day (days since 1970-01-01), whether the database has it or not. Columns in the order of a record's fields."""
    return Table(
        name_of(day),
        MetaData(naming_convention=metadata.naming_convention),
        Column("request_id", Text, primary_key=True),
        Column("started_at", Time, nullable=False),
        Column("operation", Text, nullable=False),
        Column("key_id", Text),
        Column("user_id", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("revision", BigInteger),
        Column("client_request_id", Text),
        Column("backend", Text),
        Column("attempts", Integer, nullable=False),
        Column("status", Integer, nullable=False),
        Column("ending", Text, nullable=False),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("token_source", Text, nullable=False),
        Column("cost_pusd", BigInteger, nullable=False),
        Column("duration_ms", Double),
        Column("ttft_ms", Double),
        Column("queue_ms", Double),
        Column("connect_ms", Double),
        Column("experiment", Text),
        Column("arm", Text),
        Column("team_id", Text),
        Column("cached_tokens", BigInteger, nullable=False),  # part of prompt_tokens
        Column("reasoning_tokens", BigInteger, nullable=False),  # part of completion_tokens
        Column("price", Text),  # INPUT/OUTPUT/CACHED, USD per million tokens; null: none
        Column("tried", Text),  # JSON: [backend, outcome, ms] of each attempt that failed
        Column("digest", LargeBinary, nullable=False),  # over the row as it was booked: gateway.store.rows
        Index(None, "key_id", "started_at"),
        Index(None, "started_at"),
    )


def day_of(at_s: float) -> int:
    """The UTC day of a moment (Unix seconds), counted from 1970-01-01."""
    return int(at_s // DAY_S)


def days_of(started_at: Sequence[float]) -> set[int]:
    """Of many moments, mostly of one day."""
    if not started_at:
        return set()
    first, last = day_of(min(started_at)), day_of(max(started_at))
    return {first} if first == last else {day_of(at_s) for at_s in started_at}


@cache
def name_of(day: int) -> str:
    """`usage_20260301`."""
    return _PREFIX + date_of(day).replace("-", "")


def date_of(day: int) -> str:
    """`2026-03-01`."""
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")


def day_named(name: str) -> int:
    """The day of a table's name."""
    return day_of(datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC).timestamp())


COLUMNS = tuple(day_table(0).c.keys())[:-1]
"""All but the digest: what a record consists of."""


async def existing(conn: AsyncConnection, since_s: float = 0.0, until_s: float | None = None) -> list[int]:
    """The days that have a table, newest first; only those that this span touches."""
    names = (await conn.execute(text(_EXISTING[conn.dialect.name]))).scalars().all()
    days = [day_named(name) for name in names if len(name) == len(_PREFIX) + 8]
    return [day for day in days if day >= day_of(since_s) and (until_s is None or day * DAY_S < until_s)]


async def create(conn: AsyncConnection, days: Iterable[int]) -> None:
    """Make the tables of these days, where there are none; in the caller's transaction. PostgreSQL: others who do so wait for its end."""
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    there = set(await existing(conn))
    for day in sorted(set(days) - there):
        table = day_table(day)
        await conn.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            await conn.execute(CreateIndex(index, if_not_exists=True))


class Days:
    """Which tables this process knows to be there."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    async def ready(self, db: Database, started_at: Sequence[float]) -> None:
        """See that there is a table for each of these moments. A transaction of its own: the rows' need not hold the lock."""
        missing = days_of(started_at) - self._known
        if missing:
            async with db.write() as conn:
                await create(conn, missing)
            self._known |= missing

    def forget(self) -> None:
        """Look again: a table was dropped."""
        self._known.clear()


async def drop_before(db: Database, at_s: float) -> list[str]:
    """Forget the rows of all days that were over at `at_s`, each in a transaction; the roll-ups stay. Returns the tables' names."""
    async with db.read() as conn:
        gone = [day for day in await existing(conn) if (day + 1) * DAY_S <= at_s]
    for day in reversed(gone):  # the oldest first: what is left never has a gap
        async with db.write() as conn:
            if conn.dialect.name == "postgresql":
                await conn.execute(text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))  # shipping must not queue behind us
            await conn.execute(DropTable(day_table(day), if_exists=True))
            await _note_forgotten(conn, name_of(day + 1))
    return [name_of(day) for day in reversed(gone)]


async def _note_forgotten(conn: AsyncConnection, before: str) -> None:
    """Never back to an earlier day: a late row may have made the table of one again that was dropped long ago. (Names sort as days do.)"""
    await meta.put_if_absent(conn, _FORGOTTEN, before)
    facts = tables.meta.c
    await conn.execute(update(tables.meta).where(facts.name == _FORGOTTEN, facts.value < before).values(value=before))


async def kept_from(conn: AsyncConnection) -> int:
    """The first day whose rows were never dropped; 0 = none was."""
    value = await meta.get(conn, _FORGOTTEN)
    return day_named(value) if value else 0


def union(days: Sequence[int], columns: str, where: str) -> str:
    """One SELECT over several days' tables. The names are ours; values are bound."""
    return " UNION ALL ".join(f"SELECT {columns} FROM {name_of(day)} WHERE {where}" for day in days)  # noqa: S608


def as_row(values: Any) -> dict[str, Any]:
    """A row by column name."""
    return dict(zip(COLUMNS, values, strict=True))
