"""A part of the users tries something new; everyone else does not, and nobody changes sides from one request to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.policies.affinity import Affinity, identity
from gateway.routing.policies.hashing import fraction, salted
from gateway.routing.policies.parts import Parts
from gateway.routing.policies.priority import by_priority
from gateway.routing.policies.weighted import Weighted

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext, Rng
    from gateway.routing.table import Target

CANARY, STABLE = "canary", "stable"


class Canary:
    """`percent` of the users on `backends` (ids), the others on the rest; inside a side by priority and weight.

    Everyone has a fixed place on a line from 0 to 100, and those below `percent` are on the new side: raising it only adds users.
    Each side is the other's failover tail. While every target of a side is drained, everyone belongs to the other.
    """

    __slots__ = ("_by", "_salt", "_share", "_sides", "name")

    def __init__(self, targets: tuple[Target, ...], backends: frozenset[str], percent: float, by: Affinity, salt: str) -> None:
        self.name = CANARY
        self._by = by
        self._salt = salt
        self._sides = Parts(targets, [0 if target.id in backends else 1 for target in targets], 2, lambda part: by_priority(part, Weighted))
        self._share = percent / 100
        if not self._sides.live(0):
            self._share = 0.0
        elif not self._sides.live(1):
            self._share = 1.0

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        return self._sides.order(0 if self._chosen(context) else 1, targets, context, rng)

    def arm(self, context: PolicyContext) -> str:
        """`canary` or `stable`."""
        return CANARY if self._chosen(context) else STABLE

    def _chosen(self, context: PolicyContext) -> bool:
        return fraction(salted(self._salt, identity(context, self._by))) < self._share
