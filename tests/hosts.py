"""Limiters over several hosts, for tests: each has levels of its own, as if it were on a host of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from auth.principal import Limited
from gateway.errors import GatewayError
from gateway.limits.base import Pending, Permit, Refusal
from gateway.limits.hosts import HostsLimiter
from gateway.limits.redis import RedisLink
from tests.levels import own_limiter

Spent = Callable[[str, str | None], tuple[int, int]]


class Waiting:
    """Who waits for a decision."""

    def __init__(self, pending: Pending) -> None:
        self.decision: asyncio.Future[Permit | Refusal | GatewayError] = asyncio.get_running_loop().create_future()
        pending.wait(self)

    def decided(self, decision: Permit | Refusal | GatewayError) -> None:
        self.decision.set_result(decision)


async def ask(limiter: HostsLimiter, callers: tuple[Limited, ...], tokens: int = 0, cost_pusd: int = 0) -> Permit | Refusal:
    """Raises the error of a limiter that cannot decide."""
    decision = limiter.reserve(callers, tokens, cost_pusd)
    if not isinstance(decision, Pending):
        return decision
    decided = await Waiting(decision).decision
    if isinstance(decided, GatewayError):
        raise decided
    return decided


@contextlib.asynccontextmanager
async def host(
    url: str,
    *,
    alone: bool = False,
    spent: Spent = lambda _id, _window: (0, 0),
    clock: Callable[[], float] = time.time,
    joined: bool = True,
) -> AsyncIterator[HostsLimiter]:
    own = own_limiter(spent, clock)
    limiter = HostsLimiter(own, lambda process: RedisLink(url, "{test}", process), spent, alone=alone, clock=clock)
    await limiter.start()
    assert limiter.away is not joined
    try:
        yield limiter
    finally:
        await limiter.close()
        own.close()


async def until(true: Callable[[], bool], within_s: float = 10.0) -> float:
    """How long it took, in seconds."""
    begun_s = time.monotonic()
    while not true():
        assert time.monotonic() - begun_s < within_s, "it never came"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun_s
