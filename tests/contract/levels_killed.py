"""Kills a process at one instruction after the other of what it does under the lock, and looks at what the others find:
python -m tests.contract.levels_killed FORM PATH STEP STRIDE. Says how many were killed.

The form in C is stepped through one machine instruction at a time (ptrace), the plain one by the interpreter's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.contract.test_levels import EVERYTHING, FORMS, MONEY, NONE, NOW_S, account, left, only, spent

_TRACE_ME, _CONTINUE, _ONE_STEP = 0, 7, 9  # of ptrace
_LOCK_AT = 16  # in the file of the form in C: the word of its mutex
_LIBC = ctypes.CDLL(None, use_errno=True)
NOT_ALLOWED = "this machine lets nobody trace"
UNTOUCHED = (0, 0, 0, 0, 0, 600.0, 1000.0, 6000.0, 20_000.0)  # `spent` and `left`
SWEPT = (0, 0, 400, 0, 40, 599.0, 960.0, 5999.0, 19_960.0)
SETTLED = (0, 0, 5, 0, 10, 599.0, 990.0, 5999.0, 19_990.0)
BEGUN = (0, 0, 70, *UNTOUCHED[3:])
CHANGED = (0, 0, 0, 0, 0, 300.0, 500.0, 3000.0, 10_000.0)
Numbers = tuple[int, ...]
Prepare = Callable[[Any, Numbers], Callable[[], object]]


def reserve(levels: Any, numbers: Numbers) -> Callable[[], object]:
    return lambda: levels.reserve(numbers, 40, 400, NOW_S)


def settle(levels: Any, numbers: Numbers) -> Callable[[], object]:
    permit = levels.reserve(numbers, 40, 400, NOW_S)
    return lambda: permit.settle(10, 5)


def change(levels: Any, numbers: Numbers) -> Callable[[], object]:
    return lambda: levels.change(numbers[0], only(300, 500, 3000, 10_000, 3), 0, NOW_S)


def window(levels: Any, numbers: Numbers) -> Callable[[], object]:
    return lambda: levels.window(numbers[0], MONEY, 2, NOW_S, 70)


def reconcile(levels: Any, numbers: Numbers) -> Callable[[], object]:
    counted = levels.counted(numbers[0], MONEY)
    return lambda: levels.reconcile(numbers[0], MONEY, counted, 70)


def close(levels: Any, numbers: Numbers) -> Callable[[], object]:
    permit = levels.reserve(numbers, 40, 400, NOW_S)
    return lambda: (levels.close(), permit)


def sweep(levels: Any, numbers: Numbers) -> Callable[[], object]:
    return lambda: levels.sweep()  # what the one before it held, which was killed as well


STEPS: dict[str, tuple[Prepare, tuple[object, ...]]] = {
    "reserve": (reserve, (UNTOUCHED, SWEPT)),
    "settle": (settle, (SWEPT, SETTLED)),
    "change": (change, (UNTOUCHED, CHANGED)),
    "window": (window, (UNTOUCHED, BEGUN)),
    "reconcile": (reconcile, (UNTOUCHED, BEGUN)),
    "close": (close, (SWEPT,)),
    "sweep": (sweep, (SWEPT,)),
}


def attached_and(prepare: Prepare, form: str, path: Path, numbers: Numbers) -> Callable[[], Callable[[], object]]:
    return lambda: prepare(FORMS[form](path), numbers)


def hold_and_die(prepared: Callable[[], Callable[[], object]]) -> None:
    process = os.fork()
    if process == 0:
        held = prepared()()
        os.kill(os.getpid(), signal.SIGKILL)
        del held
    os.waitpid(process, 0)


def traced(form: str, prepare: Callable[[], Callable[[], object]], after: int, path: Path) -> bool:
    """A process that is killed `after` so many instructions under the lock. False: it let the lock go before."""
    process = os.fork()
    if process == 0:
        try:
            work = prepare()
            if form == "c":
                _LIBC.ptrace(_TRACE_ME, 0, None, None)
                os.kill(os.getpid(), signal.SIGSTOP)
                work()
            else:
                kill_in_python(work, after)
        finally:
            os._exit(1)
    return killed_in_c(process, after, path) if form == "c" else os.WIFSIGNALED(os.waitpid(process, 0)[1])


def killed_in_c(process: int, after: int, path: Path) -> bool:
    os.waitpid(process, 0)
    steps_under_lock, was_locked = 0, False
    with path.open("rb", buffering=0) as file:
        while steps_under_lock <= after:
            if _LIBC.ptrace(_ONE_STEP, process, None, None):
                sys.exit(NOT_ALLOWED)
            if not os.WIFSTOPPED(os.waitpid(process, 0)[1]):
                return False
            locked = struct.unpack("I", os.pread(file.fileno(), 4, _LOCK_AT))[0] != 0
            if was_locked and not locked:
                break
            was_locked = locked
            steps_under_lock += locked
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return steps_under_lock > after


def kill_in_python(work: Callable[[], object], after: int) -> None:
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if not frame.f_code.co_filename.endswith("levels.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps > after:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()


def main() -> None:
    form, path, step, stride = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    levels: Any = FORMS[form](path)
    all_of_them = account(levels, "all", NONE, NOW_S)
    prepare, allowed = STEPS[step]
    kills, alive = 0, True
    while alive:
        signal.alarm(100)  # a process that waits for ever is ended
        numbers = tuple(account(levels, f"{name}{kills}", EVERYTHING, NOW_S, whose) for whose, name in enumerate("kutm"))
        if step == "sweep":
            hold_and_die(attached_and(reserve, form, path, numbers))
        alive = traced(form, attached_and(prepare, form, path, numbers), kills * stride, path)
        levels.sweep()
        states = [spent(levels, number) + left(levels, number) for number in numbers]
        assert states[0] in allowed, (kills, states)
        assert states[1:] == ([UNTOUCHED] * 3 if step in ("change", "window", "reconcile") else [states[0]] * 3), (kills, states)
        permits = [levels.reserve((all_of_them,), 1, 1, NOW_S) for _ in range(8)]
        assert spent(levels, all_of_them)[:4] == (8, 8, 0, 8), kills
        for permit in permits:
            permit.settle(0, 0)
        assert spent(levels, all_of_them) == (0, 0, 0, 0, 0), kills
        kills += 1
    assert levels.sweep() == 0
    print(kills)


if __name__ == "__main__":
    main()
