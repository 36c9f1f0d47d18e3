"""Shadow traffic: a sampled part of the requests is copied to one more target, whose answer no client sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.routing.policies.base import Rng
    from gateway.routing.table import Target


@dataclass(frozen=True, slots=True)
class Shadow:
    """`sample`: share of the requests, 0 to 1. `max_in_flight`: copies running at once in one process; more are not sent."""

    target: Target
    sample: float
    max_in_flight: int = 16

    def wants(self, rng: Rng) -> bool:
        """Is this request one of the sample?"""
        return rng.random() < self.sample
