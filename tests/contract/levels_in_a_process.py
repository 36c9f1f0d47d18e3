"""A process that holds or takes what `gateway.limits.levels` counts: python -m tests.contract.levels_in_a_process FORM PATH WORK.

hold     reserves one request with every limit, says so, and waits to be killed
storm    reserves and settles as fast as it can for a second, then says how many were admitted
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tests.contract.test_levels import FORMS, account

SECONDS = 1.0


def main() -> None:
    form, path, work = sys.argv[1:]
    levels: Any = FORMS[form](path)
    number = account(levels, "k")
    if work == "hold":
        assert not isinstance(levels.reserve((number,), 40, 400, time.time()), tuple)
        print("held", flush=True)
        time.sleep(60)
    admitted, end_s = 0, time.monotonic() + SECONDS
    print("ready", flush=True)
    sys.stdin.readline()
    while time.monotonic() < end_s:
        permit = levels.reserve((number,), 1, 1, time.time())
        if not isinstance(permit, tuple):
            admitted += 1
            permit.settle(1, 1)
    print(admitted, flush=True)


if __name__ == "__main__":
    main()
