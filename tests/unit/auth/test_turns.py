"""One hash at a time over threads and processes; those ahead do not wait for those behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from auth.errors import HasherBusy
from auth.turns import NICENESS, Turns

pytestmark = pytest.mark.alone

BOTH = pytest.mark.parametrize("on_file", [False, True])


def turns_of(tmp_path: Path, on_file: bool, **options: float) -> Turns:
    return Turns(tmp_path / "run" / "lock" if on_file else None, **options)  # type: ignore[arg-type]  # numbers all


class Overlap:
    """Work that notices when it does not run alone."""

    def __init__(self) -> None:
        self.running = self.most = self.runs = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.running += 1
            self.runs += 1
            self.most = max(self.most, self.running)
        time.sleep(0.002)
        with self._lock:
            self.running -= 1


@BOTH
async def test_both_queues_and_two_processes_worth_of_them_share_one_turn(tmp_path: Path, on_file: bool) -> None:
    first = turns_of(tmp_path, on_file)
    second = turns_of(tmp_path, on_file) if on_file else first  # as another process would: it shares the file alone
    work = Overlap()
    await asyncio.gather(*(turns.run(work, ahead=ahead) for _ in range(8) for turns in (first, second) for ahead in (True, False)))
    assert (work.most, work.runs) == (1, 32)
    first.close()
    second.close()


async def test_another_process_waits_for_its_turn(tmp_path: Path) -> None:
    """A real one: it holds the turn and says so; ours begins only when it has let go."""
    lock = tmp_path / "lock"
    program = f"""
import sys, asyncio
from pathlib import Path
from auth.turns import Turns
def work():
    print("held", flush=True); sys.stdin.readline(); print("done", flush=True)
turns = Turns(Path({str(lock)!r}))
asyncio.run(turns.run(work, ahead=False))
turns.close()
"""
    root = Path(__file__).parents[3]
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        turns, began = Turns(lock), threading.Event()
        ours = asyncio.create_task(turns.run(began.set, ahead=True))
        await asyncio.sleep(0.1)
        assert not began.is_set()
        other.stdin.write("\n")
        other.stdin.flush()
        await asyncio.wait_for(ours, 10)
        assert other.wait(10) == 0
        turns.close()
    finally:
        other.kill()
        other.communicate()


async def test_a_killed_process_gives_its_turn_back(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import asyncio,sys,time\nfrom pathlib import Path\nfrom auth.turns import Turns\n"
        f"asyncio.run(Turns(Path({str(lock)!r})).run(lambda: (print('held', flush=True), time.sleep(60)), ahead=False))"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3], text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.communicate()
    turns = Turns(lock)
    assert await asyncio.wait_for(turns.run(lambda: "ours", ahead=False), 10) == "ours"
    turns.close()


async def test_the_queues_are_bounded_each_by_itself() -> None:
    turns, hold = Turns(max_ahead=1, max_behind=2), threading.Event()
    behind = [asyncio.create_task(turns.run(hold.wait, ahead=False)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(HasherBusy):
        await turns.run(hold.wait, ahead=False)
    ahead = [asyncio.create_task(turns.run(hold.wait, ahead=True)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(HasherBusy):
        await turns.run(hold.wait, ahead=True)
    hold.set()
    assert await asyncio.gather(*behind, *ahead) == [True] * 5
    assert await turns.run(lambda: 1, ahead=False) == 1  # there is room again
    turns.close()


def burn(cpu_s: float) -> Callable[[], float]:
    def work() -> float:
        started_s = time.thread_time()
        while time.thread_time() - started_s < cpu_s:
            pass
        return time.monotonic()

    return work


@pytest.mark.alone
@BOTH
async def test_strangers_get_their_share_and_who_is_ahead_does_not_wait_for_them(tmp_path: Path, on_file: bool) -> None:
    """A burst of 20 ms and a tenth of a core: 10 hashes of 10 ms take a second, of which 0.1 s is work."""
    turns = turns_of(tmp_path, on_file, share=0.1, burst_s=0.02)
    started_s = time.monotonic()
    strangers = [asyncio.create_task(turns.run(burn(0.01), ahead=False)) for _ in range(10)]
    await asyncio.wait(strangers, return_when=asyncio.FIRST_COMPLETED)
    ends = await asyncio.gather(*(turns.run(burn(0.005), ahead=True) for _ in range(10)))
    assert not strangers[9].done()
    assert ends[-1] - started_s < 0.6
    assert max(await asyncio.gather(*strangers)) - started_s > 0.6
    turns.close()


async def test_a_gap_from_another_start_of_the_machine_holds_nobody_up(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock", share=0.5, burst_s=1)
    await turns.run(lambda: None, ahead=False)
    import struct

    (tmp_path / "lock.behind").write_bytes(struct.pack("<d", time.monotonic() + 1e6))
    started_s = time.monotonic()
    stuck = asyncio.create_task(turns.run(lambda: None, ahead=False))
    await asyncio.sleep(0.05)
    assert await turns.run(lambda: "ahead", ahead=True) == "ahead"
    turns.close()  # ends the pause too
    await stuck
    assert time.monotonic() - started_s < 4
    again = Turns(tmp_path / "lock", share=0.5, burst_s=1)
    assert await asyncio.wait_for(again.run(lambda: 1, ahead=False), 2) == 1
    again.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is of the whole process")
async def test_the_threads_give_way_and_nothing_else_does() -> None:
    turns = Turns()

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = niceness()
    assert await turns.run(niceness, ahead=True) == max(here, NICENESS)
    assert await turns.run(niceness, ahead=False) == max(here, NICENESS)
    assert niceness() == here
    turns.close()


async def test_a_failed_hash_gives_the_turn_back(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    for ahead in (True, False):
        with pytest.raises(ZeroDivisionError):
            await turns.run(lambda: 1 // 0, ahead=ahead)
        assert await turns.run(lambda: 1, ahead=ahead) == 1
    turns.close()
