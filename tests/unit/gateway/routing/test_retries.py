"""Retries are a share of the requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.retries import RetryBudget, RetryBudgets


def drain(budget: RetryBudget, now_s: float) -> int:
    count = 0
    while budget.withdraw(now_s):
        count += 1
    return count


def test_the_reserve_is_there_from_the_start_and_comes_back_slowly() -> None:
    budget = RetryBudget()
    assert drain(budget, 100) == 10
    assert drain(budget, 100.9) == 0
    assert drain(budget, 103) == 3
    assert drain(budget, 10_000) == 10


def test_requests_pay_for_retries() -> None:
    budget = RetryBudget(ratio=0.2)
    drain(budget, 1)
    for _ in range(20):
        budget.deposit()
    assert drain(budget, 1) in (3, 4)  # 20 x 0.2 in floats


def test_a_long_good_time_saves_up_no_storm() -> None:
    budget = RetryBudget(ratio=0.5)
    for _ in range(100_000):
        budget.deposit()
    assert drain(budget, 1) <= 101


def test_a_ratio_of_zero_is_no_retry_at_all() -> None:
    assert drain(RetryBudget(ratio=0), 1) == 0


@given(
    ratio=st.floats(0, 1),
    events=st.lists(st.tuples(st.sampled_from(["request", "request", "retry", "wait"]), st.floats(0, 5)), max_size=300),
)
def test_never_more_than_reserve_and_share_and_refill(ratio: float, events: list[tuple[str, float]]) -> None:
    budget, now_s, requests, retries = RetryBudget(ratio), 50.0, 0, 0
    for event, seconds in events:
        if event == "request":
            budget.deposit()
            requests += 1
        elif event == "wait":
            now_s += seconds
        else:
            retries += budget.withdraw(now_s)
        assert retries <= 10 + ratio * requests + (now_s - 50) + 1e-6


def test_budgets_live_over_revisions() -> None:
    budgets = RetryBudgets()
    budget = budgets.of("chat", 0.2)
    drain(budget, 1)
    assert budgets.of("chat", 0.5) is budget
    assert budget.ratio == pytest.approx(0.5)
    assert budget.tokens < 1
    assert budgets.of("other") is not budget
    budgets.retire({"other"})
    assert budgets.of("chat") is not budget
