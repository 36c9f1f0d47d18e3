from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.errors import Unavailable
from gateway.limits.base import FREE, Permit, Refusal
from gateway.limits.shared import Levels, SharedLimiter
from tests.levels import own_levels, own_limiter


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def k(limits: Limits) -> tuple[Limited, ...]:
    return (Limited("k", limits),)


def admitted(decision: Permit | Refusal) -> Permit:
    assert not isinstance(decision, Refusal), decision
    return decision


def refused(decision: Permit | Refusal) -> Refusal:
    assert isinstance(decision, Refusal)
    return decision


def fields(headers: bytes) -> dict[str, str]:
    return dict(line.split(": ") for line in headers.decode().split("\r\n") if line)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=60))
def test_no_interval_ever_sees_more_than_the_law_allows(rpm: int, gaps: list[float]) -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    times: list[float] = []
    for gap in gaps:
        clock.now_s += gap
        decisions = [limiter.reserve(k(Limits(rpm=rpm)), 1, 0) for _ in range(3)]
        times += [clock.now_s for decision in decisions if not isinstance(decision, Refusal)]
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= rpm + rpm * (times[last] - times[first]) / 60 + 1e-6


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(10, 500), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 300)), min_size=1, max_size=40))
def test_the_law_holds_for_tokens(tpm: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    taken: list[tuple[float, int]] = []
    for gap, tokens in steps:
        clock.now_s += gap
        decision = limiter.reserve(k(Limits(tpm=tpm)), tokens, 0)
        if not isinstance(decision, Refusal):
            taken.append((clock.now_s, tokens))
            decision.settle(tokens, 0)
        elif not decision.final:
            assert decision.retry_after_s is not None
            assert decision.retry_after_s > 0
        else:
            assert tokens > tpm
    for first in range(len(taken)):
        total = 0
        for at, tokens in taken[first:]:
            total += tokens
            assert total <= tpm + tpm * (at - taken[first][0]) / 60 + 1e-6


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(["reserve", "settle", "wait"]), st.integers(0, 120), st.integers(0, 150)), max_size=60),
    st.integers(1, 5),
)
def test_nothing_is_lost_and_nothing_passes_its_bound(steps: list[tuple[str, int, int]], concurrency: int) -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    limits = Limits(rpm=30, tpm=300, concurrency=concurrency, budget=Budget(5000))
    running: list[tuple[Permit, int]] = []
    spent = 0
    for what, number, used in steps:
        if what == "wait":
            clock.now_s += number
        elif what == "settle" and running:
            permit, reserved = running.pop(number % len(running))
            permit.settle(used, min(used, reserved))
            permit.settle(used, used)  # counts once
            spent += min(used, reserved)
        elif what == "reserve":
            decision = limiter.reserve(k(limits), number, number)
            if not isinstance(decision, Refusal):
                running.append((decision, number))
        assert len(running) <= concurrency
        assert spent + sum(reserved for _, reserved in running) <= 5000
        if "k" in limiter._accounts:
            state = limiter._levels.state(limiter._accounts["k"].number)
            assert (state[0], state[2]) == (len(running), spent)
            assert state[8] <= 300


def test_an_unlimited_caller_has_no_account() -> None:
    limiter = own_limiter()
    assert limiter.reserve(k(Limits()), 10**9, 10**9) is FREE
    assert limiter.headers(k(Limits())) == b""
    assert not limiter._accounts


def test_requests_come_back_with_time() -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    limits = Limits(rpm=2)
    for _ in range(2):
        admitted(limiter.reserve(k(limits), 0, 0))
    refusal = refused(limiter.reserve(k(limits), 0, 0))
    assert (refusal.kind, refusal.final, refusal.retry_after_s) == ("requests", False, 30)
    assert fields(refusal.headers)["x-ratelimit-remaining-requests"] == "0"
    clock.now_s += 29.9
    refused(limiter.reserve(k(limits), 0, 0))
    clock.now_s += 0.2
    admitted(limiter.reserve(k(limits), 0, 0))


