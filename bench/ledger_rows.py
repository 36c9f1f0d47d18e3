"""Rows for the books by the million, made by the database itself, and the roll-ups that belong to them.

Who did what follows from a row's number, by arithmetic that both databases do alike: a few keys do most of it; a key is one user's, uses
three of the models, and its user is of one team. Digests are left empty: `gateway ledger verify` is not for these books.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store import days
from gateway.store.days import COLUMNS, DAY_S, day_of, name_of
from gateway.store.engine import Database, dialect_of, postgres_engine, sqlite_engine
from gateway.store.rollups import BUCKET, FEW_KINDS, HOUR_S, MANY_KINDS, SPLIT, USED, WEEK_S, Kind
from gateway.store.tables import usage_by_day, usage_by_hour, usage_of_each_day, usage_of_each_week, usage_totals

DAYS = 90
_COUNTS = USED[:5]
_SUMS = ", ".join(f"sum({name})" for name in USED)
_FAST = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-400000", "PRAGMA temp_store=MEMORY")
_SQLITE_RANGE = "(WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {end}) SELECT i FROM n)"
_POSTGRES_RANGE = "(SELECT generate_series({first}::bigint, {end}::bigint - 1) AS i)"


@dataclass(frozen=True, slots=True)
class Books:
    """`rows` rows of the 90 days before today. The busiest user is `first_user`."""

    rows: int
    first_user: str
    users: int = 10_000
    keys: int = 20_000
    models: int = 20
    teams: int = 50
    first_s: int = field(default_factory=lambda: (day_of(time.time()) - DAYS) * DAY_S)

    def key(self, share: float) -> str:
        """`share`: 0 = the busiest."""
        return f"k{int(self.keys * share * share):011d}"

    def user(self, share: float) -> str:
        number = int(self.keys * share * share) % self.users
        return f"usr_{number:016d}" if number else self.first_user

    def model(self, number: int) -> str:
        return f"model-{number:02d}"

    def team(self, number: int) -> str:
        return f"team_{number:016d}"

    def request_id(self, number: int) -> str:
        return f"req-bench{number:015d}"


async def fill(url: str, books: Books) -> None:
    """Into a database that `gateway init` has made. The server must not be running."""
    db = Database(url)
    async with db.write() as conn:
        await days.create(conn, (day_of(books.first_s) + number for number in range(DAYS)))
    await db.close()
    sqlite = dialect_of(url) == "sqlite"
    engine = sqlite_engine(url, "BEGIN IMMEDIATE", pool_size=1) if sqlite else postgres_engine(url, pooled=False)
    try:
        async with engine.connect() as conn:
            if sqlite:
                driver = (await conn.get_raw_connection()).driver_connection
                for pragma in _FAST:
                    await driver.execute(pragma)  # type: ignore[union-attr]  # it is open
            await _fill(conn, books)
        if not sqlite:
            async with engine.connect() as conn:
                conn = await conn.execution_options(isolation_level="AUTOCOMMIT")
                await conn.execute(text("VACUUM (ANALYZE)"))  # after which an index can be read without its table
                await conn.execute(text("CHECKPOINT"))
    finally:
        await engine.dispose()


async def _fill(conn: AsyncConnection, books: Books) -> None:
    indexes = [index for table in (usage_by_hour, usage_by_day, usage_of_each_day, usage_of_each_week) for index in table.indexes]
    for index in indexes:
        await conn.run_sync(lambda c, index=index: index.drop(c))  # type: ignore[misc]  # a default argument binds the loop's value
    for number in range(DAYS):
        await _fill_day(conn, books, number)
        await conn.commit()
    sqlite = conn.dialect.name == "sqlite"
    for kind in MANY_KINDS:
        await conn.execute(text(_of_each(kind, sqlite)))
        await conn.commit()
    await conn.execute(text(_of_weeks(sqlite)))
    for index in indexes:
        await conn.run_sync(lambda c, index=index: index.create(c))  # type: ignore[misc]  # the same
    await conn.commit()


async def _fill_day(conn: AsyncConnection, books: Books, number: int) -> None:
    sqlite = conn.dialect.name == "sqlite"
    first, end = books.rows * number // DAYS, books.rows * (number + 1) // DAYS
    if first == end:
        return
    day = day_of(books.first_s) + number
    await conn.execute(text(_rows(books, day, first, end, sqlite)))
    at = f"at >= {day * DAY_S} AND at < {(day + 1) * DAY_S}"
    await conn.execute(text(_buckets(day, sqlite)))
    names = ", ".join(BUCKET[1:])
    await conn.execute(
        text(f"INSERT INTO usage_by_day SELECT {day * DAY_S}, {names}, {_SUMS} FROM usage_by_hour WHERE {at} GROUP BY {names}")
    )
    common = ", ".join(name for name in BUCKET if name not in ("user_id", "key_id"))
    sums = ", ".join(f"sum({name}) AS {name}" for name in USED)
    await conn.execute(text(f"CREATE TEMP TABLE common AS SELECT {common}, {sums} FROM usage_by_hour WHERE {at} GROUP BY {common}"))
    for step_s in (HOUR_S, DAY_S):
        for kind in FEW_KINDS:
            await conn.execute(text(_totals(kind, step_s, sqlite)))
    await conn.execute(text("DROP TABLE common"))


def _rows(books: Books, day: int, first: int, end: int, sqlite: bool) -> str:
    """SQL: the rows from number `first` on. Numbers that look random come from the row's number by multiplication."""
    numbers = (_SQLITE_RANGE if sqlite else _POSTGRES_RANGE).format(first=first, end=end)
    pad = "printf('%0{1}d', {0})" if sqlite else "lpad(({0})::text, {1}, '0')"

    def padded(value: str, width: int) -> str:
        return pad.format(value, width)

    whole = "CAST({} AS INTEGER)" if sqlite else "floor({})::bigint"
    key = whole.format(f"{books.keys} * (h % 1000003) / 1000003.0 * (h % 1000003) / 1000003.0")
    model = "(k * 7 + (h / 8) % 3 * 5) % " + str(books.models)
    team = f"k % {books.users} % {books.teams}"
    values = {
        "request_id": f"'req-bench' || {padded('i', 15)}",
        "started_at": f"{day * DAY_S}.0 + (i - {first}) * {DAY_S / (end - first)!r}",
        "operation": "'chat'",
        "key_id": f"CASE WHEN h % 50 = 0 THEN NULL ELSE 'k' || {padded('k', 11)} END",
        "user_id": f"CASE WHEN k % {books.users} = 0 THEN '{books.first_user}' ELSE 'usr_' || {padded(f'k % {books.users}', 16)} END",
        "model": f"'model-' || {padded('m', 2)}",
        "revision": str(1 + (day - day_of(books.first_s)) // 15),
        "client_request_id": "NULL",
        "backend": f"'backend-' || {padded('m', 2)} || '-' || (h / 16) % 2",
        "attempts": "1",
        "status": "200",
        "ending": "CASE (h / 32) % 40 WHEN 0 THEN 'upstream_error' WHEN 1 THEN 'client_gone' ELSE 'success' END",
        "prompt_tokens": "100 + h % 900",
        "completion_tokens": "50 + h % 400",
        "token_source": "'backend'",
        "cost_pusd": "(100 + h % 900) * 150000 + (50 + h % 400) * 600000",
        "duration_ms": "250.5",
        "ttft_ms": "25.25",
        "queue_ms": "0.125",
        "connect_ms": "0.5",
        "experiment": "CASE WHEN m = 0 THEN 'summer' END",
        "arm": "CASE WHEN m = 0 THEN CASE (h / 64) % 4 WHEN 0 THEN 'candidate' ELSE 'control' END END",
        "team_id": f"CASE WHEN {team} > 0 THEN 'team_' || {padded(team, 16)} END",
        "cached_tokens": "h % 64",
        "reasoning_tokens": "0",
        "price": "'0.15/0.60/'",
        "tried": "NULL",
    }
    digest = "zeroblob(16)" if sqlite else "decode(repeat('00', 16), 'hex')"
    listed = ", ".join(values[name] for name in COLUMNS)
    with_hash = f"SELECT i, (i * 2654435761) % 4294967296 AS h FROM {numbers} AS numbers"
    with_key = f"SELECT i, h, {key} AS k FROM ({with_hash}) AS hashed"
    with_model = f"SELECT i, h, k, {model} AS m FROM ({with_key}) AS keyed"
    return f"INSERT INTO {name_of(day)} SELECT {listed}, {digest} FROM ({with_model}) AS numbered"


def _buckets(day: int, sqlite: bool) -> str:
    start = day * DAY_S
    into_day = f"(started_at - {start}) / {HOUR_S}"
    hour = f"{start} + {f'CAST({into_day} AS INTEGER)' if sqlite else f'floor({into_day})::bigint'} * {HOUR_S}"
    named = [f"coalesce({name}, '')" for name in BUCKET[1:7]]
    bucket = [hour, *named, "coalesce(revision, 0)", "coalesce(experiment, '')", "coalesce(arm, '')"]
    counts = ["count(*)", *(f"sum({name})" for name in _COUNTS[1:])]
    money = "sum(cost_pusd)" if sqlite else "sum(cost_pusd)::bigint"
    groups = ", ".join(str(place) for place in range(1, len(bucket) + 1))
    listed = ", ".join((*bucket, *counts, f"{money} / {SPLIT}", f"{money} % {SPLIT}"))
    return f"INSERT INTO usage_by_hour SELECT {listed} FROM {name_of(day)} GROUP BY {groups} ORDER BY {groups}"


def _totals(kind: Kind, step_s: int, sqlite: bool) -> str:
    at = "at" if step_s == HOUR_S else f"at / {DAY_S} * {DAY_S}"
    scope, name = _joined(kind.scope, sqlite), _joined(kind.group, sqlite)
    needs = " AND ".join(["1 = 1", *(f"{column} <> ''" for column in kind.needs)])
    chosen = f"SELECT {scope} AS scope, {at} AS moment, {name} AS name, {', '.join(USED)} FROM common WHERE {needs}"
    return (
        f"INSERT INTO {usage_totals.name} SELECT {step_s}, '{kind.name}', scope, moment, name, {_SUMS} "
        f"FROM ({chosen}) AS chosen GROUP BY scope, moment, name"
    )


def _as_they_come(sqlite: bool) -> str:
    """SQL: the order in which rows of keys and users are stored. PostgreSQL leaves them as they came: period by period, and within one
    each name when it was first used. SQLite keeps them in the order of the primary key.
    """
    return "" if sqlite else "ORDER BY at, md5(name)"


def _of_each(kind: Kind, sqlite: bool) -> str:
    scope, name = (part[0] if part else "''" for part in (kind.scope, kind.group))
    chosen = f"SELECT {scope} AS scope, at, {name} AS name, team_id, {', '.join(USED)} FROM usage_by_day"
    return (
        f"INSERT INTO {usage_of_each_day.name} SELECT '{kind.name}', scope, at, name, team_id, {_SUMS} "
        f"FROM ({chosen}) AS chosen GROUP BY scope, at, name, team_id {_as_they_come(sqlite)}"
    )


def _of_weeks(sqlite: bool) -> str:
    chosen = f"SELECT kind, scope, name, at / {WEEK_S} * {WEEK_S} AS at, team_id, {', '.join(USED)} FROM {usage_of_each_day.name}"
    return (
        f"INSERT INTO {usage_of_each_week.name} SELECT kind, scope, name, at, team_id, {_SUMS} "
        f"FROM ({chosen}) AS chosen GROUP BY kind, scope, name, at, team_id {_as_they_come(sqlite)}"
    )


def _joined(columns: Iterable[str], sqlite: bool) -> str:
    """The same as `gateway.store.rollups.joined`, in SQL."""
    padded = "printf('%012d', revision)" if sqlite else "lpad(revision::text, 12, '0')"
    parts = [padded if column == "revision" else column for column in columns]
    return f" || {'char' if sqlite else 'chr'}(31) || ".join(parts) or "''"
