"""Prices brought in as a table: one new revision of the live document, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.changes.actor import Actor, change
from gateway.changes.revisions import go_live
from gateway.errors import Conflict
from gateway.routing.document import RevisionDocument
from gateway.routing.price_list import PriceLine, lines_of, with_prices
from gateway.routing.reading import check_document
from gateway.store import revisions
from gateway.store.engine import Connection, Database
from gateway.store.generation import Generation
from gateway.store.revisions import Revision


@dataclass(frozen=True, slots=True)
class PricePlan:
    """What an import would change. `changes`: (price, what stands there now) of each that is new or other; `live`: the id it is for."""

    live: int
    document: RevisionDocument
    changes: tuple[tuple[PriceLine, PriceLine | None], ...]
    unchanged: int


async def plan_prices(conn: Connection, lines: Sequence[PriceLine]) -> PricePlan:
    """Raises `PricesInvalid` with the first lines that do not fit the live document, `Conflict` where that cannot be changed."""
    live = await revisions.live_revision(conn)
    if live is None:
        raise Conflict("There is no revision yet, so there is nothing that could have a price.")
    return await asyncio.to_thread(_planned, live, lines)  # a big table takes seconds, and the loop also relays


def _planned(live: Revision, lines: Sequence[PriceLine]) -> PricePlan:
    document, faults = check_document(live.document)
    if document is None:
        raise Conflict(f"Revision {live.id} would be refused today, so it must be mended first: {'; '.join(map(str, faults))}.")
    priced = with_prices(document, lines)
    _, faults = check_document(priced.as_dict())
    if faults:
        raise Conflict(f"The prices do not fit the live revision: {'; '.join(map(str, faults))}.")
    known = {(line.of, line.from_): line for line in lines_of(document)}
    pairs = [(line, known.get((line.of, line.from_))) for line in lines]
    changes = tuple((line, was) for line, was in pairs if was is None or was.cells() != line.cells())
    return PricePlan(live.id, priced, changes, len(lines) - len(changes))


async def import_prices(
    db: Database, generation: Generation, actor: Actor, lines: Sequence[PriceLine], note: str = ""
) -> tuple[PricePlan, Revision | None]:
    """Make a revision with these prices live. None: all of them are in force already, nothing was written."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        plan = await plan_prices(step.conn, lines)
        if not plan.changes:
            return plan, None
        revision = await revisions.append(
            step.conn,
            plan.document.as_dict(),
            author=actor.label,
            note=note or import_note(plan),
            parent_id=plan.live,
            file_digest=None,
            now_s=step.now_s,
        )
        await go_live(step, "apply", revision, plan.live)
        return plan, revision


def import_note(plan: PricePlan) -> str:
    """How many, in words."""
    count, models = len(plan.changes), len({line.model for line, _ in plan.changes})
    return f"{count} price{'s' * (count != 1)} of {models} model{'s' * (models != 1)} imported"
