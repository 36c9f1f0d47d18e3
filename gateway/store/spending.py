"""What keys, users, teams and models have spent of a budget in its running window, as the books said when it was last read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Limits
from gateway.limits.budget import window_start
from gateway.store import usage

Spent = tuple[int, int]
"""(1e-12 USD, tokens)."""


class Spending:
    """Read before a limiter opens an account, never on a request. `wall`: Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._known: dict[tuple[str, str | None], tuple[float, Spent]] = {}  # (limit id, window) -> (its start, what was spent)

    async def read(self, conn: AsyncConnection, limits: Mapping[str, Limits]) -> None:
        """Read again what these (by limit id) have spent, those of them that have budgets."""
        now_s = self._wall()
        wanted: dict[tuple[str, str | None], float] = {}
        for limit_id, of in limits.items():
            for budget in (of.budget, of.token_budget):
                if budget is not None:
                    wanted[limit_id, budget.window] = window_start(budget.window, now_s)
        for window in {window for _, window in wanted}:
            starts = {limit_id: start_s for (limit_id, of), start_s in wanted.items() if of == window}
            spent = await _spent(conn, starts)
            self._known |= {(limit_id, window): (start_s, spent.get(limit_id, (0, 0))) for limit_id, start_s in starts.items()}

    def spent(self, limit_id: str, window: str | None) -> Spent:
        """(0, 0) where it is not known, or was read in a window that is over."""
        known = self._known.get((limit_id, window))
        return known[1] if known is not None and known[0] == window_start(window, self._wall()) else (0, 0)


async def _spent(conn: AsyncConnection, starts: Mapping[str, float]) -> dict[str, Spent]:
    keys = {i: start_s for i, start_s in starts.items() if ":" not in i}
    people = {i.removeprefix("user:"): start_s for i, start_s in starts.items() if i.startswith("user:")}
    found = {i: (pusd, 0) for i, pusd in (await usage.spent_since(conn, keys)).items()}
    return found | {f"user:{i}": (pusd, 0) for i, pusd in (await usage.spent_by_logins_since(conn, people)).items()}
