"""Priority groups: lower numbers first, the policy inside each, and no price where they are not used."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.choice import policy_of
from gateway.routing.policies import LeastInFlight, Policy, Sticky, Weighted
from gateway.routing.policies.priority import by_priority
from gateway.routing.reading import parse_document
from gateway.routing.table import Target

from .conftest import Load, NoRng, assert_within_three_sigma, ids, targets, user


def policy_for(all_targets: tuple[Target, ...], **fields: Any) -> Policy:
    backends = [{"type": "echo", "id": target.id} for target in all_targets] or [{"type": "echo"}]  # which was left out
    return policy_of(parse_document({"models": [{"id": "chat", "backends": backends, **fields}]}).models[0], all_targets)


@given(
    groups=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=7),
    keep=st.integers(0, 127),
    make=st.sampled_from([Weighted, LeastInFlight, Sticky]),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_lower_numbers_come_first_and_everyone_once(groups: list[tuple[int, int]], keep: int, make: Any, seed: int) -> None:
    all_targets = targets(*(weight for weight, _ in groups), priorities=[level for _, level in groups])
    policy = by_priority(all_targets, make)
    for given_now in (all_targets, tuple(t for n, t in enumerate(all_targets) if keep >> n & 1)):
        order = policy.order(given_now, Load(t0=3, t2=1), random.Random(seed))
        assert [t.priority for t in order] == sorted(t.priority for t in order)
        assert sorted(ids(order)) == sorted(t.id for t in given_now if t.weight)


def test_inside_a_group_the_policy_decides() -> None:
    all_targets = targets(3, 1, 1, priorities=[1, 1, 0])
    policy, rng = by_priority(all_targets, Weighted), random.Random(1)
    orders = [ids(policy.order(all_targets, Load(), rng)) for _ in range(4000)]
    assert {order[0] for order in orders} == {"t2"}
    assert_within_three_sigma(sum(order[1] == "t0" for order in orders), 4000, 0.75, "t0 leads the second group")


def test_a_group_that_rests_hands_over_to_the_next() -> None:
    all_targets = targets(1, 1, 1, priorities=[0, 1, 2])
    policy = by_priority(all_targets, Weighted)
    assert ids(policy.order(all_targets, Load(), NoRng())) == ("t0", "t1", "t2")
    assert ids(policy.order(all_targets[1:], Load(), NoRng())) == ("t1", "t2")


def test_without_groups_the_policy_stands_alone() -> None:
    plain = targets(3, 1, 0, priorities=[0, 0, 7])  # a drained one makes no group
    assert type(policy_for(plain)) is Weighted
    assert type(policy_for(plain, policy="least-in-flight")) is LeastInFlight
    assert type(policy_for(plain, policy="sticky")) is Sticky
    assert policy_for(()).order((), Load(), NoRng()) == ()


def test_a_side_of_a_canary_has_groups_of_its_own() -> None:
    """A stable user fails over to the stable spare before anything new."""
    all_targets = targets(1, 1, 1, priorities=[0, 0, 1])
    policy = policy_for(all_targets, policy="canary", canary={"backends": ["t1"], "percent": 0})
    assert ids(policy.order(all_targets, user(1), NoRng())) == ("t0", "t2", "t1")


def test_sticky_keeps_its_settings_in_every_group() -> None:
    all_targets = targets(1, 1, 1, 1, priorities=[0, 0, 1, 1])
    policy = policy_for(all_targets, policy="sticky", sticky={"by": "user", "loadFactor": 100})
    orders = {ids(policy.order(all_targets, Load({"user": b"%d" % n}, t0=50), NoRng()))[0] for n in range(40)}
    assert orders == {"t0", "t1"}  # a factor of 100 lets t0 be as full as it likes
