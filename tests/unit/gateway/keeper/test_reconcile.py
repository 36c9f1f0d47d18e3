"""What limits have counted and what the books have become one, and nothing that may still be on its way is forgotten."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.keeper import reconcile as module
from gateway.keeper.reconcile import reconcile
from gateway.keeper.ship import Shipper
from gateway.limits.budget import window_end
from gateway.limits.shared import SharedLimiter
from gateway.limits.standing import account_id
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.store import booking
from gateway.store.engine import Database
from tests.levels import own_levels

LIMITS = Limits(budget=Budget(10_000), token_budget=TokenBudget(10_000, "month"))


class World:
    def __init__(self, db: Database, run_dir: Path) -> None:
        self.db, self.run_dir = db, run_dir
        self.levels: Any = own_levels()
        self.limiter = SharedLimiter(self.levels)
        self.keeper = Shipper(db, run_dir / "ledger")
        self.writer = SegmentWriter(run_dir / "ledger", segment_bytes=16_384)

    def spent(self, limit_id: str = "k") -> tuple[int, int]:
        number = self.levels.find(account_id(limit_id))
        return self.levels.counted(number, 0)[2], self.levels.counted(number, 1)[2]

    def ask(self, cost_pusd: int, tokens: int, limit_id: str = "k", limiter: SharedLimiter | None = None) -> Any:
        permit = (limiter or self.limiter).reserve((Limited(limit_id, LIMITS),), tokens, cost_pusd)
        assert hasattr(permit, "settle")
        return permit

    async def book(self, cost_pusd: int, tokens: int) -> None:
        record = UsageRecord("r1", time.time(), "chat", "k", "u", "m", 1, cost_pusd=cost_pusd, prompt_tokens=tokens)
        async with self.db.write() as conn:
            await booking.insert_usage(conn, [asdict(record)], "other", 1)

    async def reconcile(self, within_s: float = 0.0, limit_id: str = "k") -> None:
        await reconcile(self.db, self.run_dir, self.levels, {limit_id: LIMITS, "idle": LIMITS}, within_s, lag_s=0)


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    made = World(db, tmp_path)
    yield made
    made.limiter.close()
    made.keeper.close()


@pytest.mark.parametrize("limit_id", ["k", "user:u", "model:m"])
async def test_what_was_on_its_way_when_the_window_began_is_added(world: World, limit_id: str) -> None:
    world.ask(10, 20, limit_id).settle(1, 2)
    await world.book(30, 40)
    await world.reconcile(limit_id=limit_id)
    assert world.spent(limit_id) == (30, 40)


async def test_what_is_not_booked_yet_stays(world: World) -> None:
    world.ask(100, 200).settle(200, 100)
    await world.book(30, 40)
    await world.reconcile()
    assert world.spent() == (100, 200)


async def test_what_a_killed_process_had_reserved_comes_off_once_it_is_booked(world: World) -> None:
    world.ask(100, 200).settle(200, 100)
    held = world.ask(5000, 6000)
    world.writer.begin(UsageRecord("req-1", time.time(), "chat", "k", "u", "m", 1), 6000, 5000)
    lost = _Lost(world.levels, 5000, 6000)
    held.settle(6000, 5000)  # as `sweep` does for a process that was killed
    assert world.spent() == (5100, 6200)
    await reconcile(world.db, world.run_dir, lost, {"k": LIMITS}, 0, 0)
    assert lost.seen == [(0, 0), (1, 0)], "its process lives: its segment is not dead"
    world.writer.close()
    lost.seen.clear()
    await reconcile(world.db, world.run_dir, lost, {"k": LIMITS}, 0, 0)
    assert lost.seen == [(0, 0), (1, 0)], "not booked yet"
    lost.seen.clear()
    waiting = asyncio.create_task(reconcile(world.db, world.run_dir, lost, {"k": LIMITS}, 10, 0))
    await world.keeper.ship()
    await waiting
    assert lost.seen == [(0, 5000), (1, 6000)]


async def test_one_process_at_a_time(world: World) -> None:
    world.ask(1, 2).settle(2, 1)
    await world.book(30, 40)
    with module._alone(world.run_dir / "reconcile.lock"):
        await world.reconcile()
        assert world.spent() == (1, 2)
    await world.reconcile()
    assert world.spent() == (30, 40)


async def test_one_in_another_window_is_let_be(world: World) -> None:
    world.ask(1, 2).settle(2, 1)
    number = world.levels.find(account_id("k"))
    world.levels.window(number, 0, 5, math.inf, 0)  # it was set back
    await world.book(30, 40)
    await world.reconcile()
    assert world.spent() == (0, 40)


async def test_a_clock_that_was_ahead_leaves_no_window_behind(world: World) -> None:
    now_s = time.time()
    ahead = SharedLimiter(world.levels, clock=lambda: now_s + 100 * 86_400)
    world.ask(9, 9, limiter=ahead).settle(9, 9)
    assert world.levels.counted(world.levels.find(account_id("k")), 1)[1] > now_s + 60 * 86_400
    await world.book(30, 40)
    await world.reconcile()
    found = world.levels.counted(world.levels.find(account_id("k")), 1)
    assert found[1:] == (window_end("month", now_s), 40, 0)


async def test_a_window_that_begins_this_minute_is_let_be(world: World) -> None:
    """Another process has seen midnight before this one did."""
    midnight_s = window_end("month", time.time())
    assert midnight_s is not None
    world.ask(9, 9, limiter=SharedLimiter(world.levels, clock=lambda: midnight_s)).settle(9, 9)
    counted = world.levels.counted(world.levels.find(account_id("k")), 1)
    booked = {("k", None): (0, 0), ("k", "month"): (0, 0)}
    number = world.levels.find(account_id("k"))
    module._take_over(world.levels, (number, (world.levels.counted(number, 0), counted)), LIMITS, "k", booked, midnight_s - 1, True)
    assert world.levels.counted(world.levels.find(account_id("k")), 1) == counted


class _Lost:
    """Levels that say so much was reserved by killed processes (a real one: tests/contract/test_levels.py)."""

    def __init__(self, levels: Any, *lost: int) -> None:
        self._levels, self._lost = levels, lost
        self.seen: list[tuple[int, int]] = []

    def find(self, account_id: bytes) -> int | None:
        found: int | None = self._levels.find(account_id)
        return found

    def window(self, number: int, which: int, kind: int, end_s: float, spent: int, back: bool) -> None:
        raise AssertionError("this is the running one")

    def counted(self, number: int, which: int) -> tuple[int, float, int, int]:
        kind, end_s, spent, _ = self._levels.counted(number, which)
        return kind, end_s, spent, self._lost[which]

    def reconcile(self, number: int, which: int, counted: tuple[int, float, int, int], booked: int) -> None:
        self.seen.append((which, counted[3]))
