"""How a limited caller stands: what its levels say, for people and for those who watch budgets. Any process of the host may ask:

    levels = Levels(run_dir / f"levels-{FORM}")      # gateway.limits.levels; the keeper does
    found = standing(levels, limit_id, time.time())
    for passed in passed_soft(limit_id, limits, found): ...

A budget that has passed its soft limit is told of once if what was told of is remembered by (`limit_id`, `kind`, `window_end_s`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

from auth.principal import Limits


class ReadableLevels(Protocol):
    """`gateway.limits.levels.Levels`, as far as it is read."""

    def find(self, account_id: bytes, /) -> int | None: ...

    def state(self, number: int, /) -> tuple[int, int, int, int, int, float, float, float, float, float, float]: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """Requests that run now, and each budget in its running window. Ends: Unix seconds; None: for ever, or there is no such budget.

    What is reserved by requests that run comes back as far as it is not used.
    """

    running: int
    spent_pusd: int
    reserved_pusd: int
    window_end_s: float | None
    spent_tokens: int
    reserved_tokens: int
    tokens_window_end_s: float | None


@dataclass(frozen=True, slots=True)
class PassedSoft:
    """A budget that has passed its soft limit. `kind`: "budget" (pusd) or "token_budget" (tokens), the unit of `spent` and `amount`.

    `window`: day, week, month; None: for ever, and so is its end.
    """

    limit_id: str
    kind: str
    spent: int
    amount: int
    window: str | None
    window_end_s: float | None

    @property
    def percent(self) -> int:
        return self.spent * 100 // self.amount


def account_id(limit_id: str) -> bytes:
    """The name of its account in the levels."""
    return hashlib.sha256(limit_id.encode()).digest()[:16]


def standing(levels: ReadableLevels, limit_id: str, now_s: float) -> Standing | None:
    """None where no process has counted for it since the first one started: then the ledger knows all there is."""
    number = levels.find(account_id(limit_id))
    if number is None:
        return None
    running, reserved_pusd, spent_pusd, reserved_tokens, spent_tokens, end_s, tokens_end_s, *_ = levels.state(number)
    return Standing(
        running,
        spent_pusd if _runs(end_s, now_s) else 0,
        reserved_pusd,
        end_s if now_s < end_s < math.inf else None,
        spent_tokens if _runs(tokens_end_s, now_s) else 0,
        reserved_tokens,
        tokens_end_s if now_s < tokens_end_s < math.inf else None,
    )


def passed_soft(limit_id: str, limits: Limits, found: Standing) -> list[PassedSoft]:
    """Which of its budgets have passed `limits.soft` percent."""
    budgets: list[PassedSoft] = []
    if limits.budget is not None:
        budget = limits.budget
        budgets.append(PassedSoft(limit_id, "budget", found.spent_pusd, budget.amount_pusd, budget.window, found.window_end_s))
    if limits.token_budget is not None:
        in_tokens = limits.token_budget
        end_s = found.tokens_window_end_s
        budgets.append(PassedSoft(limit_id, "token_budget", found.spent_tokens, in_tokens.tokens, in_tokens.window, end_s))
    soft = limits.soft
    return [] if soft is None else [of for of in budgets if of.amount > 0 and of.spent * 100 >= of.amount * soft]


def _runs(end_s: float, now_s: float) -> bool:
    """A window that is over is begun anew by the next request."""
    return end_s > now_s
