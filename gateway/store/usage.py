"""Reports: what was used, added up by key, model, user, team, backend, ending, arm, version, day or hour. None reads raw rows.

A report's time is cut into whole days and the hours at its ragged ends, that of many keys or users into whole weeks, days and hours. Of
one key or one user it is read from the buckets (`usage_by_day`, `usage_by_hour`); else from sums that are kept ready (`usage_totals`,
`usage_of_each_day`, `usage_of_each_week`), but for the hours of keys and users. See gateway.store.rollups.

Each form of statement is made once, with parameters for what varies: to make it anew took two fifths of a report's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    select,
    union,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.days import DAY_S
from gateway.store.pieces import in_pieces
from gateway.store.rollups import GROUPS, HOUR_S, JOINT, MANY, SPLIT, USED, WEEK_S, joined, kind_name
from gateway.store.tables import day_of_hour, usage_by_day, usage_by_hour, usage_of_each_day, usage_of_each_week, usage_totals

Spans = list[tuple[int, int]]
"""Times from and to, Unix seconds; the latter excluded."""
By = Literal["key", "model", "user", "team", "backend", "ending", "arm", "version", "day", "hour"]
BYS: tuple[By, ...] = ("key", "model", "user", "team", "day", "hour", "backend", "ending", "arm", "version")
_PAGE = 1000
_CHUNK = 500
_END = 2**62 // WEEK_S * WEEK_S  # no report has an end that late
_MOST = 2**63 - 1  # what a column of numbers holds
_LIMIT: BindParameter[int] = bindparam("limit", type_=Integer)
_NAMES: BindParameter[Any] = bindparam("names", expanding=True)
_DAYS: BindParameter[Any] = bindparam("days", expanding=True)
_DAYS_OF_HOURS: BindParameter[Any] = bindparam("days_of_hours", expanding=True)


class UsageLine(NamedTuple):  # one of a thousand costs a quarter of what a frozen dataclass does
    """One line of a report. `group`: id or name ("" = none: a login token, no team, no backend), day (YYYY-MM-DD), hour (RFC 3339), UTC
    both; the arm, or the revision's number.

    `experiment`: what the arm belongs to; None in all other reports.
    """

    group: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_pusd: int
    experiment: str | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is of. Times: Unix seconds; the hours that they lie in count in full, unless `until_s` is an hour's very start.

    "" = everybody's. `team_id`: what was used while its user was of this team; "" is the team that nobody is of, None: all.
    """

    since_s: float = 0.0
    until_s: float | None = None
    user_id: str = ""
    key_id: str = ""
    model: str = ""
    team_id: str | None = None


