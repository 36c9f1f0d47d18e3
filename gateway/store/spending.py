"""What keys, and users with their login tokens, have spent of a budget in its running window, as the books said when it was last read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Budget
from gateway.limits.budget import window_start
from gateway.store import usage
from gateway.store.users import is_user_id


class Spending:
    """Read before a limiter opens an account, never on a request. `wall`: Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._known: dict[str, tuple[str | None, float, int]] = {}  # limit id -> (window, its start, pusd)

    async def read(self, conn: AsyncConnection, budgets: Mapping[str, Budget]) -> None:
        """Read again what these keys and users (by limit id) have spent."""
        if not budgets:
            return
        now_s = self._wall()
        starts = {limit_id: window_start(budget.window, now_s) for limit_id, budget in budgets.items()}
        spent = await usage.spent_since(conn, {i: start for i, start in starts.items() if not is_user_id(i)})
        spent |= await usage.spent_by_logins_since(conn, {i: start for i, start in starts.items() if is_user_id(i)})
        self._known |= {i: (budget.window, starts[i], spent.get(i, 0)) for i, budget in budgets.items()}

    def spent_pusd(self, limit_id: str, window: str | None) -> int:
        """0 where it is not known, or was read in a window that is over."""
        known = self._known.get(limit_id)
        return known[2] if known is not None and known[:2] == (window, window_start(window, self._wall())) else 0
