"""The least busy target first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.policies.weighted import exponential

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext, Rng
    from gateway.routing.table import Target


class LeastInFlight:
    """The target with the fewest running requests per weight first; a weighted draw decides between equals."""

    __slots__ = ()

    def __init__(self, targets: tuple[Target, ...]) -> None:
        del targets  # nothing to prepare: the order depends on the moment

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        live = [target for target in targets if target.weight > 0]
        if len(live) < 2:
            return tuple(live)
        # +1: what the load would be with this request on it, so that an idle heavy target is preferred to an idle light one
        ranked = [((context.in_flight(target) + 1) / target.weight, exponential(target.weight, rng), target) for target in live]
        ranked.sort(key=lambda item: item[:2])
        return tuple(target for _, _, target in ranked)
