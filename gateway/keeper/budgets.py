"""Telling of budgets: one event for each that passes its soft limit or is spent, to a webhook, once in a window.

Looked at is who has spent since the last look, as the books say, and who was changed; everybody at the start and every hour. A server
process notes whom it has refused because of a budget (`budget_events.stopped`): that a budget is spent is told then too, for what is left
of it may be less than any request reserves.

What is told is written down first, so that no restart tells it again and none is lost; a keeper that dies while it sends leaves it to the
next, which sends it again: at least once. Who receives it knows a repetition by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

import structlog

from auth.principal import Limits
from gateway.limits.budget import format_usd
from gateway.routing.stored import read_stored
from gateway.routing.table import model_limits
from gateway.store import budget_events, changelog, revisions
from gateway.store.budget_events import SPENT, TOKEN_BUDGET, Due, Event, budgets_of, dumped, passed, with_budgets
from gateway.store.engine import Connection, Database
from gateway.store.rollups import HOUR_S
from gateway.store.spending import spent_in_windows

logger = structlog.get_logger(__name__)

BACK_S = 2 * HOUR_S  # a request counts for the hour that it began in, and may take one
EVERYONE_S = 3600.0
REST = 9  # times as long as it has looked: where there is much to look at, a tenth of the time goes there
KEPT_S = 86_400.0  # behind the end of a window
SETTLE_S = 2.0  # what a server has noted is told when the books hold what led to it
CLAIM_S = 60.0  # longer than an attempt takes
FIRST_WAIT_S, LONGEST_WAIT_S, GIVE_UP_S = 1.0, 300.0, 7 * 86_400.0
_AT_ONCE = 20
_CHUNK = 500
_KNOWN = 100_000


class Sends(Protocol):
    """`gateway.keeper.webhook.Webhook`."""

    async def send(self, event_id: str, body: str) -> str: ...


class BudgetWatch:
    """`look` is called every second or two. `wall`: Unix seconds. `rest`: how many times as long as it has looked it rests."""

    def __init__(self, db: Database, webhook: Sends, wall: Callable[[], float] = time.time, rest: float = REST) -> None:
        self._db = db
        self._webhook = webhook
        self._wall = wall
        self._rest = rest
        self._shipped: tuple[Any, ...] = ()
        self._applied = -1
        self._everyone_at = 0.0
        self._rests_until_s = 0.0
        self._models: dict[str, Limits] = {}  # those of the live revision, by limit id
        self._known: set[tuple[str, str, str, float, int]] = set()  # those that are certainly written down

    async def look(self) -> None:
        """Write down what is to be told, and tell what is due. Raises `StoreUnavailable`."""
        began_s = time.monotonic()
        if began_s >= self._rests_until_s:
            await self._note()
            ended_s = time.monotonic()
            self._rests_until_s = ended_s + (ended_s - began_s) * self._rest
        await self._send()

    async def _note(self) -> None:
        now_s = self._wall()
        async with self._db.read() as conn:
            applied, shipped = await changelog.latest(conn), await budget_events.shipped(conn)
            who = await self._who(conn, applied, shipped, now_s)
            found = await _to_tell(conn, await self._limits(conn, who), now_s) if who is None or who else []
        new = [(event, body) for event, body in found if event.key not in self._known]
        if new:
            async with self._db.write() as conn:
                await budget_events.put(conn, new, now_s)
            if len(self._known) > _KNOWN:
                self._known.clear()
            self._known.update(event.key for event, _ in new)
        if who is None:
            self._everyone_at = now_s
            async with self._db.write() as conn:
                await budget_events.purge(conn, now_s - KEPT_S)
        self._applied, self._shipped = applied, shipped

    async def _who(self, conn: Connection, applied: int, shipped: tuple[Any, ...], now_s: float) -> set[str] | None:
        """The limit ids to look at; None: all."""
        if self._applied < 0 or applied < self._applied or now_s >= self._everyone_at + EVERYONE_S or now_s < self._everyone_at:
            return None
        who: set[str] = set()
        if applied != self._applied:
            heads = {"key": "", "user": "user:", "team": "team:"}
            entries = await changelog.after(conn, self._applied)
            who |= {heads[entry.kind] + entry.entity_id for entry in entries if entry.kind in heads}
            if any(entry.kind == "revision" for entry in entries):
                self._models = await _of_models(conn)
                who |= self._models.keys()
        if shipped != self._shipped:
            who |= await budget_events.spenders(conn, (now_s - BACK_S) // HOUR_S * HOUR_S)
        return who

    async def _limits(self, conn: Connection, who: set[str] | None) -> dict[str, Limits]:
        """Of those of them that have budgets, by limit id."""
        if who is None:
            self._models = await _of_models(conn)
        models = {limit_id: limits for limit_id, limits in self._models.items() if who is None or limit_id in who}
        return await with_budgets(conn, who) | models

    async def _send(self) -> None:
        now_s = self._wall()
        async with self._db.read() as conn:
            waiting = [one for one in await budget_events.due(conn, now_s, _AT_ONCE) if one.body or one.created_at + SETTLE_S <= now_s]
        await asyncio.gather(*(self._tell(one) for one in waiting))

    async def _tell(self, one: Due) -> None:
        event, now_s = one.event, self._wall()
        body = one.body
        if not body:
            async with self._db.read() as conn:
                limits = (await self._limits(conn, {event.limit_id})).get(event.limit_id)
                body = "" if limits is None else await _body_of(conn, event, limits, now_s)
        async with self._db.write() as conn:
            if not body:  # the budget is another one by now, or gone
                await budget_events.finish(conn, event)
                return
            if not await budget_events.claim(conn, one, body, now_s + CLAIM_S):
                return
        why_not = await self._webhook.send(event_id(event), body)
        async with self._db.write() as conn:
            if not why_not:
                await budget_events.finish(conn, event)
            elif now_s > one.created_at + GIVE_UP_S:
                logger.error("an event of a budget was given up", limit=event.limit_id, type=event.type, reason=why_not)
                await budget_events.finish(conn, event)
            else:
                if not one.attempts:
                    logger.warning("an event of a budget could not be sent; it is tried again", type=event.type, reason=why_not)
                await budget_events.retry(conn, event, self._wall() + _wait_s(one.attempts))


def event_id(event: Event) -> str:
    """The same in every attempt, and of no other event."""
    return "evt_" + hashlib.sha256(repr(event.key).encode()).hexdigest()[:24]


async def _of_models(conn: Connection) -> dict[str, Limits]:
    revision = await revisions.live_revision(conn)
    return {} if revision is None else model_limits(read_stored(revision.document).document)


async def _to_tell(conn: Connection, limits: dict[str, Limits], now_s: float) -> list[tuple[Event, str]]:
    found: list[tuple[Event, str]] = []
    for some in _chunks(limits):
        spent = await spent_in_windows(conn, some, now_s)
        for limit_id, of in some.items():
            events = passed(limit_id, of, spent, now_s)
            found += [(event, _body(event, of, spent, now_s)) for event in events]
    return found


async def _body_of(conn: Connection, event: Event, limits: Limits, now_s: float) -> str:
    """Of an event that a server has noted; "" where its budget is another one by now, or its window is over."""
    now = [budget_events.stopped(event.limit_id, kind, limits, now_s) for kind, _, _ in budgets_of(limits)]
    if event not in now:
        return ""
    return _body(event, limits, await spent_in_windows(conn, {event.limit_id: limits}, now_s), now_s)


def _body(event: Event, limits: Limits, spent: dict[tuple[str, str | None], tuple[int, int]], now_s: float) -> str:
    in_tokens = event.kind == TOKEN_BUDGET
    window, amount = next((budget.window, amount) for kind, budget, amount in budgets_of(limits) if kind == event.kind)
    used = spent[event.limit_id, window][in_tokens]
    whose, _, name = event.limit_id.partition(":") if ":" in event.limit_id else ("key", "", event.limit_id)
    return dumped({
        "type": event.type,
        "event": event_id(event),
        "whose": whose,
        "id": name,
        "unit": "tokens" if in_tokens else "usd",
        "spent": used if in_tokens else format_usd(used),
        "amount": amount if in_tokens else format_usd(amount),
        "soft": limits.soft if event.type != SPENT else None,
        "window": window,
        "since": _moment(event.since_s) if event.since_s else None,
        "resets_at": _moment(event.until_s) if event.until_s is not None else None,
        "at": _moment(now_s),
    })  # fmt: skip


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(round(at_s, 3), UTC).isoformat().replace("+00:00", "Z")


def _wait_s(attempts: int) -> float:
    """Twice as long each time, and not all at once."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempts, 20)) * random.uniform(0.8, 1.2)  # noqa: S311  # spreads, hides nothing


def _chunks(limits: dict[str, Limits]) -> Iterable[dict[str, Limits]]:
    rest = iter(limits.items())
    while some := dict(islice(rest, _CHUNK)):
        yield some
