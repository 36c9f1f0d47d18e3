"""The same user, session or prompt on the same target, as long as that target is not overloaded.

Weighted rendezvous hashing gives everyone an order of all targets of their own: shares follow the weights, and when a target leaves,
only those who were there move, each to the next of their own order. Bounded loads: a target that would run more than `load_factor` times
its fair share of the requests running now is passed over until it has fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.policies.affinity import BY_KEY, Affinity, identity
from gateway.routing.policies.hashing import clock, digest

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext, Rng
    from gateway.routing.table import Target

DEFAULT_LOAD_FACTOR = 1.25
_ROUNDING = 1e-9  # a bound of 11.000000000000002 is one of 11


class Sticky:
    """Who somebody goes to depends on the ids and weights of the targets alone: it is the same in every process and after a restart."""

    __slots__ = ("_by", "_load_factor", "_seeds")

    def __init__(self, targets: tuple[Target, ...], by: Affinity = BY_KEY, load_factor: float = DEFAULT_LOAD_FACTOR) -> None:
        self._by = by
        self._load_factor = load_factor
        self._seeds = {target.id: digest(target.id.encode()) for target in targets}

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        del rng  # nothing here is left to chance
        live = [target for target in targets if target.weight > 0]
        if len(live) < 2:
            return tuple(live)
        hashed, seeds = digest(identity(context, self._by)), self._seeds
        ranked = [(clock(hashed, seeds[target.id], target.weight), target.id, target) for target in live]
        ranked.sort()  # ids differ, so targets are never compared
        return self._bounded([target for _, _, target in ranked], context)

    def _bounded(self, ranked: list[Target], context: PolicyContext) -> tuple[Target, ...]:
        """Those with room first. There always is one: the bounds add up to at least the load, this request included."""
        running = [context.in_flight(target) for target in ranked]
        allowed_per_weight = self._load_factor * (sum(running) + 1) / sum([target.weight for target in ranked])
        within: list[Target] = []
        full: list[Target] = []
        for target, here in zip(ranked, running, strict=True):
            # as whole numbers: here + 1 <= the bound rounded up
            (within if here < allowed_per_weight * target.weight - _ROUNDING else full).append(target)
        return (*within, *full)
