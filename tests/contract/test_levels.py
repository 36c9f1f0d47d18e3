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
EVERYTHING = (600, 1000, 3, 10_000)  # rpm, tpm, concurrency, budget


def account(levels: Any, name: str, limits: tuple[int | None, ...] = EVERYTHING, now_s: float | None = None) -> int:
    number: int = levels.open(name.encode().ljust(16, b"\1"), time.time() if now_s is None else now_s)
    levels.change(number, *limits, time.time() if now_s is None else now_s)
    levels.window(number, 1, math.inf, 0)
    return number


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
    wide, narrow = account(levels, "wide", now_s=NOW_S), account(levels, "narrow", (None, 50, None, None), now_s=NOW_S)
    which, wait_s, final, place, headers = levels.reserve((wide, narrow), 60, 0, NOW_S)
    assert (which, wait_s, final, place) == (1, None, True, 1)
    assert b"x-ratelimit-limit-tokens: 50\r\n" in headers
    assert levels.state(wide) == (0, 0, 0, 600.0, 1000.0)
    permit = levels.reserve((wide, narrow), 40, 7, NOW_S)
    assert levels.state(wide) == (1, 7, 0, 599.0, 960.0)
    assert levels.state(narrow)[4] == 10.0
    permit.settle(10, 5)
    permit.settle(10, 5)
    assert levels.state(wide) == (0, 0, 5, 599.0, 990.0)
    assert levels.state(narrow)[4] == 40.0


def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing(levels: Any) -> None:
    ahead_s = time.time() + 7200
    number = account(levels, "k", (60, None, None, None), now_s=ahead_s)
    for _ in range(60):
        levels.reserve((number,), 0, 0, ahead_s).settle(0, 0)
    now_s = time.time()
    assert isinstance(levels.reserve((number,), 0, 0, now_s), tuple)
    assert not isinstance(levels.reserve((number,), 0, 0, now_s + 2), tuple)


def test_one_who_read_the_clock_long_before_gives_no_time_twice(levels: Any) -> None:
    """A process that was stopped between its look at the clock and its decision: the others have counted that time."""
    number = account(levels, "k", (60, None, None, None), now_s=NOW_S)
    for _ in range(60):
        levels.reserve((number,), 0, 0, NOW_S).settle(0, 0)
    for _ in range(30):
        assert not isinstance(levels.reserve((number,), 0, 0, NOW_S + 30), tuple)
    assert isinstance(levels.reserve((number,), 0, 0, NOW_S), tuple)
    assert isinstance(levels.reserve((number,), 0, 0, NOW_S + 30), tuple)


def test_a_window_begins_once_and_not_again_for_one_who_is_late(levels: Any) -> None:
    day, month = 2, 4
    number = account(levels, "k", now_s=NOW_S)
    levels.window(number, day, NOW_S, 70)
    levels.window(number, day, NOW_S, 3)
    assert (levels.state(number)[2], levels.window_end(number)) == (70, NOW_S)
    levels.window(number, day, NOW_S + 86400, 0)
    levels.reserve((number,), 0, 50, NOW_S).settle(0, 50)
    levels.window(number, day, NOW_S, 70)
    assert (levels.state(number)[2], levels.window_end(number)) == (50, NOW_S + 86400)
    levels.window(number, month, NOW_S + 86400, 900)
    assert levels.state(number)[2] == 900, "the last day of a month ends with it"
    levels.window(number, day, NOW_S + 3600, 8)
    assert (levels.state(number)[2], levels.window_end(number)) == (8, NOW_S + 3600)


def test_what_is_lost_is_settled_as_it_was_reserved(levels: Any) -> None:
    number = account(levels, "k", now_s=NOW_S)
    permit = levels.reserve((number,), 40, 400, NOW_S)
    del permit
    gc.collect()
    assert levels.reserve((number,), 1, 1, NOW_S) is not None
    assert levels.state(number)[2] >= 400
    assert levels.state(number)[4] <= 960
    levels.sweep()
    assert levels.state(number)[:2] == (0, 0)


def test_money_near_the_top_is_counted(levels: Any) -> None:
    most = 2**63 - 1
    number = account(levels, "k", (None, None, None, most), now_s=NOW_S)
    permit = levels.reserve((number,), 0, most, NOW_S)
    assert levels.reserve((number,), 0, most, NOW_S)[0] == 3
    assert levels.reserve((number,), 0, 1, NOW_S)[0] == 3
    permit.settle(0, most)
    assert levels.state(number)[2] == most
    free = account(levels, "free", (None,) * 4, now_s=NOW_S)
    for permit in [levels.reserve((free,), most, most, NOW_S) for _ in range(3)]:
        permit.settle(0, 1)
    assert levels.state(free)[:3] == (0, 0, 3)