def _span(wanted: Wanted) -> tuple[int, int]:
    """Start and end (excluded) in whole hours, Unix seconds."""
    start = int(wanted.since_s // HOUR_S) * HOUR_S
    return start, _END if wanted.until_s is None else -int(-wanted.until_s // HOUR_S) * HOUR_S


def _parts(span: tuple[int, int], *steps: int) -> tuple[tuple[int, ...], Spans]:
    """The time cut into whole steps of the first kind and, at its ends, of the next ones; each part's step, and its span."""
    (start, end), step = span, steps[0]
    if len(steps) == 1:
        return (step,) * (start < end), [span] * (start < end)
    first, last = -(-start // step) * step, end // step * step
    if first >= last:
        return _parts(span, *steps[1:])
    before, after = (_parts(ragged, *steps[1:]) for ragged in ((start, first), (last, end)))
    return (step, *before[0], *after[0]), [(first, last), *before[1], *after[1]]


def _parts_of_few(by: By, span: tuple[int, int]) -> tuple[tuple[int, ...], Spans]:
    return _parts(span, HOUR_S) if by == "hour" else _parts(span, DAY_S, HOUR_S)


async def report(
    conn: AsyncConnection, by: By, wanted: Wanted, *, after: str = "", limit: int = _PAGE
) -> tuple[list[UsageLine], str | None]:
    """A page of lines in the order of their group, and where the next one begins (None: this was the last).

    Lines of keys and users are made for one page of ids at a time, so a page of theirs may hold fewer than `limit` and not be the last.
    """
    if wanted.team_id == "":
        return [], None
    span = _span(wanted)
    if span[0] >= span[1]:
        return [], None
    of_buckets = bool(wanted.key_id or wanted.user_id)
    # Sums have the names of versions as text, buckets their numbers.
    place = _decoded(after, number=by in ("day", "hour") or (by == "version" and of_buckets))
    if of_buckets:
        found = await _of_buckets(conn, by, wanted, span, place, limit)
    elif by in MANY:
        return await _of_many(conn, by, wanted, span, place, limit)
    else:
        found = await _of_few(conn, by, wanted, span, place, limit)
    following = _encoded(found[limit - 1][0]) if len(found) > limit else None
    return await in_pieces(partial(_line, by), found[:limit]), following


async def whole_report(conn: AsyncConnection, by: By, wanted: Wanted) -> list[UsageLine]:
    """All its lines."""
    lines, after = await report(conn, by, wanted)
    while after is not None:
        more, after = await report(conn, by, wanted, after=after)
        lines += more
    return lines


async def _of_few(conn: AsyncConnection, by: By, wanted: Wanted, span: tuple[int, int], after: Any, limit: int) -> list[Any]:
    scope, scope_name = _scope(wanted)
    own = {"model": wanted.model, "team": wanted.team_id}.get(by)  # one line, by the name that is filtered by
    steps, spans = _parts_of_few(by, span)
    values = _values(spans, after, limit) | {"scope": scope_name} | ({"own": own} if own else {})
    return await _rows(conn, _few_query(by, scope, bool(own), steps, after is not None), values)


@cache
def _few_query(by: By, scope: str, own: bool, steps: tuple[int, ...], after: bool) -> Select[Any]:
    table = usage_totals.c
    group = "all" if own or by in ("day", "hour") else by
    name: ColumnElement[Any] = bindparam("own", type_=Text) if own else table.name
    if by in ("day", "hour"):
        name = _moment(table.at, by)
    chosen = (table.kind == kind_name(scope, group), table.scope == bindparam("scope"))
    return _grouped(
        [_part(name, table, *chosen, table.step_s == step, *_within(table.at, number)) for number, step in enumerate(steps)], after
    )


async def _of_buckets(conn: AsyncConnection, by: By, wanted: Wanted, span: tuple[int, int], after: Any, limit: int) -> list[Any]:
    steps, spans = _parts_of_few(by, span)
    given = _given(wanted)
    values = _values(spans, after, limit) | given
    if by != "hour":
        values["days_of_hours"] = _days_of([span for step, span in zip(steps, spans, strict=True) if step == HOUR_S])
    return await _rows(conn, _bucket_query(by, tuple(given), steps, after is not None), values)


@cache
def _bucket_query(by: By, filters: tuple[str, ...], steps: tuple[int, ...], after: bool) -> Select[Any]:
    parts = []
    for number, step in enumerate(steps):
        table = usage_by_day if step == DAY_S else usage_by_hour
        columns = table.c
        name: ColumnElement[Any]
        if by in ("day", "hour"):
            name = _moment(columns.at, by)
        elif by == "arm":
            name = columns.experiment + JOINT + columns.arm
        else:
            name = columns[GROUPS[by][0]]
        chosen = _filters(table, filters) + ([columns.arm != ""] if by == "arm" else [])
        if step == HOUR_S:
            chosen.append(day_of_hour().in_(_days_used(filters, number) if by == "hour" else _DAYS_OF_HOURS))
        parts.append(_part(name, columns, *chosen, *_within(columns.at, number)))
    return _grouped(parts, after)


def _days_used(filters: tuple[str, ...], number: int) -> Select[Any]:
    """The days of a span in which there are any of these buckets, counted from 1970-01-01: a span may have no end."""
    at = usage_by_day.c.at
    start, end = (bindparam(f"{edge}_{number}", type_=BigInteger) for edge in ("from", "to"))
    return select(at.op("/")(DAY_S)).where(*_filters(usage_by_day, filters), at > start - DAY_S, at < end)


async def _of_many(
    conn: AsyncConnection, by: By, wanted: Wanted, span: tuple[int, int], after: Any, limit: int
) -> tuple[list[UsageLine], str | None]:
    """A page of the ids that are there in the weeks or days which the span touches, then what they used in its weeks, days and hours."""
    cut = _cut(span)
    names = await _names(conn, by, wanted, span, WEEK_S if cut.weeks else DAY_S, after, limit)
    following = _encoded(names[limit - 1]) if len(names) > limit else None
    found = await _used_by(conn, by, names[:limit], wanted, cut)
    return await in_pieces(partial(_line, by), [found[name] for name in names if name in found]), following


async def _names(conn: AsyncConnection, by: By, wanted: Wanted, span: tuple[int, int], step: int, after: Any, limit: int) -> list[str]:
    """The next keys or users of the weeks or days that the span touches, one more than a page holds: read from an index alone."""
    touched = span[0] // step * step, -(-span[1] // step) * step
    of = by, bool(wanted.model), wanted.team_id is not None, after is not None
    values = _values([touched], after, limit) | {"scope": wanted.model, "team_id": wanted.team_id}
    if step == WEEK_S:
        query = _names_of_weeks(*of)
    else:
        days = range(*touched, DAY_S)
        query = _names_of_days(len(days), *of)
        values |= {f"day_{number}": day for number, day in enumerate(days)}
    return list((await conn.execute(query, values)).scalars())


@cache
def _names_of_weeks(by: By, of_model: bool, of_team: bool, after: bool) -> Select[Any]:
    table = usage_of_each_week.c
    return _some_names(table, by, of_model, of_team, after).where(*_within(table.at, 0))


@cache
def _names_of_days(days: int, by: By, of_model: bool, of_team: bool, after: bool) -> Select[Any]:
    """As many names of each day as the page has: within a day they stand in their order."""
    table = usage_of_each_day.c
    some = _some_names(table, by, of_model, of_team, after)
    parts = [select(some.where(table.at == bindparam(f"day_{number}")).subquery().c.name) for number in range(days)]
    names = union(*parts).subquery()
    return select(names.c.name).order_by(names.c.name).limit(_LIMIT)


def _some_names(table: Any, by: By, of_model: bool, of_team: bool, after: bool) -> Select[Any]:
    query = select(table.name).where(*_of_each(table, by, of_model))
    if of_team:
        query = query.where(table.team_id == bindparam("team_id"))
    if after:
        query = query.where(table.name > bindparam("after"))
    return query.distinct().order_by(table.name).limit(_LIMIT)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A time in whole weeks, the days (their starts) and the hours that are in none."""

    weeks: Spans
    days: list[int]
    hours: Spans


def _cut(span: tuple[int, int]) -> _Cut:
    parts = list(zip(*_parts(span, WEEK_S, DAY_S, HOUR_S), strict=True))
    weeks, days, hours = ([part for of, part in parts if of == step] for step in (WEEK_S, DAY_S, HOUR_S))
    return _Cut(weeks, [at for part in days for at in range(*part, DAY_S)], hours)


async def _used_by(conn: AsyncConnection, by: By, names: Sequence[str], wanted: Wanted, cut: _Cut) -> dict[str, Any]:
    """What each of these keys or users has used: name and sums. Who used nothing is absent."""
    given = _given(wanted)
    query = _many_query(by, tuple(given), len(cut.weeks), bool(cut.days), len(cut.hours))
    values = _times(cut.weeks + cut.hours) | given | {"scope": wanted.model, "days": cut.days}
    values |= {"days_of_hours": _days_of(cut.hours)}
    found: dict[str, Any] = {}
    for start in range(0, len(names), _CHUNK):
        found |= {row[0]: row for row in await _rows(conn, query, values | {"names": names[start : start + _CHUNK]})}
    return found


def _days_of(hours: Spans) -> list[int]:
    """The days in which these spans lie, counted from 1970-01-01."""
    return sorted({day for start, end in hours for day in range(start // DAY_S, (end - 1) // DAY_S + 1)})


@cache
def _many_query(by: By, filters: tuple[str, ...], weeks: int, days: bool, hours: int) -> Select[Any]:
    """`filters`: model, team_id. `weeks`, `hours`: how many spans of them."""
    parts, of_each = [], [(usage_of_each_week.c, _within(usage_of_each_week.c.at, number)) for number in range(weeks)]
    if days:
        of_each.append((usage_of_each_day.c, [usage_of_each_day.c.at.in_(_DAYS)]))
    for table, at in of_each:
        chosen = _of_each(table, by, "model" in filters)
        if "team_id" in filters:
            # `+ ""`: SQLite is to read these names where they stand side by side, and not one by one through the team's index
            chosen.append(table.team_id + "" == bindparam("team_id"))
        parts.append(_part(table.name, table, *chosen, *at, table.name.in_(_NAMES)))
    columns = usage_by_hour.c
    name = columns[GROUPS[by][0]]
    for number in range(weeks, weeks + hours):
        chosen = [day_of_hour().in_(_DAYS_OF_HOURS), *_filters(usage_by_hour, filters)]
        parts.append(_part(name, columns, *chosen, *_within(columns.at, number), name.in_(_NAMES)))
    return _summed(parts)


def _of_each(table: Any, by: By, of_model: bool) -> list[ColumnElement[bool]]:
    """The rows of one kind."""
    return [table.kind == kind_name("model" if of_model else "", by), table.scope == bindparam("scope")]


def _part(name: ColumnElement[Any], columns: Any, *chosen: ColumnElement[bool]) -> Select[Any]:
    """What is read from one table."""
    return select(name.label("name"), *(columns[used] for used in USED)).where(*chosen)


def _grouped(parts: Sequence[Select[Any]], after: bool) -> Select[Any]:
    """A page of the lines of all parts together."""
    query = _summed(parts)
    name = query.selected_columns.name
    query = query.order_by(name).limit(_LIMIT)
    return query.where(name > bindparam("after")) if after else query


def _summed(parts: Sequence[Select[Any]]) -> Select[Any]:
    """The lines of all parts together."""
    inner = (union_all(*parts) if len(parts) > 1 else parts[0]).subquery()
    return select(inner.c.name, *_sums(inner.c)).group_by(inner.c.name)


async def _rows(conn: AsyncConnection, query: Select[Any], values: Mapping[str, Any]) -> list[Any]:
    return list((await conn.execute(query, values)).all())


def _values(spans: Spans, after: Any, limit: int) -> dict[str, Any]:
    """Of a page: one line more than it holds says that there are others."""
    return _times(spans) | {"limit": limit + 1} | ({} if after is None else {"after": after})


def _times(spans: Spans) -> dict[str, int]:
    return {name: at for number, span in enumerate(spans) for name, at in zip((f"from_{number}", f"to_{number}"), span, strict=True)}


def _scope(wanted: Wanted) -> tuple[str, str]:
    """The scope of the sums to read, and its name."""
    if wanted.model and wanted.team_id is not None:
        return "team+model", joined((wanted.team_id, wanted.model))
    if wanted.model:
        return "model", wanted.model
    return ("", "") if wanted.team_id is None else ("team", wanted.team_id)


def _given(wanted: Wanted) -> dict[str, str]:
    given = {"key_id": wanted.key_id, "user_id": wanted.user_id, "model": wanted.model, "team_id": wanted.team_id or ""}
    return {name: value for name, value in given.items() if value}


def _filters(table: Table, names: Iterable[str]) -> list[ColumnElement[bool]]:
    return [table.c[name] == bindparam(name) for name in names]


def _within(at: Any, number: int) -> list[ColumnElement[bool]]:
    """In the span of this number."""
    return [at >= bindparam(f"from_{number}"), at < bindparam(f"to_{number}")]


def _moment(at: ColumnElement[Any], by: str) -> ColumnElement[Any]:
    return at - at % DAY_S if by == "day" else at


def _sums(columns: Any) -> list[ColumnElement[Any]]:
    """PostgreSQL adds whole numbers up to a decimal, which takes longer to read than all else of a line."""
    return [cast(func.sum(columns[name]), BigInteger) for name in USED]


def _cost(row: Sequence[Any]) -> int:
    return int(row[-2]) * SPLIT + int(row[-1])


def _line(by: By, row: Any) -> UsageLine:
    name, experiment = str(row[0]), None
    if by in ("day", "hour"):
        day, second = divmod(int(row[0]), DAY_S)
        name = _date(day) if by == "day" else f"{_date(day)}T{second // HOUR_S:02d}:00:00Z"
    elif by == "version":
        name = str(int(row[0]))
    elif by == "arm":
        experiment, name = _arm(name)
    return UsageLine(name, int(row[1]), int(row[2]), int(row[3]), _cost(row), experiment, int(row[4]), int(row[5]))


@lru_cache(1000)
def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")


def _arm(name: str) -> tuple[str | None, str]:
    experiment, _, arm = name.rpartition(JOINT)
    return experiment or None, arm


def _encoded(name: Any) -> str:
    """The place behind a group: its name as the database sorts it, marked as number or text."""
    return f"{'n' if isinstance(name, int) else 't'}{name}"


def _decoded(place: str, *, number: bool) -> Any:
    """None for the first page. Raises `ValueError` for what is no place among such groups: databases do not compare text with numbers."""
    if not place:
        return None
    mark, name = place[0], place[1:]
    if mark != ("n" if number else "t"):
        raise ValueError("not a place in this report")
    if not number:
        return name
    group = int(name)
    if not 0 <= group <= _MOST:
        raise ValueError("not a number that a column holds")
    return group


# What counts against budgets.


@dataclass(frozen=True, slots=True)
class Used:
    """Money in 1e-12 USD; tokens: prompt and completion."""

    cost_pusd: int = 0
    tokens: int = 0


async def used_since(conn: AsyncConnection, of: Literal["key", "user", "team", "model"], windows: Mapping[str, float]) -> dict[str, Used]:
    """What each key, user, team or model (by id) has used since its time (Unix seconds, a UTC midnight). Who used nothing is absent.

    A user's counts everything of the user: all keys and logins.
    """
    found: dict[str, Used] = {}
    for since_s in set(windows.values()):
        ids = [one for one, start_s in windows.items() if start_s == since_s]
        day = int(since_s) // DAY_S * DAY_S
        if of in MANY:
            rows: Iterable[Any] = (await _used_by(conn, of, ids, Wanted(), _cut((day, _END)))).values()
        else:
            query = _used_query(of)
            chunks = (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
            rows = [row for chunk in chunks for row in await _rows(conn, query, {"names": chunk, "day": day})]
        for row in rows:
            found[row[0]] = Used(_cost(row), int(row[2]) + int(row[3]))
    return found


@cache
def _used_query(of: str) -> Select[Any]:
    """What teams or models used."""
    totals = usage_totals.c
    chosen = (totals.step_s == DAY_S, totals.kind == kind_name(of, "all"), totals.scope.in_(_NAMES), totals.at >= bindparam("day"))
    return select(totals.scope, *_sums(totals)).where(*chosen).group_by(totals.scope)
