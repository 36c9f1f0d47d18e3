"""What is told of budgets, each once: that one has passed its soft limit, that one is spent. Kept as long as the window that it is of.

A row without a body is one that a server process has noted, on refusing a request; the keeper says then how much was spent.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Budget, Limits, TokenBudget
from gateway.limits.budget import counts_from, window_end
from gateway.store.limits import NAMES, limits_of
from gateway.store.tables import api_keys, budget_events, ledger_segments, teams, usage_by_hour, users

SOFT, SPENT = "budget.soft", "budget.spent"
BUDGET, TOKEN_BUDGET = "budget", "token_budget"
_E = budget_events.c
_KEY = (_E.limit_id, _E.kind, _E.type, _E.since, _E.threshold)
_CHUNK = 80  # of nine values each; any SQLite takes 999
_IDS = 500


@dataclass(frozen=True, slots=True)
class Event:
    """`kind`: budget (thresholds in 1e-12 USD) or token_budget (tokens). `since_s`: when what counts began; `until_s`: the window's end."""

    limit_id: str
    kind: str
    type: str
    since_s: float
    threshold: int
    until_s: float | None

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        return (self.limit_id, self.kind, self.type, self.since_s, self.threshold)


@dataclass(frozen=True, slots=True)
class Due:
    """One to be sent. `body` "": it has to be written first."""

    event: Event
    body: str
    created_at: float
    attempts: int


def budgets_of(limits: Limits) -> Iterator[tuple[str, Budget | TokenBudget, int]]:
    """(kind, budget, amount) of each that there is."""
    if limits.budget is not None:
        yield BUDGET, limits.budget, limits.budget.amount_pusd
    if limits.token_budget is not None:
        yield TOKEN_BUDGET, limits.token_budget, limits.token_budget.tokens


def passed(limit_id: str, limits: Limits, spent: Mapping[tuple[str, str | None], tuple[int, int]], now_s: float) -> list[Event]:
    """What there is to tell of its budgets. `spent`: of `spending.spent_in_windows`."""
    found = []
    for kind, budget, amount in budgets_of(limits):
        used = spent[limit_id, budget.window][kind == TOKEN_BUDGET]
        thresholds = {SPENT: amount} | ({} if limits.soft is None else {SOFT: -(-amount * limits.soft // 100)})
        since_s, until_s = counts_from(budget.window, now_s, limits.since), window_end(budget.window, now_s)
        found += [Event(limit_id, kind, what, since_s, at, until_s) for what, at in thresholds.items() if used >= at and used]
    return found


def stopped(limit_id: str, kind: str, limits: Limits, now_s: float) -> Event | None:
    """A request was refused because of this budget; None: it is there no more."""
    for of, budget, amount in budgets_of(limits):
        if of == kind:
            since_s, until_s = counts_from(budget.window, now_s, limits.since), window_end(budget.window, now_s)
            return Event(limit_id, kind, SPENT, since_s, amount, until_s)
    return None


async def put(conn: AsyncConnection, events: Sequence[tuple[Event, str]], now_s: float) -> None:
    """Events with their bodies ("": to be written), to be sent now. Those that are known already stay as they are."""
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(budget_events)
    rows = [
        {
            "limit_id": event.limit_id, "kind": event.kind, "type": event.type, "since": event.since_s, "threshold": event.threshold,
            "body": body, "created_at": now_s, "forget_at": event.until_s, "next_at": now_s, "attempts": 0,
        }
        for event, body in events
    ]  # fmt: skip
    for start in range(0, len(rows), _CHUNK):
        await conn.execute(statement.values(rows[start : start + _CHUNK]).on_conflict_do_nothing())


async def due(conn: AsyncConnection, now_s: float, limit: int) -> list[Due]:
    """Those whose time has come, oldest first."""
    query = select(*_KEY, _E.forget_at, _E.body, _E.created_at, _E.attempts).where(_E.next_at <= now_s)
    rows = (await conn.execute(query.order_by(_E.next_at).limit(limit))).all()
    return [Due(Event(*row[:6]), *row[6:]) for row in rows]


async def claim(conn: AsyncConnection, one: Due, body: str, until_s: float) -> bool:
    """Nobody else sends it before that time; False: somebody else has it. `body`: what every attempt sends from now on."""
    mine = update(budget_events).where(*_is(one.event), _E.attempts == one.attempts, _E.next_at.is_not(None))
    return bool((await conn.execute(mine.values(next_at=until_s, attempts=one.attempts + 1, body=body))).rowcount)


async def finish(conn: AsyncConnection, event: Event) -> None:
    """It was taken, or is given up."""
    await conn.execute(update(budget_events).where(*_is(event)).values(next_at=None))


async def retry(conn: AsyncConnection, event: Event, at_s: float) -> None:
    await conn.execute(update(budget_events).where(*_is(event)).values(next_at=at_s))


async def purge(conn: AsyncConnection, before_s: float) -> None:
    """Forget those of windows that were over then and that wait for nothing."""
    await conn.execute(delete(budget_events).where(_E.forget_at < before_s, _E.next_at.is_(None)))


async def shipped(conn: AsyncConnection) -> tuple[Any, ...]:
    """Another value when more has come into the books."""
    columns = (func.max(ledger_segments.c.updated_at), func.sum(ledger_segments.c.offset))
    return tuple((await conn.execute(select(*columns))).one())


async def spenders(conn: AsyncConnection, since_s: float) -> set[str]:
    """The limit ids of all keys, users, teams and models with any use in hours that began then or later."""
    hours = usage_by_hour.c
    rows = await conn.execute(select(hours.key_id, hours.user_id, hours.team_id, hours.model).where(hours.at >= since_s).distinct())
    found: set[str] = set()
    for key_id, user_id, team_id, model in rows:
        found.update((key_id, f"user:{user_id}", f"team:{team_id}", f"model:{model}"))
    return found - {"", "user:", "team:"}


async def with_budgets(conn: AsyncConnection, limit_ids: Collection[str] | None = None) -> dict[str, Limits]:
    """The limits of those keys, users and teams (of these, or of all) that have a budget and are in use, by limit id."""
    found: dict[str, Limits] = {}
    for head, table, ended in (("", api_keys, "revoked_at"), ("user:", users, "disabled_at"), ("team:", teams, None)):
        budgets = or_(table.c.budget_pusd.is_not(None), table.c.token_budget.is_not(None))
        query = select(table.c.id, *(table.c[name] for name in NAMES)).where(budgets)
        if ended is not None:
            query = query.where(table.c[ended].is_(None))
        for part in _parts(query, table.c.id, head, limit_ids):
            found |= {head + row[0]: limits_of(*row[1:]) for row in (await conn.execute(part)).all()}
    return found


def dumped(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _parts(query: Select[Any], column: Any, head: str, limit_ids: Collection[str] | None) -> Iterable[Select[Any]]:
    if limit_ids is None:
        return [query]
    ids = sorted(one.removeprefix(head) for one in limit_ids if (one.startswith(head) if head else ":" not in one))
    return [query.where(column.in_(ids[start : start + _IDS])) for start in range(0, len(ids), _IDS)]


def _is(event: Event) -> list[Any]:
    return [column == value for column, value in zip(_KEY, event.key, strict=True)]