def test_what_was_used_above_the_reservation_is_owed() -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    limits = Limits(tpm=60)
    admitted(limiter.reserve(k(limits), 50, 0)).settle(120, 0)
    refusal = refused(limiter.reserve(k(limits), 10, 0))
    assert (refusal.kind, refusal.retry_after_s) == ("tokens", 70)
    clock.now_s += 69.9
    refused(limiter.reserve(k(limits), 10, 0))
    clock.now_s += 0.2
    admitted(limiter.reserve(k(limits), 10, 0))


def test_what_was_not_used_comes_back_at_once() -> None:
    limiter = own_limiter(clock=Clock())
    for _ in range(100):
        admitted(limiter.reserve(k(Limits(tpm=60)), 60, 0)).settle(0, 0)


def test_a_request_larger_than_the_bucket_is_final() -> None:
    refusal = refused(own_limiter(clock=Clock()).reserve(k(Limits(tpm=60)), 61, 0))
    assert (refusal.kind, refusal.final, refusal.retry_after_s) == ("tokens", True, None)


@pytest.mark.parametrize("limits", [Limits(rpm=0), Limits(tpm=0), Limits(concurrency=0), Limits(budget=Budget(0))])
def test_zero_is_a_limit(limits: Limits) -> None:
    refused(own_limiter(clock=Clock()).reserve(k(limits), 1, 1))


def test_debts_under_a_limit_lowered_to_zero() -> None:
    limiter = own_limiter(clock=Clock())
    admitted(limiter.reserve(k(Limits(tpm=60)), 60, 0)).settle(100, 0)
    refused(limiter.reserve(k(Limits(tpm=0)), 0, 0))


def test_refusals_take_nothing() -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    limits = Limits(rpm=5, tpm=100, concurrency=1, budget=Budget(100))
    permit = admitted(limiter.reserve(k(limits), 10, 10))
    before = limiter.headers(k(limits))
    for _ in range(20):
        assert refused(limiter.reserve(k(limits), 10, 10)).kind == "concurrency"
        assert refused(limiter.reserve(k(limits), 10, 91)).kind == "budget"
    assert limiter.headers(k(limits)) == before
    permit.settle(10, 10)
    admitted(limiter.reserve(k(limits), 10, 90))


def test_changed_limits() -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    for _ in range(10):
        admitted(limiter.reserve(k(Limits(rpm=10)), 0, 0))
    for _ in range(5):
        admitted(limiter.reserve(k(Limits(rpm=15)), 0, 0))  # the difference, and no more
    refused(limiter.reserve(k(Limits(rpm=15)), 0, 0))
    refused(limiter.reserve(k(Limits(rpm=1)), 0, 0))
    clock.now_s += 60
    admitted(limiter.reserve(k(Limits(rpm=1)), 0, 0))
    refused(limiter.reserve(k(Limits(rpm=1)), 0, 0))
    admitted(limiter.reserve(k(Limits()), 0, 0))


def test_a_budget_and_its_windows() -> None:
    wall = Clock(datetime(2026, 3, 1, 23, 59, tzinfo=UTC).timestamp())
    asked: list[tuple[str, str | None]] = []

    def spent(limit_id: str, window: str | None) -> tuple[int, int]:
        asked.append((limit_id, window))
        return 40, 0

    limiter = own_limiter(spent, clock=wall)
    limits = Limits(budget=Budget(100, "day"))
    permit = admitted(limiter.reserve(k(limits), 0, 60))
    refusal = refused(limiter.reserve(k(limits), 0, 1))
    assert (refusal.kind, refusal.retry_after_s) == ("budget", 60)
    permit.settle(0, 75)  # above its bound: booked
    refused(limiter.reserve(k(limits), 0, 0))
    wall.now_s += 60
    admitted(limiter.reserve(k(limits), 0, 100)).settle(0, 100)
    refused(limiter.reserve(k(limits), 0, 1))
    assert asked == [("k", "day")], "the ledger is asked once"
    other = replace(limits, budget=Budget(100))
    assert refused(limiter.reserve(k(other), 0, 61)).retry_after_s is None
    assert asked == [("k", "day"), ("k", None)]


