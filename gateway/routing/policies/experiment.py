"""An experiment: every user belongs to one arm for as long as it runs, and every usage record says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.routing.policies.affinity import Affinity, identity
from gateway.routing.policies.hashing import clock, digest, salted
from gateway.routing.policies.parts import Parts
from gateway.routing.policies.priority import by_priority
from gateway.routing.policies.weighted import Weighted

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext, Rng
    from gateway.routing.table import Target


@dataclass(frozen=True, slots=True)
class Arm:
    """`weight`: its share of the users. `backends`: ids."""

    name: str
    weight: int
    backends: frozenset[str]


class Experiment:
    """Users are dealt to the arms by a hash salted with the experiment's name: two experiments divide them independently.

    When a weight changes, only users move that the arms must exchange. The failover tail of an arm: the targets of no arm, then
    those of the others; a record's arm is the one assigned, its backend the one that served. An arm all of whose targets are drained
    is dealt nobody.
    """

    __slots__ = ("_arms", "_by", "_parts", "name")

    def __init__(self, targets: tuple[Target, ...], name: str, arms: tuple[Arm, ...], by: Affinity) -> None:
        self.name = name
        self._by = by
        number_of = {backend: number for number, arm in enumerate(arms, 1) for backend in arm.backends}
        part_of = [number_of.get(target.id, 0) for target in targets]  # 0: of no arm
        self._parts = Parts(targets, part_of, len(arms) + 1, lambda part: by_priority(part, Weighted))
        dealt = [(number, arm) for number, arm in enumerate(arms, 1) if arm.weight > 0]
        live = [(number, arm) for number, arm in dealt if self._parts.live(number)] or dealt
        self._arms = [(number, arm.name, arm.weight, digest(arm.name.encode())) for number, arm in live]

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        return self._parts.order(self._assigned(context)[0], targets, context, rng)

    def arm(self, context: PolicyContext) -> str:
        """The name of the arm that this user belongs to."""
        return self._assigned(context)[1]

    def _assigned(self, context: PolicyContext) -> tuple[int, str]:
        hashed = salted(self.name, identity(context, self._by))
        ranked = [(clock(hashed, seed, weight), number, name) for number, name, weight, seed in self._arms]
        _, number, name = min(ranked)
        return number, name
