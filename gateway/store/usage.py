"""Reports: what was used, added up by key, model, user, team, backend, ending, arm, version, day or hour. None reads raw rows.

A report's time is cut into whole days and the hours at its ragged ends. Of one key or one user it is read
from the buckets (`usage_by_day`, `usage_by_hour`); else from sums that are kept ready (`usage_totals`, `usage_of_each`). See
gateway.store.rollups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.days import DAY_S
from gateway.store.rollups import GROUPS, HOUR_S, JOINT, MANY, SPLIT, USED, joined, kind_name
from gateway.store.tables import usage_by_day, usage_by_hour, usage_of_each, usage_totals

By = Literal["key", "model", "user", "team", "backend", "ending", "arm", "version", "day", "hour"]
BYS: tuple[By, ...] = ("key", "model", "user", "team", "day", "hour", "backend", "ending", "arm", "version")
_PAGE = 1000
_CHUNK = 500
_END = 2**62  # no report has an end that late
_MOST = 2**63 - 1  # what a column of numbers holds


@dataclass(frozen=True, slots=True)
class UsageLine:
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


@dataclass(frozen=True, slots=True)
class _Span:
    """[start, end) in whole hours; [first, last) are the whole days in it, empty if first >= last."""

    start: int
    end: int
    first: int
    last: int

    def hours(self) -> list[tuple[int, int]]:
        """The hours that are in no whole day."""
        if self.first >= self.last:
            return [(self.start, self.end)]
        return [(a, b) for a, b in ((self.start, self.first), (self.last, self.end)) if a < b]

    def days(self) -> list[tuple[int, int]]:
        return [(self.first, self.last)] if self.first < self.last else []


def _span(wanted: Wanted) -> _Span:
    start = int(wanted.since_s // HOUR_S) * HOUR_S
    end = _END // DAY_S * DAY_S if wanted.until_s is None else -int(-wanted.until_s // HOUR_S) * HOUR_S
    return _Span(start, end, -(-start // DAY_S) * DAY_S, end // DAY_S * DAY_S)


async def report(
    conn: AsyncConnection, by: By, wanted: Wanted, *, after: str = "", limit: int = _PAGE
) -> tuple[list[UsageLine], str | None]:
    """A page of lines in the order of their group, and where the next one begins (None: this was the last).

    Lines of keys and users are made for one page of ids at a time, so a page of theirs may hold fewer than `limit` and not be the last.
    """
    if wanted.team_id == "":
        return [], None
    span = _span(wanted)
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
    return [_line(row, by) for row in found[:limit]], following


async def whole_report(conn: AsyncConnection, by: By, wanted: Wanted) -> list[UsageLine]:
    """All its lines."""
    lines, after = await report(conn, by, wanted)
    while after is not None:
        more, after = await report(conn, by, wanted, after=after)
        lines += more
    return lines


async def _of_few(conn: AsyncConnection, by: By, wanted: Wanted, span: _Span, after: Any, limit: int) -> list[Any]:
    scope, scope_name = _scope(wanted)
    group = "all" if by in ("day", "hour") else by
    own = {"model": wanted.model, "team": wanted.team_id}.get(by)
    if own:  # one line, by the name that is filtered by
        group = "all"
    table = usage_totals.c
    chosen = [table.kind == kind_name(scope, group), table.scope == scope_name]
    name: ColumnElement[Any] = literal(own) if own else table.name
    if by in ("day", "hour"):
        name = _moment(table.at, by)
    step_s = [HOUR_S] if by == "hour" else [DAY_S, HOUR_S]
    parts = []
    for step, spans in ((DAY_S, span.days()), (HOUR_S, span.hours() if DAY_S in step_s else [(span.start, span.end)])):
        if step in step_s:
            parts += [
                select(name.label("name"), *(table[used] for used in USED)).where(*chosen, table.step_s == step, *_within(table.at, a, b))
                for a, b in spans
            ]
    return await _grouped(conn, parts, after, limit)


async def _of_buckets(conn: AsyncConnection, by: By, wanted: Wanted, span: _Span, after: Any, limit: int) -> list[Any]:
    parts = []
    by_hour = [(span.start, span.end)] if by == "hour" else span.hours()
    for table, spans in ((usage_by_day, [] if by == "hour" else span.days()), (usage_by_hour, by_hour)):
        columns = table.c
        name: ColumnElement[Any]
        if by in ("day", "hour"):
            name = _moment(columns.at, by)
        elif by == "arm":
            name = columns.experiment + JOINT + columns.arm
        else:
            name = columns[GROUPS[by][0]]
        chosen = _filters(table, wanted) + ([columns.arm != ""] if by == "arm" else [])
        parts += [
            select(name.label("name"), *(columns[used] for used in USED)).where(*chosen, *_within(columns.at, a, b)) for a, b in spans
        ]
    return await _grouped(conn, parts, after, limit)


async def _of_many(
    conn: AsyncConnection, by: By, wanted: Wanted, span: _Span, after: Any, limit: int
) -> tuple[list[UsageLine], str | None]:
    """A page of the ids that are there in the days which the span touches, then what they used in its whole days and its hours."""
    names = await _names(conn, by, wanted, span, after, limit + 1)
    following = _encoded(names[limit - 1]) if len(names) > limit else None
    found = {name: [0] * len(USED) for name in names[:limit]}
    for part in span.days() if found else ():
        await _add_days(conn, found, by, wanted, part)
    for part in span.hours():
        await _add_hours(conn, found, GROUPS[by][0], wanted, part)
    return [_line((name, *used), by) for name, used in found.items() if used[0]], following


async def _names(conn: AsyncConnection, by: By, wanted: Wanted, span: _Span, after: Any, limit: int) -> list[str]:
    """The next keys or users: read from an index alone."""
    query: Any = select(usage_of_each.c.name).where(*_of_each(by, wanted, _days_touched(span)))
    if after is not None:
        query = query.where(usage_of_each.c.name > after)
    return list((await conn.execute(query.distinct().order_by(usage_of_each.c.name).limit(limit))).scalars())


async def _add_days(conn: AsyncConnection, found: dict[str, list[int]], by: By, wanted: Wanted, span: tuple[int, int]) -> None:
    names, name = list(found), usage_of_each.c.name
    which = (name >= names[0], name <= names[-1]) if wanted.team_id is None else (name.in_(names),)
    query: Any = select(name, *_sums(usage_of_each.c)).where(*_of_each(by, wanted, span, team_by_index=False), *which).group_by(name)
    for row in (await conn.execute(query)).all():
        found[row[0]] = [int(value) for value in row[1:]]


def _of_each(by: By, wanted: Wanted, span: tuple[int, int], *, team_by_index: bool = True) -> list[ColumnElement[bool]]:
    """The rows of one kind in these days."""
    table = usage_of_each.c
    chosen = [table.kind == kind_name("model" if wanted.model else "", by), table.scope == wanted.model, *_within(table.at, *span)]
    if wanted.team_id is not None:
        # `+ ""`: SQLite is to read each name's days where they stand side by side, and not one by one through the team's index
        chosen.append((table.team_id if team_by_index else table.team_id + "") == wanted.team_id)
    return chosen


def _days_touched(span: _Span) -> tuple[int, int]:
    return span.start // DAY_S * DAY_S, -(-span.end // DAY_S) * DAY_S


async def _add_hours(conn: AsyncConnection, found: dict[str, list[int]], column: str, wanted: Wanted, span: tuple[int, int]) -> None:
    names, table = list(found), usage_by_hour
    for start in range(0, len(names), _CHUNK):
        who = table.c[column]
        chosen = (who.in_(names[start : start + _CHUNK]), *_within(table.c.at, *span), *_filters(table, wanted))
        query: Any = select(who, *_sums(table.c))
        rows: Iterable[Any] = (await conn.execute(query.where(*chosen).group_by(who))).all()
        for row in rows:
            found[row[0]] = [have + int(more) for have, more in zip(found[row[0]], row[1:], strict=True)]


async def _grouped(conn: AsyncConnection, parts: Sequence[Any], after: Any, limit: int) -> list[Any]:
    """At most one line more than the page holds."""
    if not parts:
        return []
    united: Any = union_all(*parts) if len(parts) > 1 else parts[0]
    inner = united.subquery()
    query: Any = select(inner.c.name, *_sums(inner.c))
    query = query.group_by(inner.c.name).order_by(inner.c.name).limit(limit + 1)
    if after is not None:
        query = query.where(inner.c.name > after)
    return list((await conn.execute(query)).all())


def _scope(wanted: Wanted) -> tuple[str, str]:
    """The scope of the sums to read, and its name."""
    if wanted.model and wanted.team_id is not None:
        return "team+model", joined((wanted.team_id, wanted.model))
    if wanted.model:
        return "model", wanted.model
    return ("", "") if wanted.team_id is None else ("team", wanted.team_id)


def _filters(table: Table, wanted: Wanted) -> list[ColumnElement[bool]]:
    given = {"key_id": wanted.key_id, "user_id": wanted.user_id, "model": wanted.model, "team_id": wanted.team_id or ""}
    return [table.c[name] == value for name, value in given.items() if value]


def _within(at: Any, start: int, end: int) -> list[ColumnElement[bool]]:
    return [at >= start, at < end]


def _moment(at: ColumnElement[Any], by: str) -> ColumnElement[Any]:
    return at - at % DAY_S if by == "day" else at


def _sums(columns: Any) -> list[ColumnElement[Any]]:
    return [func.sum(columns[name]) for name in USED]


def _cost(row: Sequence[Any]) -> int:
    return int(row[-2]) * SPLIT + int(row[-1])


def _line(row: Any, by: By) -> UsageLine:
    name, experiment = str(row[0]), None
    if by == "day":
        name = datetime.fromtimestamp(int(row[0]), UTC).strftime("%Y-%m-%d")
    elif by == "hour":
        name = datetime.fromtimestamp(int(row[0]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    elif by == "version":
        name = str(int(row[0]))
    elif by == "arm":
        experiment, name = _arm(name)
    requests, prompt, completion, cached, reasoning = (int(value) for value in row[1:6])
    return UsageLine(name, requests, prompt, completion, _cost(row), experiment, cached, reasoning)


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
        for start in range(0, len(ids), _CHUNK):
            rows: Iterable[Any] = (await conn.execute(_used_query(of, ids[start : start + _CHUNK], int(since_s)))).all()
            for row in rows:
                found[row[0]] = Used(_cost(row), int(row[2]) + int(row[3]))
    return found


def _used_query(of: str, ids: Sequence[str], since_s: int) -> Any:
    who: ColumnElement[Any]
    if of in MANY:
        each = usage_of_each.c
        who, at, columns = each.name, each.at, each
        chosen: Iterable[ColumnElement[bool]] = (each.kind == kind_name("", of), each.scope == "")
    else:
        totals = usage_totals.c
        who, at, columns = totals.scope, totals.at, totals
        chosen = (totals.step_s == DAY_S, totals.kind == kind_name(of, "all"))
    query: Any = select(who, *_sums(columns))
    return query.where(*chosen, who.in_(ids), at >= since_s // DAY_S * DAY_S).group_by(who)
