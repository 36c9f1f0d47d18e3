"""Sticky: the same one again, shares by weight, minimal movement, and a bound on the load that nobody passes."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.policies import Affinity, Sticky
from gateway.routing.policies.affinity import affinity_of, value_of
from gateway.routing.table import Target

from .conftest import Load, NoRng, assert_within_three_sigma, ids, targets, user

BY_USER = Affinity("user")
weights_of_some = st.lists(st.integers(0, 9), min_size=1, max_size=7)


def firsts(policy: Sticky, all_targets: tuple[Target, ...], users: int) -> list[str]:
    return [policy.order(all_targets, user(n), NoRng())[0].id for n in range(users)]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (5, 3, 2), (4, 0, 1, 1), (1, 2, 3, 4, 5, 6, 7)])
def test_users_spread_by_weight(weights: tuple[int, ...]) -> None:
    all_targets = targets(*weights)
    heads = Counter(firsts(Sticky(all_targets, BY_USER), all_targets, 10_000))
    for target in all_targets:
        assert_within_three_sigma(heads[target.id], 10_000, target.weight / sum(weights), target.id)


def test_who_comes_second_is_spread_by_weight_too() -> None:
    """The users of a target that fails do not all go to one other."""
    all_targets = targets(1, 2, 1)
    policy = Sticky(all_targets, BY_USER)
    orders = [ids(policy.order(all_targets, user(n), NoRng())) for n in range(10_000)]
    of_the_first = [order for order in orders if order[0] == "t0"]
    assert_within_three_sigma(sum(order[1] == "t1" for order in of_the_first), len(of_the_first), 2 / 3, "t1 behind t0")


def test_everyone_stays_through_a_restart_and_in_every_process() -> None:
    """Fixed values: a change of the hash would move every user of every installation."""
    all_targets = targets(1, 1, 1)
    assert firsts(Sticky(all_targets, BY_USER), all_targets, 12) == firsts(Sticky(all_targets[::-1], BY_USER), all_targets[::-1], 12)
    assert "".join(first[1] for first in firsts(Sticky(all_targets, BY_USER), all_targets, 12)) == "202012221120"


@given(weights=weights_of_some, users=st.integers(1, 60), gone=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_when_a_target_leaves_only_its_own_users_move(weights: list[int], users: int, gone: int) -> None:
    all_targets = targets(*weights)
    left = tuple(target for n, target in enumerate(all_targets) if n != gone % len(weights))
    same, built_anew = Sticky(all_targets, BY_USER), Sticky(left, BY_USER)
    for n in range(users):
        before = same.order(all_targets, user(n), NoRng())
        expected = tuple(target for target in before if target in left)
        assert same.order(left, user(n), NoRng()) == expected  # resting
        assert built_anew.order(left, user(n), NoRng()) == expected  # taken out of the document


def test_a_weight_that_grows_only_draws_users_in() -> None:
    light, heavy = targets(1, 1, 1), targets(1, 2, 1)
    before, after = firsts(Sticky(light, BY_USER), light, 3000), firsts(Sticky(heavy, BY_USER), heavy, 3000)
    moved = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert {b for _, b in moved} == {"t1"}
    assert_within_three_sigma(len(moved), 3000, 1 / 2 - 1 / 3, "moved")


@given(weights=weights_of_some, counts=st.lists(st.integers(0, 50), min_size=7, max_size=7), says=st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_an_order_is_the_live_targets_each_once(weights: list[int], counts: list[int], says: bytes) -> None:
    all_targets = targets(*weights)
    load = Load({"key": b"k", "user": says}, **{f"t{n}": count for n, count in enumerate(counts)})
    order = Sticky(all_targets, BY_USER).order(all_targets, load, NoRng())
    assert sorted(ids(order)) == sorted(target.id for target in all_targets if target.weight)


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    factor=st.sampled_from([1.0, 1.1, 1.25, 2.0]),
    seed=st.integers(0, 1000),
    users=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_load_never_passes_its_bound(weights: list[int], factor: float, seed: int, users: int) -> None:
    """Few users, many requests: at each admission the one that takes it is within its bound, rounded up."""
    all_targets = targets(*weights)
    policy, rng = Sticky(all_targets, BY_USER, factor), random.Random(seed)
    load = Load()
    running: list[str] = []
    for _ in range(80):
        if running and rng.random() < 0.3:
            load.counts[running.pop(rng.randrange(len(running)))] -= 1
        load.says = user(rng.randrange(users)).says
        first = policy.order(all_targets, load, rng)[0]
        load.counts[first.id] = load.counts.get(first.id, 0) + 1
        running.append(first.id)
        assert load.counts[first.id] <= math.ceil(factor * len(running) * first.weight / sum(weights) - 1e-9)


def test_a_full_target_is_the_last_resort_and_takes_its_users_back() -> None:
    all_targets = targets(1, 1, 1)
    policy = Sticky(all_targets, BY_USER)
    usual = ids(policy.order(all_targets, user(1), NoRng()))
    full = Load(user(1).says, **{usual[0]: 9})
    assert ids(policy.order(all_targets, full, NoRng())) == (*usual[1:], usual[0])
    busy_all_over = Load(user(1).says, t0=9, t1=9, t2=9)
    assert ids(policy.order(all_targets, busy_all_over, NoRng())) == usual


def test_a_request_that_does_not_say_goes_by_its_key() -> None:
    all_targets = targets(1, 1, 1, 1)
    policy = Sticky(all_targets, BY_USER)
    for key in (b"a", b"b", b"c", b"d", b"e"):
        by_key = Sticky(all_targets).order(all_targets, Load({"key": key}), NoRng())
        assert policy.order(all_targets, Load({"key": key}), NoRng()) == by_key
    assert len(policy.order(all_targets, Load({}), NoRng())) == 4  # not even a key: somewhere all the same


def test_what_a_request_says() -> None:
    headers = [(b"x-session-id", b" s1 "), (b"x-empty", b" "), (b"x-session-id", b"s2")]
    fields = {"user": "José", "prompt": "Once upon a time"}

    def says(text: str, body: dict[str, object] = fields) -> bytes | None:
        return value_of(affinity_of(text, 4), "key-7", body, headers)

    assert says("key") == b"key-7"
    assert says("user") == "José".encode()
    assert (says("user", {}), says("user", {"user": ""}), says("user", {"user": 5})) == (None, None, None)
    assert (says("header:X-Session-ID"), says("header:x-empty"), says("header:x-other")) == (b"s1", None, None)
    assert (says("prefix"), says("prefix", {})) == (b"Once", None)
    assert [str(affinity_of(text)) for text in ("key", "header:X-A")] == ["key", "header:x-a"]


def test_a_choice_among_three_costs_little() -> None:
    import timeit

    all_targets, request, rng = targets(3, 1, 1), user(1), random.Random(1)
    policy = Sticky(all_targets, BY_USER)
    best_s = min(timeit.repeat(lambda: policy.order(all_targets, request, rng), number=2000, repeat=5)) / 2000
    assert best_s < 30e-6
