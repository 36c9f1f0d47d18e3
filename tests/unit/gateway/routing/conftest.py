"""Targets that nothing is ever sent to, and what a policy is told about a request."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.base import Exchange
from gateway.routing.policies import Affinity
from gateway.routing.table import Target


class Nowhere:
    """A backend that is never opened."""

    ready = True
    asks_usage = True

    def open(self) -> Exchange:
        raise AssertionError("policies open nothing")

    async def close(self) -> None:
        return


class Load:
    """A request: in-flight counts by target id, and what it says by each kind of affinity."""

    def __init__(self, says: dict[str, bytes] | None = None, **counts: int) -> None:
        self.says = {"key": b"key-1"} if says is None else says
        self.counts = counts

    def in_flight(self, target: Target) -> int:
        return self.counts.get(target.id, 0)

    def affinity(self, by: Affinity) -> bytes | None:
        return self.says.get(str(by))


class NoRng:
    def random(self) -> float:
        raise AssertionError("no draw is needed")


def user(number: int) -> Load:
    """The request of one end user, all with the same key."""
    return Load({"key": b"key-1", "user": b"user-%d" % number})


def targets(*weights: int, priorities: Sequence[int] = ()) -> tuple[Target, ...]:
    """t0, t1 ... with these weights."""
    levels = priorities or [0] * len(weights)
    return tuple(
        Target(f"t{n}", "custom", "m", weight, Nowhere(), priority=level)
        for n, (weight, level) in enumerate(zip(weights, levels, strict=True))
    )


def ids(order: tuple[Target, ...]) -> tuple[str, ...]:
    return tuple(target.id for target in order)


def assert_within_three_sigma(seen: int, draws: int, p: float, label: object) -> None:
    sigma = math.sqrt(draws * p * (1 - p))
    assert abs(seen - draws * p) <= 3 * sigma + 1e-9, f"{label}: {seen} of {draws}, expected {draws * p:.1f} +- {sigma:.1f}"
