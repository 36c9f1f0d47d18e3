"""Priority groups: the lowest number first; those behind it are tried when it fails or has nobody left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.policies.parts import MakePolicy, Parts

if TYPE_CHECKING:
    from gateway.routing.policies.base import Policy, PolicyContext, Rng
    from gateway.routing.table import Target


class Prioritized:
    """One policy per group."""

    __slots__ = ("_groups",)

    def __init__(self, targets: tuple[Target, ...], make: MakePolicy) -> None:
        levels = sorted({target.priority for target in targets})
        self._groups = Parts(targets, [levels.index(target.priority) for target in targets], len(levels), make)

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        return self._groups.order(0, targets, context, rng)


def by_priority(targets: tuple[Target, ...], make: MakePolicy) -> Policy:
    """The policy itself where all live targets are of one priority: that costs nothing."""
    if len({target.priority for target in targets if target.weight > 0}) < 2:
        return make(targets)
    return Prioritized(targets, make)
