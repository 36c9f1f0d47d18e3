"""A weighted draw without replacement.

Built once per route, so that the usual order is looked up and not computed: up to five live targets every possible order and its exact
probability are known beforehand, and a draw is one random number and one bisection.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate, permutations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext, Rng
    from gateway.routing.table import Target

_TABULATED_TARGETS = 5  # 5! = 120 orders; beyond that a table costs more to build than it saves


class Weighted:
    """Share of first choices = share of weight."""

    __slots__ = ("_plan", "_targets")

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self._targets = targets
        self._plan = _Plan(targets)

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        plan = self._plan
        if targets is not self._targets and targets != self._targets:
            plan = _Plan(targets, tabulate=False)
        orders = plan.orders
        if len(orders) == 1:
            return orders[0]
        if orders:
            return orders[bisect_right(plan.bounds, rng.random())]
        return _draw(plan.live, rng)


class _Plan:
    """Every order of the live targets and the upper bounds of their cumulative probabilities; no orders when there are too many."""

    __slots__ = ("bounds", "live", "orders")

    def __init__(self, targets: tuple[Target, ...], *, tabulate: bool = True) -> None:
        self.live = tuple(target for target in targets if target.weight > 0)
        self.orders: tuple[tuple[Target, ...], ...] = ()
        self.bounds: tuple[float, ...] = ()
        if len(self.live) < 2:
            self.orders = (self.live,)
        elif tabulate and len(self.live) <= _TABULATED_TARGETS:
            self.orders = tuple(permutations(self.live))
            # the last bound is left out: a rounding error there must not lead past the end
            self.bounds = tuple(accumulate(map(_chance, self.orders)))[:-1]


def _chance(order: tuple[Target, ...]) -> float:
    """Probability of this order when targets are drawn one after another by weight."""
    left = sum(target.weight for target in order)
    chance = 1.0
    for target in order:
        chance *= target.weight / left
        left -= target.weight
    return chance


def _draw(live: tuple[Target, ...], rng: Rng) -> tuple[Target, ...]:
    """Weighted draw without replacement: whose exponential clock (rate = weight) rings first comes first."""
    clocks = [(exponential(target.weight, rng), position) for position, target in enumerate(live)]
    clocks.sort()
    return tuple(live[position] for _, position in clocks)


def exponential(rate: int, rng: Rng) -> float:
    """Time until a clock of this rate rings: of several, each rings first with its share of the rates."""
    return -math.log(1.0 - rng.random()) / rate  # 1 - u is never zero