def test_headers_say_what_is_left() -> None:
    clock = Clock()
    limiter = own_limiter(clock=clock)
    limits = Limits(rpm=60, tpm=6000)
    assert fields(admitted(limiter.reserve(k(limits), 100, 0)).headers) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5900",
        "x-ratelimit-reset-tokens": "1s",
    }
    clock.now_s += 0.5
    assert fields(limiter.headers(k(limits)))["x-ratelimit-reset-tokens"] == "500ms"


class FullLevels:
    """Of a host that can count no more."""

    def __init__(self) -> None:
        self._own = own_levels()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def open(self, account_id: bytes, now_s: float, /) -> int:
        raise MemoryError


def test_a_host_that_can_count_no_more_says_so_and_can_still_answer() -> None:
    limiter = SharedLimiter(cast("Levels", FullLevels()))
    with pytest.raises(Unavailable):
        limiter.reserve(k(Limits(rpm=1)), 0, 0)
    assert limiter.headers(k(Limits(rpm=1))) == b"", "the refusal itself asks for them"


def test_a_budget_whose_window_changes_while_both_end_together() -> None:
    wall = Clock(datetime(2026, 3, 31, 12, tzinfo=UTC).timestamp())
    spent = {"day": (10, 0), "month": (90, 0)}
    limiter = own_limiter(lambda _, window: spent[window or ""], clock=wall)
    admitted(limiter.reserve(k(Limits(budget=Budget(100, "day"))), 0, 50)).settle(0, 0)
    refused(limiter.reserve(k(Limits(budget=Budget(100, "month"))), 0, 50))
    admitted(limiter.reserve(k(Limits(budget=Budget(100, "month"))), 0, 10))


def test_two_processes_share_a_window_though_one_is_late() -> None:
    levels = own_levels()
    midnight_s = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
    clocks = (Clock(midnight_s - 60), Clock(midnight_s - 60))
    first, second = (SharedLimiter(levels, lambda _, window: (40, 0), clock) for clock in clocks)
    limits = Limits(budget=Budget(100, "day"))
    admitted(first.reserve(k(limits), 0, 60)).settle(0, 60)
    clocks[0].now_s = midnight_s + 1
    admitted(first.reserve(k(limits), 0, 100)).settle(0, 100)
    refused(second.reserve(k(limits), 0, 1))  # it meets this caller for the first time, by a clock it read a moment ago
    clocks[1].now_s = midnight_s + 1
    refused(second.reserve(k(limits), 0, 1))
    refused(first.reserve(k(limits), 0, 1))


def test_old_limits_from_a_process_that_is_behind_hold_until_another_puts_its_own_again() -> None:
    levels = own_levels()
    wall = Clock(datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp())
    ahead, behind = (SharedLimiter(levels, lambda _, window: ({"day": 4, "month": 40}[window or ""], 0), wall) for _ in range(2))
    new, old = Limits(rpm=10, budget=Budget(100, "month")), Limits(rpm=100, budget=Budget(1000, "day"))
    admitted(ahead.reserve(k(new), 0, 10)).settle(0, 10)
    admitted(behind.reserve(k(old), 0, 900)).settle(0, 0)  # it meets this caller for the first time
    assert fields(ahead.headers(k(new)))["x-ratelimit-limit-requests"] == "100"
    ahead.put_again("k", new)
    ahead.put_again("nobody", new)
    assert [fields(one.headers(k(limits)))["x-ratelimit-limit-requests"] for one, limits in ((ahead, new), (behind, old))] == ["10", "10"]
    assert refused(behind.reserve(k(old), 0, 61)).kind == "budget"
    admitted(behind.reserve(k(old), 0, 60))
    assert "nobody" not in ahead.known()


