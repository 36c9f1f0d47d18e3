"""From a model's entry in the document to the policy that orders its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.policies import POLICIES, Canary, Experiment, Sticky
from gateway.routing.policies.affinity import affinity_of
from gateway.routing.policies.experiment import Arm
from gateway.routing.policies.priority import by_priority

if TYPE_CHECKING:
    from gateway.routing.document import ModelEntry
    from gateway.routing.policies import Policy
    from gateway.routing.table import Target
    from gateway.routing.traffic import StickyEntry


def policy_of(model: ModelEntry, targets: tuple[Target, ...]) -> Policy:
    """The policy of this model over these targets (some may have been left out). `model` has passed every check."""
    if model.policy == "canary" and model.canary is not None:
        canary = model.canary
        return Canary(targets, frozenset(canary.backends), canary.percent, affinity_of(canary.by), model.id)
    if model.policy == "experiment" and model.experiment is not None:
        experiment = model.experiment
        arms = tuple(Arm(name, arm.weight, frozenset(arm.backends)) for name, arm in experiment.arms.items())
        return Experiment(targets, experiment.name, arms, affinity_of(experiment.by))
    if model.policy == "sticky" and model.sticky is not None:
        sticky = model.sticky
        return by_priority(targets, lambda group: _sticky(sticky, group))
    return by_priority(targets, POLICIES[model.policy])


def _sticky(entry: StickyEntry, targets: tuple[Target, ...]) -> Sticky:
    return Sticky(targets, affinity_of(entry.by, entry.prefix_bytes), entry.load_factor)
