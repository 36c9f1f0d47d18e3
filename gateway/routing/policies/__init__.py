"""In which order a request tries the targets of its route.

The head serves, the tail is the failover plan. Every policy orders the targets whose weight is above zero (zero = drained: never in the
result), each once. Policies are pure and synchronous, and built once per route and revision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.routing.policies.affinity import Affinity
from gateway.routing.policies.base import Arms, Policy, PolicyContext, Rng
from gateway.routing.policies.canary import Canary
from gateway.routing.policies.experiment import Experiment
from gateway.routing.policies.least_in_flight import LeastInFlight
from gateway.routing.policies.shadow import Shadow
from gateway.routing.policies.sticky import Sticky
from gateway.routing.policies.weighted import Weighted

if TYPE_CHECKING:
    from gateway.routing.table import Target

__all__ = [
    "POLICIES",
    "POLICY_NAMES",
    "Affinity",
    "Arms",
    "Canary",
    "Experiment",
    "LeastInFlight",
    "Policy",
    "PolicyContext",
    "Rng",
    "Shadow",
    "Sticky",
    "Weighted",
]

POLICIES: Mapping[str, Callable[[tuple[Target, ...]], Policy]] = MappingProxyType(
    {
        "weighted": Weighted,
        "least-in-flight": LeastInFlight,
        "sticky": Sticky,
    }
)
"""Those that need to know nothing but the targets."""

POLICY_NAMES = (*POLICIES, "canary", "experiment")
"""Every policy that a document may name."""
