from __future__ import annotations

import multiprocessing
import stat
import threading
import time
from pathlib import Path

import pytest

from gateway.store.generation import Generation


def test_what_one_sets_the_other_sees(tmp_path: Path) -> None:
    one, other = Generation(tmp_path / "run" / "generation"), Generation(tmp_path / "run" / "generation")
    assert (one.change, one.local) == (0, 0)
    one.set_change(7)
    assert one.bump_local() == 1
    assert (other.change, other.local) == (7, 1)
    assert stat.S_IMODE((tmp_path / "run" / "generation").stat().st_mode) == 0o600


def test_it_never_goes_back_except_by_reset(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "generation")
    generation.set_change(7)
    generation.set_change(6)
    assert generation.change == 7
    generation.reset_change(2)
    assert generation.change == 2


def test_a_new_mapping_keeps_what_was_there(tmp_path: Path) -> None:
    first = Generation(tmp_path / "generation")
    first.set_change(2**40)
    first.close()
    assert Generation(tmp_path / "generation").change == 2**40


def test_threads_do_not_lose_a_bump(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "generation")
    threads = [threading.Thread(target=lambda: [generation.bump_local() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generation.local == 800


def test_processes_that_create_it_at_once_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_bump, args=(tmp_path / "generation", 100)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert Generation(tmp_path / "generation").local == 300


def _bump(path: Path, times: int) -> None:
    generation = Generation(path)
    for _ in range(times):
        generation.bump_local()


def test_who_follows_is_waited_for(tmp_path: Path) -> None:
    generation, other = Generation(tmp_path / "generation"), Generation(tmp_path / "generation")
    assert generation.in_force(5), "nobody follows"
    first, second = generation.follow(), other.follow()
    assert first != second
    generation.note(first, 5)
    assert not generation.in_force(5)
    other.note(second, 4)
    assert not generation.in_force(5)
    other.note(second, 5)
    assert generation.in_force(5)
    assert not generation.in_force(6)
    other.leave(second)
    generation.note(first, 6)
    assert generation.in_force(6)
    assert other.follow() == second, "the place is free again"


def test_who_is_not_heard_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation, now_ns = Generation(tmp_path / "generation"), time.monotonic_ns()
    place = generation.follow()
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns + 2 * 10**9)
    assert generation.in_force(5), "killed, or held up"
    assert generation.follow() != place, "it may come back"
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns + 100 * 10**9)
    assert generation.follow() == place, "killed"
    monkeypatch.setattr("time.monotonic_ns", lambda: 10)
    assert generation.in_force(5), "the machine was started again: its clock too"
    assert generation.follow() == place


def test_more_than_there_are_places_for(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "generation")
    places = [generation.follow() for _ in range(61)]
    assert len(set(places)) == 61
    assert places[-1] == -1
    generation.note(-1, 3)
    generation.leave(-1)
    assert not generation.in_force(3)
