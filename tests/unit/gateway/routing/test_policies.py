"""Policies: right frequencies, complete orders, drained targets never, and fast."""

from __future__ import annotations

import itertools
import math
import random
import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.policies import POLICIES, LeastInFlight, Weighted
from gateway.routing.table import Target

from .conftest import Load, assert_within_three_sigma, ids, targets


def chance(order: tuple[Target, ...]) -> float:
    left, product = sum(t.weight for t in order), 1.0
    for target in order:
        product *= target.weight / left
        left -= target.weight
    return product


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (5, 3, 2), (7, 1, 0, 2), (4, 3, 2, 1), (1, 2, 3, 4, 5)])
def test_every_order_comes_as_often_as_a_draw_without_replacement_gives_it(weights: tuple[int, ...]) -> None:
    all_targets = targets(*weights)
    policy, rng, draws = Weighted(all_targets), random.Random(7), 20_000
    seen: dict[tuple[str, ...], int] = {}
    for _ in range(draws):
        order = ids(policy.order(all_targets, Load(), rng))
        seen[order] = seen.get(order, 0) + 1
    live = [t for t in all_targets if t.weight]
    chances = {ids(order): chance(order) for order in itertools.permutations(live)}
    assert seen.keys() <= chances.keys()
    # chi-square over all orders at once: many orders make single three-sigma misses likely, their sum is not
    chi2 = sum((seen.get(o, 0) - draws * p) ** 2 / (draws * p) for o, p in chances.items())
    freedom = len(chances) - 1
    assert chi2 <= freedom + 3 * math.sqrt(2 * freedom)
    for first in live:
        heads = sum(n for order, n in seen.items() if order[0] == first.id)
        assert_within_three_sigma(heads, draws, first.weight / sum(weights), first.id)


@pytest.mark.parametrize("count", [6, 9])
def test_many_targets_keep_first_and_second_choice_in_proportion(count: int) -> None:
    all_targets = targets(*range(1, count + 1))
    policy, rng, draws, total = Weighted(all_targets), random.Random(11), 20_000, count * (count + 1) // 2
    heads, seconds = dict.fromkeys(ids(all_targets), 0), dict.fromkeys(ids(all_targets), 0)
    for _ in range(draws):
        order = policy.order(all_targets, Load(), rng)
        assert len(order) == count
        assert len(set(order)) == count
        heads[order[0].id] += 1
        seconds[order[1].id] += 1
    for target in all_targets:
        w = target.weight
        assert_within_three_sigma(heads[target.id], draws, w / total, target.id)
        second = sum(o.weight / total * w / (total - o.weight) for o in all_targets if o is not target)
        assert_within_three_sigma(seconds[target.id], draws, second, target.id)


@given(weights=st.lists(st.integers(0, 50), min_size=0, max_size=8), seed=st.integers(0, 1000), name=st.sampled_from(sorted(POLICIES)))
@settings(max_examples=200, deadline=None)
def test_an_order_is_the_live_targets_each_once(weights: list[int], seed: int, name: str) -> None:
    all_targets = targets(*weights)
    order = POLICIES[name](all_targets).order(all_targets, Load(), random.Random(seed))
    assert sorted(ids(order)) == sorted(t.id for t in all_targets if t.weight > 0)


@given(weights=st.lists(st.integers(0, 9), min_size=2, max_size=7), keep=st.integers(0, 127), seed=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_a_part_of_the_targets_is_ordered_without_the_rest(weights: list[int], keep: int, seed: int) -> None:
    all_targets = targets(*weights)
    part = tuple(t for n, t in enumerate(all_targets) if keep >> n & 1)
    order = Weighted(all_targets).order(part, Load(), random.Random(seed))
    assert sorted(ids(order)) == sorted(t.id for t in part if t.weight > 0)


def test_the_same_seed_gives_the_same_orders() -> None:
    all_targets = targets(3, 1, 2)
    runs = [[ids(Weighted(all_targets).order(all_targets, Load(), random.Random(5))) for _ in range(3)] for _ in range(2)]
    assert runs[0] == runs[1]


def test_one_live_target_needs_no_draw() -> None:
    class NoRng:
        def random(self) -> float:
            raise AssertionError("no draw is needed")

    all_targets = targets(0, 4, 0)
    policy = Weighted(all_targets)
    order = policy.order(all_targets, Load(), NoRng())
    assert ids(order) == ("t1",)
    assert policy.order(all_targets, Load(), NoRng()) is order


def test_the_largest_random_number_stays_inside_the_table() -> None:
    class Top:
        def random(self) -> float:
            return 1 - 2**-53

    for count in range(2, 8):
        all_targets = targets(*([1] * count))
        assert len(Weighted(all_targets).order(all_targets, Load(), Top())) == count


def test_least_in_flight_goes_by_load_per_weight() -> None:
    all_targets = targets(1, 4, 1, 0)
    policy = LeastInFlight(all_targets)
    order = policy.order(all_targets, Load(t0=2, t1=3, t2=0), random.Random(1))
    assert ids(order)[-1] == "t0"  # (2+1)/1 against (3+1)/4 and (0+1)/1
    assert set(ids(order)) == {"t0", "t1", "t2"}
    busy = policy.order(all_targets, Load(t0=0, t1=40, t2=5), random.Random(1))
    assert ids(busy) == ("t0", "t2", "t1")


def test_least_in_flight_breaks_ties_by_weight() -> None:
    all_targets = targets(1, 1)
    policy, rng = LeastInFlight(all_targets), random.Random(3)
    heads = sum(policy.order(all_targets, Load(t0=1, t1=1), rng)[0].id == "t0" for _ in range(4000))
    assert_within_three_sigma(heads, 4000, 0.5, "t0")


def test_two_targets_are_ordered_in_at_most_a_microsecond_and_a_half() -> None:
    all_targets, load, rng = targets(3, 1), Load(), random.Random(1)
    policy = Weighted(all_targets)
    best_s = min(timeit.repeat(lambda: policy.order(all_targets, load, rng), number=20_000, repeat=5)) / 20_000
    assert best_s < 1.5e-6
