"""Targets in parts: one part leads, the others follow as its failover tail, and a policy of its own orders each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.routing.policies.base import Policy, PolicyContext, Rng
    from gateway.routing.table import Target

MakePolicy = Callable[[tuple["Target", ...]], "Policy"]


class Parts:
    """`part_of`: for each target the number of its part, from 0 on."""

    __slots__ = ("_part_of", "_parts", "_policies", "_targets")

    def __init__(self, targets: tuple[Target, ...], part_of: Sequence[int], count: int, make: MakePolicy) -> None:
        self._targets = targets
        self._part_of = {target.id: part for target, part in zip(targets, part_of, strict=True)}
        self._parts = self._split(targets, count)
        self._policies = [make(part) for part in self._parts]

    def order(self, lead: int, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        """The part `lead`, then the others by number."""
        policies = self._policies
        # the parts' own tuples where nothing is missing: their policies have those orders ready
        parts = self._parts if targets is self._targets or targets == self._targets else self._split(targets, len(policies))
        ordered = list(policies[lead].order(parts[lead], context, rng))
        for number, part in enumerate(parts):
            if number != lead:
                ordered += policies[number].order(part, context, rng)
        return tuple(ordered)

    def live(self, part: int) -> bool:
        """Does anything in this part take requests, when nothing is wrong with it?"""
        return any(target.weight > 0 for target in self._parts[part])

    def _split(self, targets: tuple[Target, ...], count: int) -> list[tuple[Target, ...]]:
        part_of = self._part_of
        return [tuple(target for target in targets if part_of[target.id] == number) for number in range(count)]
