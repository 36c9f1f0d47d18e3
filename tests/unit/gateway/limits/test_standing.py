"""Reading how budgets stand, as another process of the host does."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.limits.base import Refusal
from gateway.limits.levels import Levels
from gateway.limits.shared import SharedLimiter
from gateway.limits.standing import PassedSoft, Standing, passed_soft, standing

NOON_S = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
MIDNIGHT_S = NOON_S + 12 * 3600
LIMITS = Limits(budget=Budget(1000), token_budget=TokenBudget(200, "day"), soft=80)


def test_what_another_process_counts_is_read_by_id(tmp_path: Path) -> None:
    limiter = SharedLimiter(Levels(tmp_path / "levels"), clock=lambda: NOON_S)
    watcher = Levels(tmp_path / "levels")
    assert standing(watcher, "team:t", NOON_S) is None
    callers = (Limited("k", Limits(rpm=5)), Limited("team:t", LIMITS))
    permit = limiter.reserve(callers, 20, 300)
    assert not isinstance(permit, Refusal)
    assert standing(watcher, "team:t", NOON_S) == Standing(1, 0, 300, None, 0, 20, MIDNIGHT_S)
    permit.settle(170, 799)
    found = standing(watcher, "team:t", NOON_S)
    assert found == Standing(0, 799, 0, None, 170, 0, MIDNIGHT_S)
    assert passed_soft("team:t", LIMITS, found) == [PassedSoft("team:t", "token_budget", 170, 200, "day", MIDNIGHT_S)]
    assert passed_soft("team:t", LIMITS, found)[0].percent == 85
    assert passed_soft("team:t", Limits(budget=Budget(1000)), found) == []
    tomorrow = standing(watcher, "team:t", MIDNIGHT_S)
    assert tomorrow == Standing(0, 799, 0, None, 0, 0, None)
    assert passed_soft("team:t", LIMITS, tomorrow) == []
    watcher.close()
    limiter.close()


def test_both_budgets_and_those_that_are_nothing() -> None:
    found = Standing(0, 1000, 0, None, 160, 0, None)
    kinds = [(passed.kind, passed.percent, passed.window_end_s) for passed in passed_soft("k", LIMITS, found)]
    assert kinds == [("budget", 100, None), ("token_budget", 80, None)]
    assert passed_soft("k", Limits(budget=Budget(0), soft=80), found) == []
