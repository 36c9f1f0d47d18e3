"""The breaker, resting, probes' words, and which targets may be tried."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.echo import EchoBackend
from gateway.routing.health import Health, HealthBoard
from gateway.routing.table import BackendSpec, Target


def target(health: Health, weight: int = 1, name: str = "b") -> Target:
    return Target(name, "custom", "m", weight, EchoBackend(), health=health)


def opened(now_s: float = 100.0, board: HealthBoard | None = None) -> Health:
    health = board.of((BackendSpec("custom", f"http://{len(board._known)}"), "m")) if board else Health()
    for _ in range(5):
        health.failed("refused", now_s, 0)
    assert health.state(now_s) == "open"
    return health


class TestBreaker:
    def test_nothing_is_remembered_while_all_is_well(self) -> None:
        health = Health()
        assert not health.marked
        assert health.state(0) == "closed"
        assert health.available(0)
        assert health.since_s(0) is None

    def test_five_failures_in_a_row_open_it_and_four_do_not(self) -> None:
        health = Health()
        for _ in range(4):
            health.failed("reset", 1000, 0)
        assert health.marked
        assert health.available(1000)
        health.succeeded(1000, 0)
        for _ in range(4):
            health.failed("reset", 1001, 0)
        assert health.state(1001) == "closed"
        health.failed("timeout", 1001, 0)
        assert (health.state(1001), health.last_failure, health.failures) == ("open", "timeout", 5)
        assert not health.available(1001)

    def test_five_slow_failures_open_it_too(self) -> None:
        health = Health()
        for minute in range(5):
            health.settle(minute * 60)
            health.failed("refused", minute * 60.0, 0)
        assert health.state(240) == "open"

    def test_failures_long_ago_do_not_count(self) -> None:
        health = Health()
        for _ in range(4):
            health.failed("refused", 10, 0)
        health.settle(309)
        assert health.marked
        health.settle(310)
        assert not health.marked
        health.failed("refused", 311, 0)
        assert (health.state(311), health.failures) == ("closed", 1)

    @pytest.mark.parametrize(("good", "bad", "state"), [(10, 10, "open"), (11, 10, "closed"), (9, 10, "closed"), (30, 30, "open")])
    def test_half_of_twenty_attempts_open_it(self, good: int, bad: int, state: str) -> None:
        """All good ones first but for the failure that begins the window, then never five bad ones in a row."""
        health = Health()
        health.failed("500", 50, 0)
        for _ in range(good - bad // 4):
            health.succeeded(52, 0)
        for n in range(1, bad):
            if n % 4 == 0:
                health.succeeded(54, 0)
            health.failed("500", 54, 0)
        for _ in range(bad // 4 - (bad - 1) // 4):
            health.succeeded(54, 0)
        assert health.state(54) == state

    def test_successes_before_the_window_do_not_dilute(self) -> None:
        health = Health()
        health.failed("500", 0, 0)
        for _ in range(100):
            health.succeeded(1, 0)
        for n in range(9):
            health.failed("500", 35, 0)
            health.succeeded(35, 0)
            assert health.state(35) == "closed", n
        health.failed("500", 36, 0)
        assert health.state(36) == "closed"  # 10 of 19
        health.succeeded(36, 0)
        health.failed("500", 36, 0)
        assert health.state(36) == "open"  # 11 of 21

    def test_a_failure_now_and_then_leaves_it_closed(self) -> None:
        health = Health()
        for second in range(300):
            health.failed("500", second, 0)
            for _ in range(3):
                health.succeeded(second, 0)
        assert health.state(300) == "closed"
        health.succeeded(340, 0)
        assert not health.marked

    def test_it_opens_for_longer_while_trials_fail_and_anew_after_success(self) -> None:
        health, now_s, waits = opened(), 100.0, []
        for _ in range(6):
            waits.append(health.back_at_s(now_s) - now_s)
            now_s = health.back_at_s(now_s)
            assert health.state(now_s) == "half_open"
            health.failed("refused", now_s, health.began(now_s))
        assert waits == [5, 10, 20, 40, 60, 60]
        now_s = health.back_at_s(now_s)
        health.succeeded(now_s, health.began(now_s))
        assert (health.state(now_s), health.marked, health.since_s(now_s)) == ("closed", False, now_s)
        for _ in range(5):
            health.failed("refused", now_s, 0)
        assert health.back_at_s(now_s) - now_s == 5

    def test_the_wait_is_spread_by_a_fifth(self) -> None:
        ends = []
        for drawn in (0.0, 0.999999):
            health = Health(draw=lambda drawn=drawn: drawn)
            for _ in range(5):
                health.failed("refused", 100, 0)
            ends.append(health.back_at_s(100) - 100)
        assert ends == pytest.approx([4, 6], abs=1e-4)

    def test_one_trial_at_a_time_and_a_lost_one_frees_its_place(self) -> None:
        health = opened()
        first = health.began(105)
        assert first
        assert not health.available(105)
        assert health.began(106) == 0
        assert not health.available(164.9)
        assert health.available(165)
        second = health.began(165)
        health.succeeded(166, first)  # the lost one comes back: it is nobody's trial any more
        assert health.state(166) == "half_open"
        health.abandoned(167, first)
        assert not health.available(167)
        health.abandoned(168, second)
        assert health.available(168)

    def test_attempts_from_before_it_opened_move_nothing(self) -> None:
        health = opened()
        until_s = health.back_at_s(101)
        health.succeeded(101, 0)
        health.failed("timeout", 102, 0)
        assert (health.state(102), health.back_at_s(102)) == ("open", until_s)
        trial = health.began(105)
        health.failed("timeout", 106, 0)
        assert health.state(106) == "half_open"
        health.succeeded(106, trial)
        assert health.state(106) == "closed"

    def test_an_early_trial_closes_it_or_begins_the_wait_again(self) -> None:
        health = opened()
        health.failed("refused", 102, health.began(102))
        assert (health.state(102), health.back_at_s(102)) == ("open", 107)
        health.succeeded(103, health.began(103))
        assert health.state(103) == "closed"


class TestResting:
    def test_it_rests_and_comes_back(self) -> None:
        board = HealthBoard()
        health = board.of((BackendSpec("custom"), "m"))
        health.rest(110, 100, 0)
        assert (health.state(109), health.available(109), health.back_at_s(109), health.since_s(109)) == ("resting", False, 110, 100)
        assert (health.state(110), health.available(110), board.troubled) == ("closed", True, 1)
        board.settle(110)
        assert board.troubled == 0

    def test_at_most_five_minutes_and_never_shortened(self) -> None:
        health = Health()
        health.rest(100_000, 100, 0)
        assert health.back_at_s(100) == 400
        health.rest(102, 101, 0)
        assert health.back_at_s(101) == 400

    def test_a_backend_that_asks_for_a_pause_is_alive(self) -> None:
        health = opened()
        health.rest(120, 106, health.began(106))
        assert health.state(106) == "resting"
        assert health.state(120) == "closed"

    def test_a_pause_asked_by_an_older_attempt_leaves_it_open(self) -> None:
        health = opened()
        health.rest(103, 101, 0)
        assert health.state(101) == "open"
        assert health.state(105) == "half_open"


class TestProbes:
    def test_dead_is_open_until_it_is_alive(self) -> None:
        health = Health()
        health.probed(False, 100, 30, "refused")
        assert (health.marked, health.state(100), health.available(100), health.since_s(100)) == (True, "open", False, 100)
        assert (health.verdict.alive(100), health.verdict.reason) == (False, "refused")
        health.probed(False, 120, 30)
        assert health.since_s(140) == 100
        health.probed(True, 141, 30)
        assert (health.state(141), health.marked, health.verdict.alive(141)) == ("closed", False, True)

    def test_a_keeper_that_died_keeps_nobody_out(self) -> None:
        health = Health()
        health.probed(False, 100, 30)
        assert not health.available(129.9)
        assert health.available(130)
        assert health.verdict.alive(130) is None
        health.settle(130)
        assert not health.marked

    def test_what_comes_back_to_life_is_tried_at_once(self) -> None:
        health = opened()
        health.probed(False, 101, 30)
        health.probed(True, 102, 30)
        assert health.state(102) == "half_open"

    def test_being_well_is_no_reason_to_try_earlier(self) -> None:
        health = Health()
        health.probed(True, 90, 30)
        for _ in range(5):
            health.failed("500", 100, 0)
        health.probed(True, 101, 30)
        assert health.state(101) == "open"


class TestBoard:
    def test_the_same_tuple_while_nothing_stands_against_any(self) -> None:
        board = HealthBoard()
        a, b = (board.of((BackendSpec("custom", name), "m")) for name in "ab")
        targets = (target(a), target(b, weight=0))
        assert board.usable(targets, 1) is targets
        b.rest(100, 1, 0)  # drained: does not matter here
        assert board.usable(targets, 1) is targets
        a.failed("x", 1, 0)
        assert board.troubled == 2
        assert board.usable(targets, 1) is targets

    def test_those_that_may_not_be_tried_are_left_out(self) -> None:
        board = HealthBoard()
        targets = (target(opened(board=board)), target(Health()), target(Health(), 0))
        assert board.usable(targets, 101) == targets[1:]
        assert board.usable(targets, 105) is targets
        assert targets[0].health.began(105)
        assert board.usable(targets, 105) == targets[1:]

    def test_the_least_bad_where_none_may_be_tried(self) -> None:
        board = HealthBoard()
        a, b = opened(100, board), opened(103, board)
        targets = (target(b), target(a), target(Health(), 0))
        assert board.usable(targets, 104) == (targets[1],)
        a.failed("refused", 104, a.began(104))
        assert board.usable(targets, 104) == (targets[0],)

    def test_drained_routes_stay_drained(self) -> None:
        board = HealthBoard()
        targets = (target(opened(board=board), 0),)
        assert board.usable(targets, 100) is targets
        assert board.usable((), 100) == ()

    def test_one_health_over_revisions_and_none_when_nothing_names_it(self) -> None:
        board = HealthBoard()
        key, other = (BackendSpec("custom", "http://a"), "m"), (BackendSpec("custom", "http://a"), "n")
        health = board.of(key)
        assert board.of((BackendSpec("custom", "http://a"), "m")) is health
        assert board.of(other) is not health
        health.rest(100, 1, 0)
        board.retire({key})
        assert board.of(key) is health
        board.retire({other})
        assert board.troubled == 0
        health.settle(1000)  # an attempt of the old table ends
        assert board.troubled == 0
        assert board.of(key) is not health


class Attempts(RuleBasedStateMachine):
    """Attempts at three targets that begin and end in any order: what must hold at every moment."""

    @initialize(draws=st.lists(st.floats(0, 0.999), min_size=1, max_size=5))
    def begin(self, draws: list[float]) -> None:
        self.now_s = 1000.0
        self.drawn = 0

        def draw() -> float:
            self.drawn += 1
            return draws[self.drawn % len(draws)]

        self.board = HealthBoard(draw)
        self.healths = [self.board.of((BackendSpec("custom", f"http://{n}"), "m")) for n in range(3)]
        self.targets = tuple(target(health, name=str(n)) for n, health in enumerate(self.healths))
        self.out: list[tuple[Health, int, float]] = []  # health, trial, when it began

    @rule(seconds=st.sampled_from([0.0, 0.1, 1, 4, 6, 13, 40, 70]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(which=st.integers(0, 2), attempts=st.integers(1, 6))
    def attempt(self, which: int, attempts: int) -> None:
        usable = self.board.usable(self.targets, self.now_s)
        health = usable[which % len(usable)].health
        for _ in range(attempts):
            was, may = health.state(self.now_s), health.available(self.now_s)
            trial = health.began(self.now_s) if health.marked else 0
            if was == "half_open":
                assert bool(trial) == may
            self.out.append((health, trial, self.now_s))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["ok", "failed", "failed", "failed", "gone", "rest"]), many=st.integers(1, 6))
    def end(self, data: st.DataObject, how: str, many: int) -> None:
        for _ in range(min(many, len(self.out))):
            health, trial, _ = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
            if how == "failed":
                health.failed("reset", self.now_s, trial)
            elif how == "rest":
                health.rest(self.now_s + 3, self.now_s, trial)
            elif health.marked:
                (health.succeeded if how == "ok" else health.abandoned)(self.now_s, trial)

    @rule(which=st.integers(0, 2), ok=st.booleans())
    def probe(self, which: int, ok: bool) -> None:
        self.healths[which].probed(ok, self.now_s)

    @rule()
    def settle(self) -> None:
        self.board.settle(self.now_s)

    @invariant()
    def one_trial_at_a_time(self) -> None:
        for health in self.healths:
            fresh = [trial for h, trial, began_s in self.out if h is health and trial and self.now_s < began_s + 60]
            assert len(fresh) <= 1
            if health.state(self.now_s) == "half_open":
                assert health.available(self.now_s) == (not fresh)

    @invariant()
    def somebody_may_always_be_tried(self) -> None:
        usable = self.board.usable(self.targets, self.now_s)
        assert usable
        assert set(usable) <= set(self.targets)
        may = [t for t in self.targets if t.health.available(self.now_s)]
        assert list(usable) == may if may else len(usable) == 1

    @invariant()
    def the_fast_way_hides_nothing(self) -> None:
        assert self.board.troubled == sum(health.marked for health in self.healths)
        for health in self.healths:
            if not health.marked:
                assert health.state(self.now_s) == "closed"

    @invariant()
    def nobody_is_kept_out_for_ever(self) -> None:
        for health in self.healths:
            at_s = health.back_at_s(self.now_s)
            assert self.now_s <= at_s <= self.now_s + 300
            assert health.available(at_s)


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200))
def test_a_window_counts_what_is_in_it(events: list[tuple[float, bool]]) -> None:
    from gateway.routing.window import WINDOW_S, Window

    window, now_s, seen = Window(), 0.0, []
    for passed_s, ok in events:
        now_s += passed_s
        window.add(ok, now_s)
        seen.append((int(now_s), ok))
        inside = [ok for second, ok in seen if second > int(now_s) - WINDOW_S]
        assert (window.good, window.bad) == (inside.count(True), inside.count(False))
