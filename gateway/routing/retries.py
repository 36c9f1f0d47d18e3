"""Retry budgets: how often a route may try again, as a share of its requests, so that retries cannot storm.

Each request puts `ratio` of a token in, each retry takes one out. A reserve lets a quiet route retry at all: it is there at the start and
comes back at one token a second. So over any time of t seconds from the start: retries <= reserve + ratio x requests + t.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

RATIO: Final = 0.2
RESERVE: Final = 10.0
REFILL_PER_S: Final = 1.0
_CAP: Final = 10.0  # x reserve: what a long good time may save up


class RetryBudget:
    """Of one route in one process. A ratio of 0 means no retry ever.

    `ratio` may be changed when a new revision says so. Time is passed in: seconds of one monotonic clock.
    """

    __slots__ = ("_cap", "_refilled_at_s", "_reserve", "_tokens", "ratio")

    def __init__(self, ratio: float = RATIO, reserve: float = RESERVE) -> None:
        self.ratio = ratio
        self._reserve = reserve
        self._cap = reserve * _CAP
        self._tokens = reserve
        self._refilled_at_s = 0.0

    @property
    def tokens(self) -> float:
        """What is left. For people and tests."""
        return self._tokens

    def deposit(self) -> None:
        """A request was admitted."""
        if self._tokens < self._cap:
            self._tokens += self.ratio

    def withdraw(self, now_s: float) -> bool:
        """May there be a retry now? True has taken it."""
        if self.ratio <= 0:
            return False
        if self._refilled_at_s and self._tokens < self._reserve:
            passed_s = max(0.0, now_s - self._refilled_at_s)
            self._tokens = min(self._reserve, self._tokens + passed_s * REFILL_PER_S)
        self._refilled_at_s = max(self._refilled_at_s, now_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class RetryBudgets:
    """The budgets of one process by route id. They live over revisions: a new one must not hand out the reserve again."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, RetryBudget] = {}

    def of(self, route_id: str, ratio: float = RATIO) -> RetryBudget:
        """The budget of a route, with this ratio from now on."""
        budget = self._known.get(route_id)
        if budget is None:
            budget = self._known[route_id] = RetryBudget(ratio)
        budget.ratio = ratio
        return budget

    def retire(self, wanted: Collection[str]) -> None:
        """Forget all but the routes of the table in force."""
        for route_id in [route_id for route_id in self._known if route_id not in wanted]:
            del self._known[route_id]
