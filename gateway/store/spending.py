"""What keys, users, teams and models have spent of a budget in its running window, as the books said when it was last read.

A window begins at a UTC midnight, so that whole days are added up; a budget that was set back counts from a moment inside an hour: then the
rest of that hour is read from its rows, and the rest of that day from sums by the hour. A request belongs to the time at which it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Limits
from gateway.limits.budget import counts_from, window_start
from gateway.store import days
from gateway.store.days import DAY_S, day_of, day_table
from gateway.store.rollups import HOUR_S, SPLIT, kind_name
from gateway.store.tables import api_keys, day_of_hour, usage_by_hour, usage_totals
from gateway.store.usage import used_since

Spent = tuple[int, int]
"""(1e-12 USD, tokens)."""
Of = Literal["key", "user", "team", "model"]
_KINDS: tuple[Of, ...] = ("user", "team", "model")
_CHUNK = 100  # at once, of those that were set back; any SQLite takes 999 values
_NOTHING = (0, 0)


class Spending:
    """Read before a limiter opens an account, never on a request. `wall`: Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._known: dict[tuple[str, str | None], tuple[float, Spent]] = {}  # (limit id, window) -> (its start, what was spent)

    async def read(self, conn: AsyncConnection, limits: Mapping[str, Limits]) -> None:
        """Read again what these (by limit id) have spent, those of them that have budgets."""
        now_s = self._wall()
        found = await spent_in_windows(conn, limits, now_s)
        self._known |= {(i, window): (window_start(window, now_s), spent) for (i, window), spent in found.items()}

    def spent(self, limit_id: str, window: str | None) -> Spent:
        """(0, 0) where it is not known, or was read in a window that is over."""
        known = self._known.get((limit_id, window))
        return known[1] if known is not None and known[0] == window_start(window, self._wall()) else _NOTHING


async def spent_in_windows(conn: AsyncConnection, limits: Mapping[str, Limits], now_s: float) -> dict[tuple[str, str | None], Spent]:
    """By (limit id, window), for each window of a budget that these (by limit id) have: what counts of it until now."""
    wanted: dict[str | None, dict[str, float]] = {}
    for limit_id, of in limits.items():
        for budget in (of.budget, of.token_budget):
            if budget is not None:
                wanted.setdefault(budget.window, {})[limit_id] = counts_from(budget.window, now_s, of.since)
    found: dict[tuple[str, str | None], Spent] = {}
    for window, starts in wanted.items():
        spent = await spent_since(conn, starts)
        found |= {(limit_id, window): spent.get(limit_id, _NOTHING) for limit_id in starts}
    return found


async def spent_since(conn: AsyncConnection, starts: Mapping[str, float]) -> dict[str, Spent]:
    """By limit id, since its moment (Unix seconds). Who spent nothing may be absent."""
    by_kind: dict[Of, dict[str, float]] = {}
    for limit_id, since_s in starts.items():
        kind, name = _named(limit_id)
        by_kind.setdefault(kind, {})[name] = since_s
    found: dict[str, Spent] = {}
    for kind, since in by_kind.items():
        head = "" if kind == "key" else f"{kind}:"
        found |= {head + name: spent for name, spent in (await _spent(conn, kind, since)).items()}
    return found


def _named(limit_id: str) -> tuple[Of, str]:
    """What it is the limit of: (kind, id)."""
    for kind in _KINDS:
        if limit_id.startswith(f"{kind}:"):
            return kind, limit_id.partition(":")[2]
    return "key", limit_id


async def _spent(conn: AsyncConnection, kind: Of, since: Mapping[str, float]) -> dict[str, Spent]:
    midnights = {name: -(-at_s // DAY_S) * DAY_S for name, at_s in since.items()}
    found = {name: (used.cost_pusd, used.tokens) for name, used in (await used_since(conn, kind, midnights)).items()}
    inside = [(name, at_s) for name, at_s in since.items() if at_s % DAY_S]
    for start in range(0, len(inside), _CHUNK):
        for name, pusd, tokens in await _rest_of_days(conn, kind, dict(inside[start : start + _CHUNK])):
            before = found.get(name, _NOTHING)
            found[name] = (before[0] + pusd, before[1] + tokens)
    return found


async def _rest_of_days(conn: AsyncConnection, kind: Of, since: Mapping[str, float]) -> list[tuple[str, int, int]]:
    """(name, pusd, tokens), several of a name: of each from its moment to the midnight after it."""
    hours = {name: -int(-at_s // HOUR_S) * HOUR_S for name, at_s in since.items()}
    by_day: dict[int, dict[str, float]] = {}
    for name, at_s in since.items():
        if at_s < hours[name]:
            by_day.setdefault(day_of(at_s), {})[name] = at_s
    there = set(await days.existing(conn)) if by_day else set()
    found: list[tuple[str, int, int]] = []
    for day, moments in by_day.items():
        if day in there:
            rows = (await conn.execute(_of_rows(kind, day, moments, hours))).all()
            found += [(row[0], int(row[1]), int(row[2])) for row in rows]
        else:  # the rows are no more: rather the whole hour than none of it
            hours |= {name: hours[name] - HOUR_S for name in moments}
    rows = (await conn.execute(_of_hours(kind, since, hours))).all()
    return found + [(row[0], int(row[1]) * SPLIT + int(row[2]), int(row[3]) + int(row[4])) for row in rows]


def _of_rows(kind: Of, day: int, moments: Mapping[str, float], hours: Mapping[str, int]) -> Any:
    row = day_table(day).c
    who: ColumnElement[Any] = row.model if kind == "model" else row[f"{kind}_id"]

    def theirs(name: str, at_s: float) -> ColumnElement[bool]:
        chosen = [who == name, row.started_at >= at_s, row.started_at < hours[name]]
        if kind == "user":  # the index is by key: their keys, and no key
            chosen.append(or_(row.key_id.is_(None), row.key_id.in_(select(api_keys.c.id).where(api_keys.c.user_id == name))))
        return and_(*chosen)

    query = select(who, func.sum(row.cost_pusd), func.sum(row.prompt_tokens + row.completion_tokens))
    return query.where(or_(*(theirs(name, at_s) for name, at_s in moments.items()))).group_by(who)


def _of_hours(kind: Of, since: Mapping[str, float], hours: Mapping[str, int]) -> Any:
    who: ColumnElement[Any]
    if kind in ("key", "user"):
        sums = usage_by_hour.c
        who, chosen = sums[f"{kind}_id"], []
    else:
        sums = usage_totals.c
        who, chosen = sums.scope, [sums.step_s == HOUR_S, sums.kind == kind_name(kind, "all")]

    def theirs(name: str, at_s: float) -> ColumnElement[bool]:
        day = day_of(at_s)
        found_by = [day_of_hour() == day] if sums is usage_by_hour.c else []
        return and_(*found_by, who == name, sums.at >= hours[name], sums.at < (day + 1) * DAY_S)

    used = (sums.cost_microusd, sums.cost_rest_pusd, sums.prompt_tokens, sums.completion_tokens)
    return (
        select(who, *(func.sum(column) for column in used))
        .where(*chosen, or_(*(theirs(name, at_s) for name, at_s in since.items())))
        .group_by(who)
    )
