"""Both forms of `gateway.limits.levels`, with real processes: exact together, and free of what a killed one held."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.limits.levels as taken
from tests.levels import own_levels


def _plain() -> Any:
    """The module as its source says it, whatever was compiled."""
    import gateway

    spec = importlib.util.spec_from_file_location("levels_in_python", Path(gateway.__file__).parent / "limits" / "levels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = _plain()
FORMS: dict[str, Any] = {"plain": PLAIN.Levels} | ({"c": taken.Levels} if taken.FORM == "c" else {})
NOW_S = 1_000_000.0
NONE: tuple[int | None, ...] = (None,) * 8
MONEY, IN_TOKENS = 0, 1  # budgets
KEY, USER, TEAM, MODEL = range(4)
REQUESTS, TOKENS, REQUESTS_DAY, TOKENS_DAY, CONCURRENCY, BUDGET, TOKEN_BUDGET = range(7)  # why not


def only(
    rpm: int | None = None,
    tpm: int | None = None,
    rpd: int | None = None,
    tpd: int | None = None,
    concurrency: int | None = None,
    budget: int | None = None,
    tokens: int | None = None,
    soft: int | None = None,
) -> tuple[int | None, ...]:
    return rpm, tpm, rpd, tpd, concurrency, budget, tokens, soft


EVERYTHING = only(600, 1000, 6000, 20_000, 3, 10_000, 5000, 50)


def account(levels: Any, name: str, limits: tuple[int | None, ...] = EVERYTHING, now_s: float | None = None, whose: int = KEY) -> int:
    number: int = levels.open(name.encode().ljust(16, b"\1"), time.time() if now_s is None else now_s)
    levels.change(number, limits, whose, time.time() if now_s is None else now_s)
    levels.window(number, MONEY, 1, math.inf, 0)
    levels.window(number, IN_TOKENS, 1, math.inf, 0)
    return number


def spent(levels: Any, number: int) -> tuple[Any, ...]:
    """(running, reserved and spent money, reserved and spent tokens)."""
    return tuple(levels.state(number)[:5])


def left(levels: Any, number: int) -> tuple[Any, ...]:
    """Of rpm, tpm, rpd, tpd."""
    return tuple(levels.state(number)[7:])


@pytest.fixture(params=sorted(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def levels(form: str) -> Iterator[Any]:
    made = own_levels(FORMS[form])
    yield made
    made.close()


def work(form: str, path: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.contract.levels_in_a_process", form, str(path), what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_all_or_nothing_over_several_accounts(levels: Any) -> None:
    wide, narrow = account(levels, "wide", now_s=NOW_S), account(levels, "narrow", only(tpm=50), now_s=NOW_S)
    which, wait_s, final, place, headers = levels.reserve((wide, narrow), 60, 0, NOW_S)
    assert (which, wait_s, final, place) == (TOKENS, None, True, 1)
    assert b"x-ratelimit-limit-tokens: 50\r\n" in headers
    assert (spent(levels, wide), left(levels, wide)) == ((0, 0, 0, 0, 0), (600.0, 1000.0, 6000.0, 20_000.0))
    permit = levels.reserve((wide, narrow), 40, 7, NOW_S)
    assert (spent(levels, wide), left(levels, wide)) == ((1, 7, 0, 40, 0), (599.0, 960.0, 5999.0, 19_960.0))
    assert left(levels, narrow)[1] == 10.0
    permit.settle(10, 5)
    permit.settle(10, 5)
    assert (spent(levels, wide), left(levels, wide)) == ((0, 0, 5, 0, 10), (599.0, 990.0, 5999.0, 19_990.0))
    assert left(levels, narrow)[1] == 40.0


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("limits", "which"),
    [
        (only(rpm=0), REQUESTS),
        (only(tpm=0), TOKENS),
        (only(rpd=0), REQUESTS_DAY),
        (only(tpd=0), TOKENS_DAY),
        (only(concurrency=0), CONCURRENCY),
        (only(budget=0), BUDGET),
        (only(tokens=0), TOKEN_BUDGET),
    ],
)
def test_each_limit_of_each_account_is_one_of_the_step(levels: Any, place: int, limits: tuple[int | None, ...], which: int) -> None:
    numbers = [account(levels, name, now_s=NOW_S, whose=whose) for whose, name in enumerate("kutm")]
    numbers[place] = account(levels, "narrow", limits, NOW_S, place)
    assert levels.reserve(tuple(numbers), 1, 1, NOW_S)[:4:3] == (which, place)
    for number in numbers[:place] + numbers[place + 1 :]:
        assert (spent(levels, number), left(levels, number)) == ((0, 0, 0, 0, 0), (600.0, 1000.0, 6000.0, 20_000.0))


def test_the_longest_wait_is_told_and_a_final_one_before_all(levels: Any) -> None:
    short, long = account(levels, "short", only(rpm=60), NOW_S), account(levels, "long", only(rpm=1), NOW_S, USER)
    levels.reserve((long,), 0, 0, NOW_S).settle(0, 0)
    for _ in range(60):
        levels.reserve((short,), 0, 0, NOW_S).settle(0, 0)
    assert levels.reserve((short, long), 5, 5, NOW_S)[:4] == (REQUESTS, 60.0, False, 1)
    assert levels.reserve((long, short), 5, 5, NOW_S)[:4] == (REQUESTS, 60.0, False, 0)
    day = account(levels, "day", only(rpd=1), NOW_S, TEAM)
    levels.reserve((day,), 0, 0, NOW_S).settle(0, 0)
    assert levels.reserve((short, day, long), 5, 5, NOW_S)[:4] == (REQUESTS_DAY, 86_400.0, False, 1)
    broke = account(levels, "broke", only(budget=4), NOW_S, MODEL)
    levels.window(broke, MONEY, 2, NOW_S + 3, 0)
    assert levels.reserve((short, day, long, broke), 5, 5, NOW_S)[:4] == (BUDGET, 3.0, True, 3), "the same again is refused for good"
    small = account(levels, "small", only(tpm=4), NOW_S)
    assert levels.reserve((short, broke, small), 5, 5, NOW_S)[:4] == (TOKENS, None, True, 2), "and this one for ever"


def test_rates_of_a_day_refill_over_a_day(levels: Any) -> None:
    number = account(levels, "k", only(rpd=24, tpd=240), now_s=NOW_S)
    for _ in range(24):
        levels.reserve((number,), 10, 0, NOW_S).settle(10, 0)
    assert levels.reserve((number,), 0, 0, NOW_S)[:3] == (REQUESTS_DAY, 3600.0, False)
    assert levels.reserve((number,), 20, 0, NOW_S)[:3] == (TOKENS_DAY, 7200.0, False)
    assert levels.reserve((number,), 241, 0, NOW_S)[:3] == (TOKENS_DAY, None, True)
    assert isinstance(levels.reserve((number,), 10, 0, NOW_S + 3599), tuple)
    levels.reserve((number,), 10, 0, NOW_S + 3601).settle(0, 0)
    assert left(levels, number)[3] == pytest.approx(10, abs=0.1), "what was not used comes back"
    levels.change(number, only(rpd=12, tpd=5), KEY, NOW_S + 86_400)
    assert left(levels, number)[2:] == (12.0, 5.0), "a lower limit caps the level at once"
    levels.change(number, only(rpd=20, tpd=5), KEY, NOW_S + 86_400)
    assert left(levels, number)[2:] == (20.0, 5.0)


def test_a_budget_in_tokens(levels: Any) -> None:
    number = account(levels, "k", only(tokens=100), now_s=NOW_S)
    levels.window(number, IN_TOKENS, 2, NOW_S + 60, 30)
    permit = levels.reserve((number,), 60, 10**9, NOW_S)
    assert levels.reserve((number,), 11, 0, NOW_S)[:3] == (TOKEN_BUDGET, 60.0, True)
    levels.reserve((number,), 10, 0, NOW_S).settle(0, 0)
    permit.settle(75, 10**9)  # above what was reserved: booked
    assert spent(levels, number) == (0, 0, 10**9, 0, 105)
    assert levels.reserve((number,), 0, 0, NOW_S)[0] == TOKEN_BUDGET
    levels.window(number, IN_TOKENS, 2, NOW_S + 120, 0)
    assert not isinstance(levels.reserve((number,), 100, 0, NOW_S), tuple)


def test_windows_of_the_two_budgets_are_their_own(levels: Any) -> None:
    number = account(levels, "k", now_s=NOW_S)
    levels.window(number, MONEY, 2, NOW_S + 10, 5)
    levels.window(number, IN_TOKENS, 3, NOW_S + 70, 6)
    assert levels.state(number)[:7] == (0, 0, 5, 0, 6, NOW_S + 10, NOW_S + 70)
    for which, kind in ((2, 1), (-1, 1), (0, 0), (0, 256)):
        with pytest.raises(ValueError, match="kind"):
            levels.window(number, which, kind, NOW_S, 0)


def test_headers_show_what_has_least_left(levels: Any) -> None:
    def shown(*numbers: int) -> dict[str, str]:
        return dict(line.split(": ") for line in levels.headers(numbers, NOW_S).decode().split("\r\n") if line)

    key = account(levels, "key", only(rpm=60, tpd=1000), NOW_S)
    team = account(levels, "team", only(rpm=50, rpd=40, tpm=2000), NOW_S, TEAM)
    assert {name: value for name, value in shown(key, team).items() if "reset" not in name} == {
        "x-ratelimit-limit-requests": "40",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1000",
    }
    for _ in range(25):
        levels.reserve((key,), 0, 0, NOW_S).settle(0, 0)
    levels.reserve((team,), 1950, 0, NOW_S).settle(1950, 0)
    assert (shown(key, team)["x-ratelimit-limit-requests"], shown(key, team)["x-ratelimit-remaining-requests"]) == ("60", "35")
    assert (shown(key, team)["x-ratelimit-limit-tokens"], shown(key, team)["x-ratelimit-reset-tokens"]) == ("2000", "59s")
    levels.reserve((key,), 999, 0, NOW_S).settle(999, 0)
    assert shown(team, key)["x-ratelimit-remaining-tokens"] == "1"
    assert shown(team, key)["x-ratelimit-reset-tokens"] == "23h58m34s"
    assert shown(account(levels, "free", only(rpm=0, concurrency=1, budget=1), NOW_S)) == {}


def test_a_budget_near_its_end_is_told(levels: Any) -> None:
    def warning(*numbers: int) -> str:
        lines = levels.headers(numbers, NOW_S).decode().split("\r\n")
        return "".join(line.removeprefix("x-budget-warning: ") for line in lines if line.startswith("x-budget-warning"))

    key = account(levels, "key", only(budget=1000, soft=80), NOW_S)
    user = account(levels, "user", only(tokens=200, budget=10_000, soft=50), NOW_S, USER)
    quiet = account(levels, "quiet", only(budget=1000), NOW_S, TEAM)
    permit = levels.reserve((key, user, quiet), 99, 799, NOW_S)
    assert warning(key, user, quiet) == "", "what is only reserved may come back"
    permit.settle(99, 799)
    assert warning(key, user, quiet) == ""
    permit = levels.reserve((key, user, quiet), 0, 1, NOW_S)
    permit.settle(0, 1)
    assert warning(key, user, quiet) == "key 80%"
    levels.reserve((user,), 64, 0, NOW_S).settle(64, 0)
    assert warning(key, user, quiet) == "user tokens 81%"
    assert levels.reserve((key, user, quiet), 0, 201, NOW_S)[4] == b"x-budget-warning: user tokens 81%\r\n"
    assert levels.reserve((key,), 0, 0, NOW_S).headers == b"x-budget-warning: key 80%\r\n"
    levels.reserve((key,), 0, 0, NOW_S).settle(0, 10**6)
    assert warning(user, key) == "key 999%", "there is no end to what a backend may report"
    levels.window(key, MONEY, 2, NOW_S + 9, 0)
    assert warning(key) == ""


def test_an_account_is_found_where_it_is_in_use(form: str, tmp_path: Path) -> None:
    levels = FORMS[form](tmp_path / "levels")
    ids = [name.encode().ljust(16, b"\1") for name in ("a", "b")]
    assert levels.find(ids[0]) is None
    number = account(levels, "a")
    assert (levels.find(ids[0]), levels.find(ids[1])) == (number, None)
    other = FORMS[form](tmp_path / "levels")
    assert other.find(ids[0]) == number
    other.close()
    levels.close()
    levels = FORMS[form](tmp_path / "levels")
    assert levels.find(ids[0]) is None, "what it says is from before the last start"
    levels.close()
    with pytest.raises(ValueError, match="closed"):
        levels.find(ids[0])


def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing(levels: Any) -> None:
    ahead_s = time.time() + 7200
    number = account(levels, "k", only(rpm=60), now_s=ahead_s)
    for _ in range(60):
        levels.reserve((number,), 0, 0, ahead_s).settle(0, 0)
    now_s = time.time()
    assert isinstance(levels.reserve((number,), 0, 0, now_s), tuple)
    assert not isinstance(levels.reserve((number,), 0, 0, now_s + 2), tuple)


def test_one_who_read_the_clock_long_before_gives_no_time_twice(levels: Any) -> None:
    """A process that was stopped between its look at the clock and its decision: the others have counted that time."""
    number = account(levels, "k", only(rpm=60), now_s=NOW_S)
    for _ in range(60):
        levels.reserve((number,), 0, 0, NOW_S).settle(0, 0)
    for _ in range(30):
        assert not isinstance(levels.reserve((number,), 0, 0, NOW_S + 30), tuple)
    assert isinstance(levels.reserve((number,), 0, 0, NOW_S), tuple)
    assert isinstance(levels.reserve((number,), 0, 0, NOW_S + 30), tuple)


def test_a_window_begins_once_and_not_again_for_one_who_is_late(levels: Any) -> None:
    day, month = 2, 4
    number = account(levels, "k", now_s=NOW_S)

    def window() -> tuple[int, float]:
        state = levels.state(number)
        return state[2], state[5]

    levels.window(number, MONEY, day, NOW_S, 70)
    levels.window(number, MONEY, day, NOW_S, 3)
    assert window() == (70, NOW_S)
    levels.window(number, MONEY, day, NOW_S, 75)
    assert window() == (75, NOW_S), "the ledger knows of more, from a time when nobody counted"
    levels.window(number, MONEY, day, NOW_S + 86400, 0)
    levels.reserve((number,), 0, 50, NOW_S).settle(0, 50)
    levels.window(number, MONEY, day, NOW_S, 70)
    assert window() == (50, NOW_S + 86400)
    levels.window(number, MONEY, month, NOW_S + 86400, 900)
    assert window()[0] == 900, "the last day of a month ends with it"
    levels.window(number, MONEY, day, NOW_S + 3600, 8)
    assert window() == (8, NOW_S + 3600)
    levels.window(number, MONEY, day, NOW_S, 60, False)
    assert window() == (8, NOW_S + 3600)
    levels.window(number, MONEY, day, NOW_S, 60, True)
    assert window() == (60, NOW_S), "the later one was begun by a clock that was wrong"
    levels.window(number, MONEY, day, NOW_S, 50, True)
    assert window() == (60, NOW_S), "another process has seen it too"


def test_what_is_lost_is_settled_as_it_was_reserved(levels: Any) -> None:
    number = account(levels, "k", now_s=NOW_S)
    permit = levels.reserve((number,), 40, 400, NOW_S)
    del permit
    gc.collect()
    assert levels.reserve((number,), 1, 1, NOW_S) is not None
    assert spent(levels, number)[2::2] >= (400, 40)
    assert left(levels, number)[1] <= 960
    levels.sweep()
    assert spent(levels, number)[:2] == (0, 0)


def test_money_near_the_top_is_counted(levels: Any) -> None:
    most = 2**63 - 1
    number = account(levels, "k", only(budget=most, tokens=most), now_s=NOW_S)
    permit = levels.reserve((number,), most, most, NOW_S)
    for tokens, cost_pusd, which in ((0, most, BUDGET), (0, 1, BUDGET), (most, 0, TOKEN_BUDGET), (1, 0, TOKEN_BUDGET)):
        assert levels.reserve((number,), tokens, cost_pusd, NOW_S)[0] == which
    permit.settle(most, most)
    assert spent(levels, number) == (0, 0, most, 0, most)
    free = account(levels, "free", NONE, now_s=NOW_S)
    for permit in [levels.reserve((free,), most, most, NOW_S) for _ in range(3)]:
        permit.settle(1, 1)
    assert spent(levels, free) == (0, 0, 3, 0, 3)


def test_a_number_that_cannot_be_written_down_changes_nothing(levels: Any) -> None:
    number = account(levels, "k", NONE, now_s=NOW_S)
    for wrong in (2**63, "1"):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            levels.reserve((number,), wrong, 0, NOW_S)
        assert spent(levels, number) + left(levels, number) == (0,) * 9
    assert levels.sweep() == 0
    most = 2**63 - 1
    for limits, whose in ((only(), 4), (only(), -1), (only(soft=2**31), 0), (only(soft=-2), 0)):
        with pytest.raises(ValueError, match="ours"):
            levels.change(number, limits, whose, NOW_S)
    for short in ((), (1, 2, 3), (1,) * 9):
        with pytest.raises(TypeError):
            levels.change(number, short, 0, NOW_S)
    levels.change(number, only(most, most), KEY, NOW_S)
    lines = levels.headers((number,), NOW_S + 60).decode().split("\r\n")
    assert lines[0] == f"x-ratelimit-limit-requests: {most}"
    assert int(lines[1].removeprefix("x-ratelimit-remaining-requests: ")) >= most


def test_one_who_closes_while_it_is_asked(levels: Any) -> None:
    class Closing:
        def __index__(self) -> int:
            levels.close()
            return 0

    number = account(levels, "k", now_s=NOW_S)
    with pytest.raises((ValueError, TypeError)):
        levels.reserve((number,), Closing(), 0, NOW_S)


def test_nonsense_is_refused(levels: Any) -> None:
    number = account(levels, "k", now_s=NOW_S)
    for numbers in ((), (number,) * 5):
        with pytest.raises(TypeError):
            levels.reserve(numbers, 0, 0, NOW_S)
        with pytest.raises(TypeError):
            levels.headers(numbers, NOW_S)
    for wrong in (-1, 10**9):
        with pytest.raises((IndexError, OverflowError)):
            levels.reserve((wrong,), 0, 0, NOW_S)
    levels.close()
    levels.close()
    with pytest.raises(ValueError, match="closed"):
        levels.headers((number,), NOW_S)


STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "wait", "day", "change", "window"]), st.integers(0, 120), st.integers(0, 150)),
    max_size=60,
)


@pytest.mark.skipif(len(FORMS) < 2, reason="the form in C is not compiled here")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_both_forms_decide_alike(steps: list[tuple[str, int, int]]) -> None:
    both = [own_levels(FORMS[form]) for form in ("plain", "c")]
    limits = (
        EVERYTHING,
        only(30, 300, 40, None, None, 500, None, 60),
        only(None, None, None, 2000, 2, None, 3000, 10),
        only(rpm=90, soft=0),
    )
    numbers = [tuple(account(levels, "kutm"[i], limits[i], NOW_S, i) for i in range(4)) for levels in both]
    running: list[list[Any]] = []
    now_s = NOW_S
    for what, number, used in steps:
        if what in ("wait", "day"):
            now_s += number / 7 if what == "wait" else number * 700.3
        elif what == "change":
            new = (
                number or None,
                used or None,
                used * 3,
                number * 50 or None,
                number % 4 or None,
                None if used % 2 else 50 * number,
                used * 9,
                number,
            )
            for levels, mine in zip(both, numbers, strict=True):
                levels.change(mine[1], new, 1, now_s)
        elif what == "window":
            for levels, mine in zip(both, numbers, strict=True):
                levels.window(mine[number % 4], used % 2, 2, now_s + used, number)
        elif what == "settle" and running:
            for permit in running.pop(number % len(running)):
                permit.settle(used, used)
        elif what == "reserve":
            made = [levels.reserve(mine[used % 3 : 2 + used % 3], number, used, now_s) for levels, mine in zip(both, numbers, strict=True)]
            if isinstance(made[0], tuple):
                assert made[0][:4] == pytest.approx(made[1][:4])
                assert made[0][4] == made[1][4]
            else:
                assert made[0].headers == made[1].headers
                running.append(made)
        for place in range(4):
            assert both[0].state(numbers[0][place]) == pytest.approx(both[1].state(numbers[1][place]))
        assert both[0].headers(numbers[0], now_s) == both[1].headers(numbers[1], now_s)
    for levels in both:
        levels.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (59.5, "1m0s"),
        (60, "1m0s"),
        (90.2, "1m31s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90_061, "25h1m1s"),
    ],
)
def test_durations(levels: Any, seconds: float, text: str) -> None:
    number = account(levels, "k", only(tpm=6_000_000), now_s=NOW_S)
    levels.reserve((number,), 0, 0, NOW_S).settle(round(seconds * 100_000), 0)
    assert f"x-ratelimit-reset-tokens: {text}\r\n" in levels.headers((number,), NOW_S).decode()


def test_what_a_killed_process_held_is_free(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k")
    process = work(form, path, "hold")
    assert said(process) == "held"
    assert spent(levels, number) == (1, 400, 0, 40, 0)
    assert levels.sweep() == 0, "it lives"
    process.send_signal(signal.SIGSTOP)
    assert levels.sweep() == 0, "it is stopped, not dead"
    process.kill()
    process.communicate()
    assert levels.sweep() == 1
    assert spent(levels, number) == (0, 0, 400, 0, 40), "its reservation counts as used"
    assert levels.sweep() == 0
    levels.close()


def test_what_a_killed_process_reserved_counts_until_the_books_have_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k")
    levels.reserve((number,), 5, 50, time.time()).settle(5, 50)
    process = work(form, path, "hold")
    assert said(process) == "held"
    process.kill()
    process.communicate()
    assert levels.sweep() == 1
    counted = levels.counted(number, MONEY)
    assert counted == (1, math.inf, 450, 400)
    assert levels.counted(number, IN_TOKENS) == (1, math.inf, 45, 40)
    levels.reserve((number,), 0, 7, time.time()).settle(0, 7)  # not booked yet
    levels.reconcile(number, MONEY, counted, 50 + 30)
    assert levels.counted(number, MONEY) == (1, math.inf, 50 + 30 + 7, 0)
    levels.reconcile(number, MONEY, counted, 50 + 30)
    assert levels.counted(number, MONEY) == (1, math.inf, 50 + 30 + 7, 0), "once"
    levels.reconcile(number, IN_TOKENS, levels.counted(number, IN_TOKENS), 0)
    assert levels.counted(number, IN_TOKENS) == (1, math.inf, 5, 0), "what was counted here stays, though the books lack it"
    levels.window(number, MONEY, 2, time.time() + 60, 9)
    levels.reconcile(number, MONEY, counted, 1000)
    assert levels.counted(number, MONEY)[2:] == (9, 0), "of another window"
    levels.reconcile(number, MONEY, levels.counted(number, MONEY), 1000)
    assert levels.counted(number, MONEY)[2:] == (1000, 0), "spent where nobody counted"
    levels.close()


def test_one_in_the_place_of_a_killed_process_does_not_inherit(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k")
    process = work(form, path, "hold")
    assert said(process) == "held"
    process.kill()
    process.communicate()
    second = FORMS[form](path)
    levels.sweep()
    assert spent(levels, number) == (0, 0, 400, 0, 40)
    second.close()
    levels.close()


def test_a_process_lives_longer_than_the_thread_that_attached_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(FORMS[form](path)))
    thread.start()
    thread.join()
    number = account(levels, "k")
    permit = made[0].reserve((number,), 1, 1, time.time())
    assert levels.sweep() == 0
    assert levels.state(number)[0] == 1
    permit.settle(1, 1)
    made[0].close()
    levels.close()


def test_a_forked_child_is_not_attached(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    process = work(form, path, "fork")
    assert said(process) == "refused"
    number = account(levels, "k")
    assert levels.sweep() == 0
    assert levels.state(number)[0] == 1, "the child is gone, and what its parent holds is held"
    process.kill()
    process.communicate()
    levels.sweep()
    assert levels.state(number)[0] == 0
    levels.close()


@pytest.mark.skipif(len(FORMS) < 2, reason="the form in C is not compiled here")
def test_levels_are_attached_once(tmp_path: Path) -> None:
    """Those in C: an object can be initialised again, and must not be."""
    levels = own_levels(FORMS["c"])
    levels.close()
    with pytest.raises(RuntimeError):
        taken.Levels.__init__(levels, tmp_path / "other")


@pytest.mark.parametrize("step", ["reserve", "settle", "change", "window", "reconcile", "close", "sweep"])
def test_a_process_may_be_killed_at_any_instruction(form: str, step: str, tmp_path: Path) -> None:
    """What it was at is done whole or not at all, and nothing that the others walk through is broken. STRIDE=1 kills at each."""
    command = [sys.executable, "-m", "tests.contract.levels_killed", form, str(tmp_path / "levels"), step, os.environ.get("STRIDE", "41")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if "lets nobody trace" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3


@pytest.mark.skipif(shutil.which("unshare") is None, reason="nothing here makes a full disk")
def test_a_full_disk_is_an_error_and_kills_nobody(form: str, tmp_path: Path) -> None:
    worker = [sys.executable, "-m", "tests.contract.levels_in_a_process", form, "$0/levels", "fill"]
    script = f"mount -t tmpfs -o size=128k none $0 && exec {' '.join(worker)}".replace("$0/levels", '"$0/levels"')
    command = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout == "refused\n", (done.returncode, done.stderr)


def test_many_processes_never_pass_the_law(form: str, tmp_path: Path) -> None:
    """Four of them, a bucket of 600 a minute: 600 at once and ten in each second, and not one more; one is killed in the middle."""
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k", only(rpm=600))
    began_s = time.time()
    processes = [work(form, path, "storm") for _ in range(4)]
    try:
        assert [said(process) for process in processes] == ["ready"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        admitted = sum(int(said(process)) for process in processes)
        took_s = time.time() - began_s
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert 600 <= admitted <= 600 + 10 * took_s + 1
    assert levels.state(number)[0] == 0
    levels.close()


def test_a_killed_process_never_keeps_the_lock(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    account(levels, "k", only(rpm=10**6))
    for _ in range(5):
        process = work(form, path, "storm")
        assert said(process) == "ready"
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(0.05)  # in the middle of it, wherever that is
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        levels.sweep()
        assert levels.state(account(levels, "k", only(rpm=10**6)))[0] == 0
    levels.close()


def test_rates_survive_a_restart_and_what_ran_does_not(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k", only(rpm=60, rpd=100, concurrency=5, budget=1000, tokens=1000), NOW_S)
    for _ in range(3):
        levels.reserve((number,), 10, 100, NOW_S)
    levels.close()
    levels = FORMS[form](path)
    assert levels.open(b"k".ljust(16, b"\1"), NOW_S) == number
    assert levels.state(number)[:7] == (0, 0, 0, 0, 0, 0.0, 0.0), "the ledger is asked again"
    assert left(levels, number)[0] == 57
    assert left(levels, number)[2] == 97
    levels.close()


def test_a_file_of_another_layout_is_not_used_with_others(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    with path.open("r+b") as file:
        magic = file.read(8)
        file.seek(0)
        file.write(b"another!")
        file.flush()
        with pytest.raises(OSError, match=r".+"):
            FORMS[form](path)
        file.seek(0)
        file.write(magic)
    FORMS[form](path).close()
    levels.close()


@pytest.mark.parametrize("seed", range(3))
def test_garbage_of_the_right_size_is_made_anew(form: str, seed: int, tmp_path: Path) -> None:
    """After a crash of the machine, too, where the head of the file is there and the rest is anything."""
    path = tmp_path / "levels"
    FORMS[form](path).close()
    with path.open("r+b") as file:
        file.seek(8)
        file.write(random.Random(seed).randbytes(1 << 16))
    levels = FORMS[form](path)
    number = account(levels, "k")
    permits = [levels.reserve((number,), 1, 1, time.time()) for _ in range(3)]
    assert spent(levels, number) == (3, 3, 0, 3, 0)
    for permit in permits:
        permit.settle(1, 1)
    assert spent(levels, number) == (0, 0, 3, 0, 3)
    levels.close()


def test_a_file_of_another_version_is_made_anew_and_never_under_others(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    path.write_bytes(b"older" * 100)
    levels = FORMS[form](path)
    account(levels, "k")
    os.truncate(path, os.path.getsize(path) + 8)
    with pytest.raises(OSError, match=r".+"):
        FORMS[form](path)
    levels.close()
