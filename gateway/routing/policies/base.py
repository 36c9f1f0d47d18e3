"""What a policy is, and what it may know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.routing.policies.affinity import Affinity
    from gateway.routing.table import Target


class Rng(Protocol):
    """`random.Random` is one."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class PolicyContext(Protocol):
    """What a policy may know about this request and this moment. Nothing of it is computed unless a policy asks."""

    def in_flight(self, target: Target) -> int:
        """Requests running on this target at this moment, as far as this process knows."""

    def affinity(self, by: Affinity) -> bytes | None:
        """What identifies the request by this measure; None where the request does not say."""


class Policy(Protocol):
    """Orders targets. `targets` is the route's own tuple, or a part of it when some are resting."""

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        """Live targets (weight above zero), each once, first choice first; empty when there is none."""


class Arms(Protocol):
    """A policy that divides the users of a route, and can say which part a request belongs to."""

    name: str

    def arm(self, context: PolicyContext) -> str:
        """The arm that this request is assigned to, whoever serves it in the end."""