def test_a_number_that_cannot_be_written_down_changes_nothing(levels: Any) -> None:
    number = account(levels, "k", (None,) * 4, now_s=NOW_S)
    for wrong in (2**63, "1"):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            levels.reserve((number,), wrong, 0, NOW_S)
        assert levels.state(number) == (0, 0, 0, 0.0, 0.0)
    assert levels.sweep() == 0
    most = 2**63 - 1
    levels.change(number, most, most, None, None, NOW_S)
    lines = levels.headers(number, NOW_S + 60).decode().split("\r\n")
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
    for wrong in (-1, 10**9):
        with pytest.raises((IndexError, OverflowError)):
            levels.reserve((wrong,), 0, 0, NOW_S)
    levels.close()
    levels.close()
    with pytest.raises(ValueError, match="closed"):
        levels.headers(number, NOW_S)


STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "settle", "wait", "change"]), st.integers(0, 120), st.integers(0, 150)), max_size=60)


@pytest.mark.skipif(len(FORMS) < 2, reason="the form in C is not compiled here")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_both_forms_decide_alike(steps: list[tuple[str, int, int]]) -> None:
    both = [own_levels(FORMS[form]) for form in ("plain", "c")]
    numbers = [(account(levels, "a", now_s=NOW_S), account(levels, "b", (30, 300, None, 500), now_s=NOW_S)) for levels in both]
    running: list[list[Any]] = []
    now_s = NOW_S
    for what, number, used in steps:
        if what == "wait":
            now_s += number / 7
        elif what == "change":
            limits = (number or None, used or None, number % 4 or None, None if used % 2 else 50 * number)
            for levels, mine in zip(both, numbers, strict=True):
                levels.change(mine[1], *limits, now_s)
        elif what == "settle" and running:
            for permit in running.pop(number % len(running)):
                permit.settle(used, used)
        elif what == "reserve":
            made = [levels.reserve(mine[: 1 + used % 2], number, used, now_s) for levels, mine in zip(both, numbers, strict=True)]
            if isinstance(made[0], tuple):
                assert made[0][:4] == pytest.approx(made[1][:4])
                assert made[0][4] == made[1][4]
            else:
                assert made[0].headers == made[1].headers
                running.append(made)
        for place in range(2):
            assert both[0].state(numbers[0][place]) == pytest.approx(both[1].state(numbers[1][place]))
        assert both[0].headers(numbers[0][1], now_s) == both[1].headers(numbers[1][1], now_s)
    for levels in both:
        levels.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (59.5, "1m0s"), (60, "1m0s"), (90.2, "1m31s"), (360, "6m0s")]
)
def test_durations(levels: Any, seconds: float, text: str) -> None:
    number = account(levels, "k", (60_000, None, None, None), now_s=NOW_S)
    levels.change(number, 60_000, 6_000_000, None, None, NOW_S)
    levels.reserve((number,), 0, 0, NOW_S).settle(round(seconds * 100_000), 0)
    assert f"x-ratelimit-reset-tokens: {text}\r\n" in levels.headers(number, NOW_S).decode()


def test_what_a_killed_process_held_is_free(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k")
    process = work(form, path, "hold")
    assert said(process) == "held"
    assert levels.state(number)[:3] == (1, 400, 0)
    assert levels.sweep() == 0, "it lives"
    process.send_signal(signal.SIGSTOP)
    assert levels.sweep() == 0, "it is stopped, not dead"
    process.kill()
    process.communicate()
    assert levels.sweep() == 1
    assert levels.state(number)[:3] == (0, 0, 400), "its reservation counts as used"
    assert levels.sweep() == 0
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
    assert levels.state(number)[:3] == (0, 0, 400)
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


@pytest.mark.parametrize("step", ["reserve", "settle", "change", "close", "sweep"])
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
    number = account(levels, "k", (600, None, None, None))
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
    account(levels, "k", (10**6, None, None, None))
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
        assert levels.state(account(levels, "k", (10**6, None, None, None)))[0] == 0
    levels.close()


def test_rates_survive_a_restart_and_what_ran_does_not(form: str, tmp_path: Path) -> None:
    path = tmp_path / "levels"
    levels = FORMS[form](path)
    number = account(levels, "k", (60, None, 5, 1000))
    for _ in range(3):
        levels.reserve((number,), 0, 100, time.time())
    levels.close()
    levels = FORMS[form](path)
    assert levels.open(b"k".ljust(16, b"\1"), time.time()) == number
    running, reserved, spent, requests_left, _ = levels.state(number)
    assert (running, reserved, spent, levels.window_end(number)) == (0, 0, 0, 0.0), "the ledger is asked again"
    assert 57 <= requests_left < 58
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
    number = account(levels, "k", (600, 1000, 3, 10_000))
    permits = [levels.reserve((number,), 1, 1, time.time()) for _ in range(3)]
    assert levels.state(number)[:3] == (3, 3, 0)
    for permit in permits:
        permit.settle(1, 1)
    assert levels.state(number)[:3] == (0, 0, 3)
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
