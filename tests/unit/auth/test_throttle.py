"""Waits grow by account and address, end soon, and never keep the owner out."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from auth.errors import LoginDelayed
from auth.throttle import ACCOUNT, ACCOUNT_FRESH, ADDRESS, FORGET_S, PAIR, PAIR_KNOWN, Throttle, Wait

OWNER, HOME = "owner@example.com", "192.0.2.1"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "memory"])
def throttle(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Throttle:
    return Throttle(tmp_path / "run" / "logins" if request.param == "file" else None, clock=clock)


def wait_of(throttle: Throttle, account: str, address: str, *, known: bool = False) -> float:
    """Seconds until an attempt is let in; it is taken back if it is."""
    try:
        throttle.withdrawn(throttle.enter(account, address, known=known))
    except LoginDelayed as delayed:
        return delayed.retry_after_s
    return 0.0


def fail(throttle: Throttle, account: str, address: str, clock: Clock, times: int, *, known: bool = False) -> list[float]:
    """So many wrong passwords, each as soon as it may be; the waits before them."""
    waits = []
    for _ in range(times):
        waits.append(wait_of(throttle, account, address, known=known))
        clock.now_s += waits[-1] + 1e-6
        throttle.enter(account, address, known=known)
    return waits


@pytest.mark.parametrize("wait", [PAIR, PAIR_KNOWN, ADDRESS, ACCOUNT, ACCOUNT_FRESH])
def test_waits_grow_and_have_an_end(wait: Wait) -> None:
    waits = [wait.after(count) for count in (*range(200), 2**32 - 1)]
    assert waits == sorted(waits)
    assert waits[wait.free - 1] == 0 < waits[wait.free]
    assert waits[-1] == wait.longest_s <= 60


def test_one_account_from_one_address_waits_twice_as_long_each_time(throttle: Throttle, clock: Clock) -> None:
    assert fail(throttle, OWNER, HOME, clock, 12) == pytest.approx([0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60], abs=1e-3)
    assert wait_of(throttle, "other@example.com", "192.0.2.2") == 0


def test_from_a_known_address_the_wait_stays_short(throttle: Throttle, clock: Clock) -> None:
    assert fail(throttle, OWNER, HOME, clock, 19, known=True) == pytest.approx([*[0] * 10, 1, 2, *[3] * 7], abs=1e-3)


def test_no_number_of_strangers_delays_the_owner_at_home(throttle: Throttle, clock: Clock) -> None:
    for i in range(1000):
        throttle_quietly(throttle, OWNER, f"198.51.100.{i}")
        throttle_quietly(throttle, f"user{i}@example.com", HOME)
        clock.now_s += 0.01
    assert wait_of(throttle, OWNER, HOME, known=True) == 0
    assert wait_of(throttle, OWNER, HOME) > 0  # had they never logged in from there


def throttle_quietly(throttle: Throttle, account: str, address: str) -> bool:
    try:
        throttle.enter(account, address, known=False)
    except LoginDelayed:
        return False
    return True


def test_guesses_at_one_account_from_everywhere_are_few(throttle: Throttle, clock: Clock) -> None:
    """100 a second from 1,000 addresses for ten minutes: let in are at first those of each address, then hardly any."""
    let_in = [throttle_quietly(throttle, OWNER, f"a{i % 1000}") for i in range(60_000) if not setattr(clock, "now_s", clock.now_s + 0.01)]
    assert sum(let_in) < 1300
    assert sum(let_in[-6_000:]) <= 125  # the last minute: one each half second, from addresses that had none yet


def test_an_address_that_nobody_tried_from_is_soon_let_in(throttle: Throttle, clock: Clock) -> None:
    for i in range(100):
        throttle.enter(OWNER, f"a{i}", known=False)
        clock.now_s += 0.5
    assert wait_of(throttle, OWNER, "a1") > 1
    assert wait_of(throttle, OWNER, "a fresh one") <= 0.5


def test_many_accounts_from_one_address(throttle: Throttle, clock: Clock) -> None:
    waits = []
    for i in range(30):
        waits.append(wait_of(throttle, f"user{i}@example.com", HOME))
        clock.now_s += waits[-1] + 1e-6
        throttle.enter(f"user{i}@example.com", HOME, known=False)
    assert waits[:20] == [0] * 20
    assert waits[20:27] == pytest.approx([1, 2, 4, 8, 16, 32, 60], abs=1e-3)


def test_many_at_once_all_count(throttle: Throttle) -> None:
    assert sum(throttle_quietly(throttle, OWNER, HOME) for _ in range(50)) == PAIR.free


def test_a_right_password_forgets_the_wrong_ones_before_it(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, OWNER, HOME, clock, 5)
    clock.now_s += 2
    throttle.succeeded(throttle.enter(OWNER, HOME, known=False))
    assert fail(throttle, OWNER, HOME, clock, 5) == [0] * 5


def test_an_attempt_taken_back_leaves_everything_as_it_was(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, OWNER, HOME, clock, 8)
    before = wait_of(throttle, OWNER, HOME)
    clock.now_s += before + 0.5
    throttle.withdrawn(throttle.enter(OWNER, HOME, known=False))
    assert wait_of(throttle, OWNER, HOME) == 0


def test_a_successful_one_does_not_weaken_the_count_of_others(throttle: Throttle, clock: Clock) -> None:
    for i in range(60):
        clock.now_s += 11
        throttle.enter(OWNER, f"a{i}", known=False)
    before = wait_of(throttle, OWNER, "a1")
    throttle.succeeded(throttle.enter(OWNER, HOME, known=True))
    assert wait_of(throttle, OWNER, "a1") == before > 0


def test_what_is_old_is_forgotten(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, OWNER, HOME, clock, 9)
    assert wait_of(throttle, OWNER, HOME) > 0
    clock.now_s += FORGET_S + 1
    assert fail(throttle, OWNER, HOME, clock, 3) == [0, 0, 0]


def test_a_clock_set_back_neither_forgets_nor_locks_out(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, OWNER, HOME, clock, 8)
    clock.now_s -= 600
    assert 0 < wait_of(throttle, OWNER, HOME) <= PAIR.longest_s


def test_refusing_early_counts_nothing_and_knows_what_was_seen(throttle: Throttle, clock: Clock) -> None:
    for _ in range(20):
        throttle.refuse_early(OWNER, HOME)
    fail(throttle, OWNER, HOME, clock, 7)
    with pytest.raises(LoginDelayed) as delayed:
        throttle.refuse_early(OWNER, HOME)
    assert delayed.value.retry_after_s == pytest.approx(wait_of(throttle, OWNER, HOME))
    fail(throttle, "known@example.com", "home", clock, 13, known=True)
    clock.now_s += 3.1
    throttle.refuse_early("known@example.com", "home")


def test_a_full_table_keeps_who_weighs_most(tmp_path: Path, clock: Clock) -> None:
    throttle = Throttle(tmp_path / "logins", clock=clock)
    fail(throttle, OWNER, HOME, clock, 11)
    before = clock.now_s
    for i in range(40_000):
        clock.now_s = before + i * 1e-6
        throttle.enter(f"user{i}", f"a{i}", known=False)
    assert wait_of(throttle, OWNER, HOME) > 20
    assert (tmp_path / "logins").stat().st_size < 3_000_000


def test_the_file_names_nobody_and_is_the_owners_alone(tmp_path: Path, clock: Clock) -> None:
    throttle = Throttle(tmp_path / "logins", clock=clock)
    fail(throttle, OWNER, HOME, clock, 5)
    raw = (tmp_path / "logins").read_bytes()
    assert OWNER.encode() not in raw
    assert HOME.encode() not in raw
    assert (tmp_path / "logins").stat().st_mode & 0o777 == 0o600
    other = Throttle(tmp_path / "elsewhere", clock=clock)
    fail(other, OWNER, HOME, clock, 5)
    assert raw[32:] != (tmp_path / "elsewhere").read_bytes()[32:]  # a key of its own


def _enter_many(path: Path, times: int) -> None:
    throttle = Throttle(path)
    for _ in range(times):
        throttle.withdrawn(throttle.enter(OWNER, HOME, known=True))  # four at once are fewer than are free
    let_in = sum(throttle_quietly(throttle, "all@example.com", HOME) for _ in range(10))
    (path.with_name(f"let-in-{multiprocessing.current_process().pid}")).write_text(str(let_in))


def test_processes_share_the_counts(tmp_path: Path) -> None:
    """Four at once: together they are let in as often as one, and none of them loses a count of another."""
    context, path = multiprocessing.get_context("spawn"), tmp_path / "logins"
    others = [context.Process(target=_enter_many, args=(path, 2000)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert sum(int(file.read_text()) for file in tmp_path.glob("let-in-*")) == PAIR.free
    assert wait_of(Throttle(path), OWNER, HOME, known=True) == 0