def test_the_two_budgets_have_windows_of_their_own() -> None:
    wall = Clock(datetime(2026, 3, 1, 23, 59, tzinfo=UTC).timestamp())  # a Sunday
    limiter = own_limiter(lambda _, window: {"day": (0, 30), "month": (40, 0)}[window or ""], clock=wall)
    limits = Limits(budget=Budget(100, "month"), token_budget=TokenBudget(100, "day"))
    assert refused(limiter.reserve(k(limits), 71, 0)).kind == "token_budget"
    admitted(limiter.reserve(k(limits), 70, 60)).settle(70, 60)
    found = limiter.standing("k")
    assert found is not None
    assert (found.spent_pusd, found.spent_tokens, found.running) == (100, 100, 0)
    wall.now_s += 61
    refusal = refused(limiter.reserve(k(limits), 100, 1))
    assert (refusal.kind, refusal.whose, refusal.final) == ("budget", "key", True)
    assert refusal.retry_after_s == 30 * 86_400 - 1
    admitted(limiter.reserve(k(limits), 100, 0)).settle(100, 0)
    assert refused(limiter.reserve(k(limits), 1, 0)).kind == "token_budget"


def test_a_budget_taken_away_and_given_back_in_its_window() -> None:
    ledger = [40]
    limiter = own_limiter(lambda _id, _window: (ledger[0], 0), clock=Clock())
    mine = Limited("k", Limits(budget=Budget(100, "day")))
    admitted(limiter.reserve((mine,), 0, 60)).settle(0, 10)
    mine.limits = Limits()
    admitted(limiter.reserve((mine,), 0, 10**6)).settle(0, 30)
    mine.limits = Limits(budget=Budget(100, "day"))
    refused(limiter.reserve((mine,), 0, 21))
    ledger[0] = 95  # what another process, that knew of no limits, let through meanwhile
    mine.limits = Limits(rpm=1)
    limiter.headers((mine,))
    mine.limits = Limits(budget=Budget(100, "day"))
    refused(limiter.reserve((mine,), 0, 6))
    admitted(limiter.reserve((mine,), 0, 5))


ALL = (
    Limited("k", Limits(rpm=10, tpm=1000, concurrency=9)),
    Limited("user:u", Limits(rpm=9, budget=Budget(1000), soft=50)),
    Limited("team:t", Limits(rpd=100, token_budget=TokenBudget(500, "day"))),
    Limited("model:m", Limits(tpd=400)),
)


def test_a_request_is_counted_under_all_of_its_callers() -> None:
    limiter = own_limiter(clock=Clock())
    permit = admitted(limiter.reserve(ALL, 100, 600))
    assert fields(permit.headers)["x-ratelimit-limit-requests"] == "9"
    assert fields(permit.headers)["x-ratelimit-limit-tokens"] == "400"
    assert limiter.running() == {"k": (1, 600), "user:u": (1, 600), "team:t": (1, 600), "model:m": (1, 600)}
    permit.settle(100, 600)
    assert fields(limiter.headers(ALL))["x-budget-warning"] == "user 60%"
    refusal = refused(limiter.reserve(ALL, 0, 401))
    assert (refusal.kind, refusal.whose, refusal.retry_after_s) == ("budget", "user", None)
    refusal = refused(limiter.reserve(ALL, 401, 0))
    assert (refusal.kind, refusal.whose, refusal.final) == ("tokens_day", "model", True)
    refusal = refused(limiter.reserve(ALL, 301, 0))
    assert (refusal.kind, refusal.whose, refusal.final) == ("tokens_day", "model", False)
    assert limiter.running() == {}


def test_another_key_of_the_same_user_has_what_the_first_left() -> None:
    limiter = own_limiter(clock=Clock())
    user = Limited("user:u", Limits(rpm=3, concurrency=2))
    one, other = (Limited("k1", Limits(rpm=2)), user), (Limited("k2", Limits()), user)
    permits = [admitted(limiter.reserve(one, 0, 0)) for _ in range(2)]
    assert refused(limiter.reserve(one, 0, 0)).whose == "key"
    assert (refused(limiter.reserve(other, 0, 0)).kind, refused(limiter.reserve(other, 0, 0)).whose) == ("concurrency", "user")
    permits[0].settle(0, 0)
    admitted(limiter.reserve(other, 0, 0)).settle(0, 0)
    assert (refused(limiter.reserve(other, 0, 0)).kind, refused(limiter.reserve(other, 0, 0)).whose) == ("requests", "user")
    user.limits = Limits(rpm=4, concurrency=2)
    admitted(limiter.reserve(other, 0, 0)).settle(0, 0)
    refused(limiter.reserve(other, 0, 0))
