"""Canary and experiment: the right share, the same user always on the same side, and a failover tail."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.policies import Affinity, Canary, Experiment
from gateway.routing.policies.experiment import Arm
from gateway.routing.table import Target

from .conftest import Load, NoRng, assert_within_three_sigma, ids, targets, user

BY_USER = Affinity("user")
RNG = random.Random(5)


def canary(all_targets: tuple[Target, ...], percent: float, *backends: str, salt: str = "chat") -> Canary:
    return Canary(all_targets, frozenset(backends), percent, BY_USER, salt)


def experiment(all_targets: tuple[Target, ...], name: str = "summer", **arms: tuple[int, set[str]]) -> Experiment:
    dealt = tuple(Arm(arm, weight, frozenset(backends)) for arm, (weight, backends) in arms.items())
    return Experiment(all_targets, name, dealt, BY_USER)


def halves(all_targets: tuple[Target, ...], name: str = "summer") -> Experiment:
    return experiment(all_targets, name, control=(1, {"t0"}), candidate=(1, {"t1"}))


# canary


@pytest.mark.parametrize("percent", [0, 0.5, 5, 50, 100])
def test_a_canary_gets_its_percent_of_the_users(percent: float) -> None:
    all_targets = targets(1, 1)
    policy = canary(all_targets, percent, "t1")
    seen = Counter(policy.order(all_targets, user(n), RNG)[0].id for n in range(10_000))
    assert_within_three_sigma(seen["t1"], 10_000, percent / 100, "canary")


@given(low=st.floats(0, 100), high=st.floats(0, 100), users=st.lists(st.integers(0, 10**6), max_size=50))
@settings(max_examples=100, deadline=None)
def test_raising_the_percent_only_adds_users(low: float, high: float, users: list[int]) -> None:
    low, high = min(low, high), max(low, high)
    all_targets = targets(1, 1)
    before, after = canary(all_targets, low, "t1"), canary(all_targets, high, "t1")
    for n in users:
        assert not (before.arm(user(n)) == "canary" and after.arm(user(n)) == "stable")


@given(n=st.integers(0, 10**6), percent=st.floats(0, 100), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_user_is_always_on_the_same_side_and_the_other_is_the_tail(n: int, percent: float, seed: int) -> None:
    all_targets = targets(1, 2, 1, 0)
    policy, rng = canary(all_targets, percent, "t1", "t3"), random.Random(seed)
    side, other = ({"t1"}, {"t0", "t2"}) if policy.arm(user(n)) == "canary" else ({"t0", "t2"}, {"t1"})
    for _ in range(3):
        order = ids(policy.order(all_targets, user(n), rng))
        assert set(order[: len(side)]) == side
        assert set(order[len(side) :]) == other


def test_within_a_side_it_goes_by_weight() -> None:
    all_targets = targets(3, 1, 1)
    policy, rng = canary(all_targets, 0, "t2"), random.Random(1)
    heads = sum(policy.order(all_targets, user(1), rng)[0].id == "t0" for _ in range(4000))
    assert_within_three_sigma(heads, 4000, 0.75, "t0")


def test_two_models_have_canary_users_of_their_own() -> None:
    all_targets = targets(1, 1)
    one, two = canary(all_targets, 20, "t1"), canary(all_targets, 20, "t1", salt="embed")
    both = sum(one.arm(user(n)) == two.arm(user(n)) == "canary" for n in range(10_000))
    assert_within_three_sigma(both, 10_000, 0.04, "in both")


def test_a_drained_side_has_no_users_and_a_resting_one_keeps_its_own() -> None:
    drained = targets(1, 0)
    assert {canary(drained, 100, "t1").arm(user(n)) for n in range(50)} == {"stable"}
    assert ids(canary(drained, 100, "t1").order(drained, user(1), NoRng())) == ("t0",)
    promoted = targets(0, 1)
    assert {canary(promoted, 5, "t1").arm(user(n)) for n in range(50)} == {"canary"}
    both = targets(1, 1)
    policy = canary(both, 100, "t1")
    assert policy.arm(user(1)) == "canary"
    assert ids(policy.order(both[:1], user(1), NoRng())) == ("t0",)


# experiment


def test_arms_get_their_share_of_the_users() -> None:
    all_targets = targets(1, 1, 1)
    policy = experiment(all_targets, a=(5, {"t0"}), b=(3, {"t1"}), c=(2, {"t2"}))
    seen = Counter(policy.arm(user(n)) for n in range(10_000))
    for arm, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert_within_three_sigma(seen[arm], 10_000, share, arm)


@given(n=st.integers(0, 10**6), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_an_arm_is_served_by_its_own_targets_then_by_those_of_none(n: int, seed: int) -> None:
    all_targets = targets(1, 1, 1, 1, 0)  # t3 and t4 belong to no arm
    policy, rng = experiment(all_targets, control=(1, {"t0"}), candidate=(2, {"t1", "t2"})), random.Random(seed)
    own, others = ({"t0"}, {"t1", "t2"}) if policy.arm(user(n)) == "control" else ({"t1", "t2"}, {"t0"})
    order = ids(policy.order(all_targets, user(n), rng))
    assert set(order[: len(own)]) == own
    assert order[len(own)] == "t3"
    assert set(order[len(own) + 1 :]) == others
    assert policy.arm(user(n)) == policy.arm(Load({"key": b"another", "user": b"user-%d" % n}))


def test_experiments_divide_users_independently() -> None:
    all_targets = targets(1, 1)
    one, two = halves(all_targets), halves(all_targets, "winter")
    same = sum(one.arm(user(n)) == two.arm(user(n)) for n in range(10_000))
    assert_within_three_sigma(same, 10_000, 0.5, "same arm in both")


def test_of_a_changed_weight_only_the_exchanged_users_notice() -> None:
    all_targets = targets(1, 1)
    before, after = halves(all_targets), experiment(all_targets, control=(1, {"t0"}), candidate=(3, {"t1"}))
    moves = Counter((before.arm(user(n)), after.arm(user(n))) for n in range(4000))
    assert moves["candidate", "control"] == 0
    assert_within_three_sigma(moves["control", "candidate"], 4000, 0.25, "moved")


def test_an_arm_without_weight_or_live_targets_has_no_users() -> None:
    all_targets = targets(1, 0, 1)
    policy = experiment(all_targets, a=(1, {"t0"}), b=(1, {"t1"}), c=(0, {"t2"}))
    assert {policy.arm(user(n)) for n in range(50)} == {"a"}
    nobody = targets(0, 0)
    assert halves(nobody).order(nobody, user(1), NoRng()) == ()
    assert halves(nobody).arm(user(1)) in ("control", "candidate")


def test_names_are_what_records_show() -> None:
    all_targets = targets(1, 1)
    assert canary(all_targets, 5, "t1").name == "canary"
    assert halves(all_targets).name == "summer"
