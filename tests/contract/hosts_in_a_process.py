"""A process with limits over several hosts: python -m tests.contract.hosts_in_a_process URL WORK, of tests/contract/test_hosts.py.

hold NUMBER      reserves so many requests of the caller `k`, says so, and waits to be killed
storm SECONDS    asks for `s` with 16 at a time, then prints, one line each, when a request was asked for, admitted and ended (monotonic
                 seconds: the same clock in all processes). SECONDS/HOLD: each holds its permit HOLD seconds
"""

from __future__ import annotations

import asyncio
import sys
import time

from auth.principal import Budget, Limited, Limits
from gateway.errors import Unavailable
from gateway.limits.base import Refusal
from tests.hosts import ask, host

HELD = Limits(concurrency=4, tpm=1000, budget=Budget(10_000))
STORM = Limits(rpm=600, tpm=24_000, concurrency=10, budget=Budget(200_000))


async def hold(url: str, number: int) -> None:
    async with host(url) as limiter:
        permits = [await ask(limiter, (Limited("k", HELD),), 100, 1000) for _ in range(number)]
        assert not any(isinstance(permit, Refusal) for permit in permits)
        print("held", flush=True)
        await asyncio.sleep(60)


async def storm(url: str, seconds: float, hold_s: float = 0.01) -> None:
    callers = (Limited("s", STORM), Limited("user:u", Limits(rpm=10_000)))
    lines: list[str] = []
    async with host(url) as limiter:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        end_s = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end_s:
                asked_s = time.monotonic()
                try:
                    permit = await ask(limiter, callers, 40, 400)
                except Unavailable:
                    await asyncio.sleep(0.05)
                    continue
                if isinstance(permit, Refusal):
                    await asyncio.sleep(0.02)
                    continue
                admitted_s = time.monotonic()
                await asyncio.sleep(hold_s)
                lines.append(f"{asked_s} {admitted_s} {time.monotonic()}")
                permit.settle(30, 300)

        await asyncio.gather(*(client() for _ in range(16)))
    print("\n".join([*lines, "done"]), flush=True)


if __name__ == "__main__":
    _, given, work, argument = sys.argv
    asyncio.run(hold(given, int(argument)) if work == "hold" else storm(given, *map(float, argument.split("/"))))
