"""A process that holds or takes what `gateway.limits.levels` counts: python -m tests.contract.levels_in_a_process FORM PATH WORK.

hold     reserves one request with every limit, says so, and waits to be killed
fork     reserves one request, forks a child that tries to use and to close what it inherited, and waits to be killed
fill     opens accounts and reserves until there is no room on the disk, and says so
storm    reserves and settles as fast as it can for a second, then says how many were admitted
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from typing import Any

from tests.contract.test_levels import FORMS, NONE, account

SECONDS = 1.0


def fill(levels: Any, number: int) -> None:
    permits: list[Any] = []
    with contextlib.suppress(MemoryError):
        permits.extend(levels.reserve((number,), 0, 0, time.time()) for _ in range(4000))
    if len(permits) == 4000:
        return
    levels.change(number, NONE, 0, time.time())
    permits.pop().settle(0, 0)
    try:
        for other in range(4000):
            levels.open(struct.pack("qq", other * 64 + 1, 1), time.time())
    except MemoryError:
        print("refused", flush=True)


def main() -> None:
    form, path, work = sys.argv[1:]
    levels: Any = FORMS[form](path)
    number = account(levels, "k", NONE) if work == "fill" else account(levels, "k")
    if work == "hold":
        permit = levels.reserve((number,), 40, 400, time.time())
        assert not isinstance(permit, tuple)
        print("held", flush=True)
        time.sleep(60)
    if work == "fork":
        permit = levels.reserve((number,), 40, 400, time.time())
        child = os.fork()
        if child == 0:
            try:
                levels.reserve((number,), 40, 400, time.time())
            except ValueError:
                permit.settle(0, 0)
                levels.close()
                os._exit(0)
            os._exit(1)
        print("refused" if os.waitpid(child, 0)[1] == 0 else "allowed", flush=True)
        time.sleep(60)
    if work == "fill":
        fill(levels, number)
        return
    print("ready", flush=True)
    sys.stdin.readline()
    admitted, end_s = 0, time.monotonic() + SECONDS
    while time.monotonic() < end_s:
        permit = levels.reserve((number,), 1, 1, time.time())
        if not isinstance(permit, tuple):
            admitted += 1
            permit.settle(1, 1)
    print(admitted, flush=True)


if __name__ == "__main__":
    main()
