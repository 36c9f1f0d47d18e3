"""What limits over several hosts promise, with a real Redis and real processes."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from redis.asyncio import Redis

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.errors import Unavailable
from gateway.limits.base import FREE, Pending, Permit, Refusal
from gateway.limits.budget import MAX_PUSD
from gateway.limits.hosts import AlonePermit, HostsLimiter
from gateway.limits.redis import LinkLost, RedisLink, inspect
from tests.contract.hosts_in_a_process import HELD, STORM
from tests.hosts import ask, host, until
from tests.levels import own_limiter
from tests.redis_server import RedisServer

DAY_S = 86_400
ROOT = Path(__file__).parents[2]


@contextmanager
def process(url: str, work: str, argument: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.contract.hosts_in_a_process", url, work, str(argument)]
    made = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield made
    finally:
        made.kill()
        made.communicate()


def said(made: subprocess.Popen[str]) -> str:
    assert made.stdout is not None
    return made.stdout.readline().strip()


def admitted(decision: Permit | Refusal) -> Permit:
    assert not isinstance(decision, Refusal), decision
    return decision


def refused(decision: Permit | Refusal) -> Refusal:
    assert isinstance(decision, Refusal)
    return decision


def one(limits: Limits, limit_id: str = "k") -> tuple[Limited, ...]:
    return (Limited(limit_id, limits),)


async def test_decides_as_the_shared_memory_of_one_host_does(redis_server: RedisServer) -> None:
    """The same requests, asked of both in one order: the same answers."""
    rng = random.Random(4)
    parties = [
        Limited("k", Limits(rpm=30, tpd=4000, concurrency=3, soft=50, budget=Budget(90_000, "day"))),
        Limited("user:u", Limits(rpd=80, tpd=2500, token_budget=TokenBudget(6000, "month"), soft=80)),
        Limited("team:t", Limits(rpd=20, concurrency=8, budget=Budget(80_000))),
        Limited("model:m", Limits(tpd=9000, concurrency=7, token_budget=TokenBudget(7000))),
    ]
    own = own_limiter()
    running: list[tuple[Permit, Permit]] = []
    seen: set[str] = set()
    async with host(redis_server.url) as limiter:
        for step in range(400):
            if step == 150:
                parties[0].limits = Limits(rpd=60, tpd=4000, concurrency=5, soft=50, budget=Budget(30_000, "day"))
                parties[2].limits = Limits(budget=Budget(60_000))
            if step == 250:
                parties[1].limits = Limits(concurrency=9, token_budget=TokenBudget(2500, "month"), soft=80)
            if running and rng.random() < 0.5:
                for permit in running.pop(rng.randrange(len(running))):
                    permit.settle(step % 130, step * 3)
                continue
            callers = tuple(party for party in parties if rng.random() < 0.7)
            tokens, cost_pusd = rng.randrange(200), rng.randrange(2000)
            here, there = own.reserve(callers, tokens, cost_pusd), await ask(limiter, callers, tokens, cost_pusd)
            if isinstance(here, Refusal):
                refusal = refused(there)
                assert (refusal.kind, refusal.whose, refusal.final) == (here.kind, here.whose, here.final), step
                assert refusal.retry_after_s == here.retry_after_s or abs((refusal.retry_after_s or 0) - (here.retry_after_s or 0)) < 60
                seen.add(here.kind)
            else:
                running.append((here, admitted(there)))
                assert steady(admitted(there).headers) == steady(here.headers)
        for pair in running:
            for permit in pair:
                permit.settle(0, 0)
    assert seen >= {"requests", "requests_day", "tokens_day", "concurrency", "budget", "token_budget"}


def steady(headers: bytes) -> list[bytes]:
    """Those that do not say what a second of refill has changed."""
    return [line for line in headers.split(b"\r\n") if b"-limit-" in line or b"warning" in line]


async def test_two_hosts_share_every_limit(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as first, host(redis_server.url) as other:
        for name, limits in {
            "requests": Limits(rpm=2),
            "requests_day": Limits(rpd=2),
            "tokens": Limits(tpm=20),
            "tokens_day": Limits(tpd=20),
            "concurrency": Limits(concurrency=2),
            "budget": Limits(budget=Budget(200)),
            "token_budget": Limits(token_budget=TokenBudget(20, "week")),
        }.items():
            permits = [admitted(await ask(limiter, one(limits, name), 10, 100)) for limiter in (first, other)]
            for limiter in (first, other):
                assert refused(await ask(limiter, one(limits, name), 10, 100)).kind == name
            for permit in permits:
                permit.settle(10, 100)


async def test_what_was_not_used_is_the_other_hosts(redis_server: RedisServer) -> None:
    limits = Limits(tpm=100, concurrency=1, budget=Budget(1000), token_budget=TokenBudget(100))
    async with host(redis_server.url) as first, host(redis_server.url) as other:
        permit = admitted(await ask(first, one(limits), 100, 1000))
        refused(await ask(other, one(limits), 1, 1))
        permit.settle(40, 400)
        permit.settle(40, 400)
        await asyncio.sleep(0.1)
        assert refused(await ask(other, one(limits), 70, 0)).kind == "token_budget"
        admitted(await ask(other, one(limits), 60, 600)).settle(60, 600)


async def test_money_is_exact_beyond_what_a_double_holds(redis_server: RedisServer) -> None:
    limits = Limits(budget=Budget(MAX_PUSD))
    async with host(redis_server.url) as limiter:
        admitted(await ask(limiter, one(limits), 0, MAX_PUSD - 1)).settle(0, MAX_PUSD - 1)
        refused(await ask(limiter, one(limits), 0, 2))
        admitted(await ask(limiter, one(limits), 0, 1)).settle(0, 1)
        refused(await ask(limiter, one(limits), 0, 1))


async def test_who_has_no_limits_never_asks(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as limiter:
        redis_server.pause()
        assert limiter.reserve((), 1, 1) is FREE
        assert limiter.reserve(one(Limits()), 1, 1) is FREE
        redis_server.go_on()


async def test_what_the_ledger_knows_is_spent(redis_server: RedisServer) -> None:
    limits = Limits(budget=Budget(1000, "month"), token_budget=TokenBudget(100, "day"), soft=90)
    books = {"month": (950, 0), "day": (0, 40)}
    async with host(redis_server.url, spent=lambda _, window: books[str(window)]) as limiter:
        permit = admitted(await ask(limiter, one(limits), 60, 50))
        assert b"x-budget-warning: key 95%" in permit.headers
        permit.settle(60, 50)
        assert refused(await ask(limiter, one(limits), 1, 0)).kind == "token_budget"
    async with host(redis_server.url) as later:  # it knows less, and what was counted stands
        assert refused(await ask(later, one(limits), 0, 1)).kind == "budget"


async def test_a_window_that_is_over_begins_anew_on_all_hosts_and_never_goes_back(redis_server: RedisServer) -> None:
    yesterday_s = time.time() - 86_400
    now = [yesterday_s]
    limits = Limits(budget=Budget(100, "day"))
    async with host(redis_server.url, clock=lambda: now[0]) as first, host(redis_server.url, clock=lambda: yesterday_s) as late:
        admitted(await ask(first, one(limits), 0, 100)).settle(0, 100)
        refused(await ask(first, one(limits), 0, 1))
        now[0] += 86_400
        admitted(await ask(first, one(limits), 0, 60)).settle(0, 60)
        assert refused(await ask(late, one(limits), 0, 60)).kind == "budget"
        admitted(await ask(late, one(limits), 0, 40)).settle(0, 40)


async def test_a_clock_that_was_ahead_spoils_no_window(redis_server: RedisServer) -> None:
    """The one of a host, by days: what was spent meanwhile counts where it was spent, and the window ends when it does."""
    now = [time.time() + 100 * DAY_S]
    books = {"day": (30, 0), "month": (0, 20)}
    limits = Limits(budget=Budget(100, "day"), token_budget=TokenBudget(50, "month"))
    async with (
        host(redis_server.url, clock=lambda: now[0]) as ahead,
        host(redis_server.url, spent=lambda _, window: books[str(window)]) as right,
    ):
        for callers in (one(limits), one(limits, "other")):
            admitted(await ask(ahead, callers, 5, 10)).settle(5, 10)
            refusal = refused(await ask(right, callers, 0, 71))
            assert (refusal.kind, (refusal.retry_after_s or 0) <= DAY_S) == ("budget", True)
            assert refused(await ask(right, callers, 31, 0)).kind == "token_budget"
            admitted(await ask(right, callers, 20, 50)).settle(20, 50)
            refused(await ask(ahead, callers, 0, 21))  # nor does it begin one when there is one
            now[0] = time.time()
            refused(await ask(ahead, callers, 0, 21))
            admitted(await ask(ahead, callers, 10, 20)).settle(10, 20)
            refusal = refused(await ask(right, callers, 0, 1))
            assert (refusal.kind, (refusal.retry_after_s or 0) <= DAY_S) == ("budget", True)
            now[0] += 100 * DAY_S


async def test_what_was_spent_while_a_clock_was_ahead_counts_though_no_books_have_it(redis_server: RedisServer) -> None:
    limits = Limits(budget=Budget(100, "week"), token_budget=TokenBudget(100, "day"))
    async with host(redis_server.url, clock=lambda: time.time() + 400 * DAY_S) as ahead, host(redis_server.url) as right:
        admitted(await ask(ahead, one(limits), 70, 60)).settle(70, 60)
        assert refused(await ask(right, one(limits), 0, 41)).kind == "budget"
        assert refused(await ask(right, one(limits), 31, 0)).kind == "token_budget"
        admitted(await ask(right, one(limits), 30, 40)).settle(30, 40)


async def test_what_the_books_have_later_counts(redis_server: RedisServer) -> None:
    """What began before a caller had limits is in the books alone."""
    limits = Limits(budget=Budget(100, "month"), token_budget=TokenBudget(100))
    async with host(redis_server.url) as limiter:
        callers = one(limits)
        admitted(await ask(limiter, callers, 10, 10)).settle(10, 10)
        limiter.reserve(one(Limits(rpm=1), "no budget"), 0, 0)
        now_s, asked = time.time(), limiter.budgets()
        assert asked == {"k": limits}
        limiter.booked(asked, {("k", "month"): (60, 9), ("k", None): (9, 70)}, now_s)
        assert refused(await ask(limiter, callers, 0, 41)).kind == "budget"
        assert refused(await ask(limiter, callers, 31, 0)).kind == "token_budget"
        admitted(await ask(limiter, callers, 30, 40)).settle(30, 40)
        callers = one(replace(limits, since=now_s))  # set back: what was read before is not of this one
        admitted(await ask(limiter, callers)).settle(0, 0)
        limiter.booked(asked, {("k", "month"): (100, 0)}, now_s)
        admitted(await ask(limiter, callers, 0, 100))


async def test_what_is_owed_is_not_forgotten_before_it_is_paid(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as limiter:
        admitted(await ask(limiter, one(Limits(tpm=10)), 10, 0)).settle(510, 0)  # fifty minutes
        admitted(await ask(limiter, one(Limits(rpm=10), "other"))).settle(0, 0)
        client = Redis.from_url(redis_server.url)
        try:
            await asyncio.sleep(0.1)
            assert 3000 < await client.ttl("{test}:account:k") <= 3060
            assert await client.ttl("{test}:account:other") <= 600
        finally:
            await client.aclose()


async def test_a_redis_that_comes_back_with_an_older_state_has_lost_nothing(redis_server: RedisServer) -> None:
    limits = Limits(concurrency=4, rpd=8, budget=Budget(1000))
    async with host(redis_server.url) as first, host(redis_server.url) as other:
        admitted(await ask(first, one(limits), 0, 50)).settle(0, 50)
        before = admitted(await ask(first, one(limits), 0, 50))
        redis_server.save()
        admitted(await ask(other, one(limits), 0, 400)).settle(0, 400)
        after, held = [admitted(await ask(limiter, one(limits), 0, 100)) for limiter in (other, first)]
        redis_server.stop()
        await until(lambda: first.away and other.away)
        before.settle(0, 50)
        after.settle(0, 100)
        redis_server.start()
        await until(lambda: not first.away and not other.away)
        await asyncio.sleep(2.2)
        assert refused(await ask(first, one(limits), 0, 301)).kind == "budget"  # 600 are spent, 100 are reserved
        running = [admitted(await ask(limiter, one(limits), 0, 100)) for limiter in (first, other, other)]
        assert refused(await ask(other, one(limits))).kind in {"concurrency", "requests_day"}
        for permit in [held, *running]:
            permit.settle(0, 100)
        await asyncio.sleep(0.1)
        assert refused(await ask(other, one(limits), 0, 1)).kind == "budget"


async def test_what_a_host_spent_alone_is_not_counted_by_the_books_too(kept_redis: RedisServer) -> None:
    """It tells Redis when that is back; another host has read it in the books by then."""
    limits = Limits(budget=Budget(1000))
    books = [0]
    async with (
        host(kept_redis.url, alone=True) as spends,
        host(kept_redis.url, spent=lambda _id, _window: (books[0], 0), alone=True) as reads,
    ):
        admitted(await ask(spends, one(limits), 0, 100)).settle(0, 100)
        kept_redis.stop()
        await until(lambda: spends.away and reads.away)
        running = admitted(await ask(spends, one(limits), 0, 400))
        books[0] = 500
        kept_redis.start()
        await until(lambda: not spends.away and not reads.away)
        admitted(await ask(reads, one(limits), 0, 0)).settle(0, 0)
        assert isinstance(await ask(reads, one(limits, "new"), 0, 0), AlonePermit)  # of one that Redis has not seen nobody can tell yet
        running.settle(0, 400)
        await asyncio.sleep(2.5)
        assert refused(await ask(reads, one(limits), 0, 501)).kind == "budget"
        admitted(await ask(reads, one(limits), 0, 500)).settle(0, 0)
        assert refused(await ask(reads, one(limits, "new"), 0, 501)).kind == "budget"


class OpensOnce(RedisLink):
    """Then it is connecting for ever."""

    opened = 0

    async def open(self, lost: Callable[[], None]) -> None:
        self.opened += 1
        if self.opened > 1:
            await asyncio.Event().wait()
        await super().open(lost)


async def test_ends_while_it_connects_again(redis_server: RedisServer) -> None:
    links: list[OpensOnce] = []

    def link(process: str) -> OpensOnce:
        links.append(OpensOnce(redis_server.url, "{test}", process))
        return links[0]

    own = own_limiter()
    limiter = HostsLimiter(own, link)
    await limiter.start()
    client = Redis.from_url(redis_server.url)
    try:
        for process in await client.keys("{test}:process:*"):
            await client.hdel(process, "session")  # as if it were taken for dead
        await until(lambda: links[0].opened == 2)
        await limiter.close()
    finally:
        await client.aclose()
        own.close()


async def test_a_budget_that_was_set_back_begins_anew_on_all_hosts(redis_server: RedisServer) -> None:
    """However often."""
    before = Limits(budget=Budget(100, "month"), token_budget=TokenBudget(50))
    async with host(redis_server.url) as first, host(redis_server.url) as second:
        callers = one(before)
        admitted(await ask(first, callers, 0, 100)).settle(0, 100)
        assert refused(await ask(second, callers, 0, 1)).kind == "budget"
        for since_s in (1_900_000_000.0, 1_900_000_000.001, 1_900_000_062.0):
            callers = one(replace(before, since=since_s))
            admitted(await ask(second, callers, 10, 60)).settle(10, 60)
            admitted(await ask(first, callers, 40, 40)).settle(40, 40)
            assert refused(await ask(second, callers, 0, 1)).kind == "budget"
            assert refused(await ask(second, callers, 1, 0)).kind == "token_budget"


async def test_hosts_that_learn_of_a_change_one_after_the_other_admit_no_more(redis_server: RedisServer) -> None:
    """While one still has the old limit and the other the new one, each request switches between the two."""
    old, new = one(Limits(rpd=10)), one(Limits(rpd=30))
    count = 0
    async with host(redis_server.url) as first, host(redis_server.url) as other:
        for _ in range(40):
            for limiter, callers in ((first, old), (other, new)):
                count += not isinstance(await ask(limiter, callers), Refusal)
        assert count == 10
        deadline_s = time.monotonic() + 10
        while isinstance(await ask(first, new), Refusal):  # raised for good: what is more is there after a moment
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.1)
        assert [not isinstance(await ask(first, new), Refusal) for _ in range(20)] == [True] * 19 + [False]


@pytest.mark.alone
async def test_a_killed_process_has_its_slots_free_within_two_seconds(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as limiter:
        with process(redis_server.url, "hold", 4) as killed:
            assert said(killed) == "held"
            await asyncio.sleep(1.5)  # it lives, and nobody takes it for dead
            assert refused(await ask(limiter, one(HELD))).kind == "concurrency"
            killed.send_signal(signal.SIGKILL)
            begun_s = time.monotonic()
            while isinstance(await ask(limiter, one(HELD), 0, 1), Refusal):
                assert time.monotonic() - begun_s < 2.0
                await asyncio.sleep(0.02)
            assert refused(await ask(limiter, one(HELD), 0, 6000)).kind == "budget"  # what it reserved counts as used
            admitted(await ask(limiter, one(HELD), 0, 5999))


async def test_a_process_that_stood_still_is_not_dead(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as limiter:
        with process(redis_server.url, "hold", 4) as stopped:
            assert said(stopped) == "held"
            stopped.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            assert refused(await ask(limiter, one(HELD))).kind == "concurrency"


def most_in(times: list[float], limit: int, period_s: float) -> float:
    """How far the busiest interval went beyond L + L * t / period, in requests."""
    times = sorted(times)
    return max(
        last - first + 1 - limit - limit * (times[last] - times[first]) / period_s
        for first in range(len(times))
        for last in range(first, len(times))
    )


def storm(url: str, seconds: float, hold_s: float, meanwhile: Callable[[], None]) -> list[tuple[float, float, float]]:
    """Of four processes: when each admitted request was asked for, admitted, and ended."""
    lines: list[tuple[float, float, float]] = []
    with ExitStack() as stack:
        everyone = [stack.enter_context(process(url, "storm", f"{seconds}/{hold_s}")) for _ in range(4)]
        assert [said(made) for made in everyone] == ["ready"] * 4
        for made in everyone:
            assert made.stdin is not None
            made.stdin.write("\n")
            made.stdin.flush()
        meanwhile()
        for made in everyone:
            while (line := said(made)) != "done":
                if line[:1].isdigit() and line.count(" ") == 2:  # not of its log
                    asked_s, admitted_s, ended_s = map(float, line.split())
                    lines.append((asked_s, admitted_s, ended_s))
    return lines


def never_over(lines: list[tuple[float, float, float]]) -> int:
    """Neither the rate nor what ran at once; returns the most that did. A decision fell between the asking and the answer."""
    limit, most = STORM.rpm, STORM.concurrency
    assert limit is not None
    assert most is not None
    spread_s = max(admitted_s - asked_s for asked_s, admitted_s, _ in lines)
    assert most_in([admitted_s for _, admitted_s, _ in lines], limit, 60) <= limit * spread_s / 60
    steps = sorted([(admitted_s, 1) for _, admitted_s, _ in lines] + [(ended_s, -1) for _, _, ended_s in lines])
    at_once = list(accumulate(by for _, by in steps))
    assert max(at_once) <= most
    return max(at_once)


@pytest.mark.alone
def test_four_processes_at_many_times_the_limit(redis_server: RedisServer) -> None:
    seconds = 4
    lines = storm(redis_server.url, seconds, 0.01, lambda: None)
    assert STORM.rpm is not None
    assert STORM.concurrency is not None
    assert STORM.budget is not None
    assert never_over(lines) >= STORM.concurrency - 2
    allowed = min(STORM.rpm + STORM.rpm * seconds / 60, STORM.budget.amount_pusd / 300)
    assert 0.95 * allowed <= len(lines)


@pytest.mark.parametrize("kept", [False, True], ids=["forgets", "keeps"])
def test_never_over_with_redis_killed_and_back_meanwhile(kept: bool, request: pytest.FixtureRequest) -> None:
    server: RedisServer = request.getfixturevalue("kept_redis" if kept else "redis_server")

    def kill() -> None:
        for _ in range(2):
            time.sleep(1.5)
            server.stop()
            time.sleep(0.3)
            server.start()

    lines = storm(server.url, 6, 0.2, kill)
    never_over(lines)
    assert len(lines) > 60  # it did go on


async def test_refuses_while_redis_is_away_and_goes_on_when_it_is_back(redis_server: RedisServer) -> None:
    limits = Limits(rpd=5, concurrency=2, budget=Budget(1000), token_budget=TokenBudget(100))
    async with host(redis_server.url) as first, host(redis_server.url) as other:
        running = [admitted(await ask(limiter, one(limits), 10, 100)) for limiter in (first, other)]
        redis_server.stop()
        with pytest.raises(Unavailable) as caught:
            await ask(first, one(limits))
        assert (caught.value.code, caught.value.retry_after_s) == ("limits_unavailable", 1)
        running[0].settle(7, 70)  # nobody is there to be told
        await until(lambda: first.away and other.away)
        redis_server.start()  # it has forgotten everything
        await until(lambda: not first.away and not other.away)
        await asyncio.sleep(2)
        running.append(admitted(await ask(other, one(limits), 10, 100)))
        assert refused(await ask(first, one(limits))).kind == "concurrency"
        running[1].settle(8, 80)
        running[2].settle(9, 90)
        await asyncio.sleep(0.1)
        assert refused(await ask(first, one(limits), 0, 761)).kind == "budget"  # 240 are spent
        assert refused(await ask(first, one(limits), 77, 0)).kind == "token_budget"  # 24 are
        answers = [await ask(limiter, one(limits), 0, 0) for limiter in (first, other)]
        for answer in answers:
            admitted(answer).settle(0, 0)
        await asyncio.sleep(0.1)
        assert refused(await ask(other, one(limits))).kind == "requests_day"


async def test_nothing_is_counted_twice_when_a_redis_that_forgets_nothing_is_killed(kept_redis: RedisServer) -> None:
    limits = Limits(concurrency=20, budget=Budget(10_000))
    async with host(kept_redis.url) as first, host(kept_redis.url) as other:
        running: list[Permit] = []
        for _ in range(3):
            running += [admitted(await ask(limiter, one(limits), 0, 100)) for limiter in (first, other)]
            running.pop(0).settle(0, 90)  # told, or not, when it is killed
            kept_redis.stop()
            running.pop(0).settle(0, 90)
            await until(lambda: first.away and other.away)
            kept_redis.start()
            await until(lambda: not first.away and not other.away)
        await asyncio.sleep(0.5)
        assert not running
        assert refused(await ask(first, one(limits), 0, 10_000 - 539)).kind == "budget"
        admitted(await ask(first, one(limits), 0, 10_000 - 540)).settle(0, 0)
        await asyncio.sleep(0.1)
        slots = [await ask(other, one(limits), 0, 0) for _ in range(21)]
        assert [isinstance(slot, Refusal) for slot in slots] == [False] * 20 + [True]


async def test_one_host_decides_alone_where_that_is_wanted_and_tells_what_was_spent(redis_server: RedisServer) -> None:
    limits = Limits(rpm=4, budget=Budget(1000))
    async with host(redis_server.url, alone=True) as first, host(redis_server.url, alone=True) as other:
        admitted(await ask(first, one(limits), 0, 100)).settle(0, 100)
        redis_server.stop()
        await until(lambda: first.away and other.away)
        admitted(await ask(first, one(limits), 0, 400)).settle(0, 400)
        assert refused(await ask(first, one(limits), 0, 501)).kind == "budget"  # the host's own count went along before
        for _ in range(4):
            admitted(await ask(other, one(limits), 0, 0)).settle(0, 0)
        assert refused(await ask(other, one(limits))).kind == "requests"
        redis_server.start()
        await until(lambda: not first.away and not other.away)
        await asyncio.sleep(2)
        assert refused(await ask(other, one(limits), 0, 501)).kind == "budget"


async def test_an_answer_that_does_not_come_is_waited_for_a_second(redis_server: RedisServer) -> None:
    async with host(redis_server.url) as limiter:
        redis_server.pause()
        begun_s = time.monotonic()
        with pytest.raises(Unavailable):
            await ask(limiter, one(Limits(concurrency=1)))
        assert 0.5 < time.monotonic() - begun_s < 5
        await until(lambda: limiter.away)
        redis_server.go_on()
        await until(lambda: not limiter.away)
        admitted(await ask(limiter, one(Limits(concurrency=1))))  # what Redis did late for nobody is given back


async def test_a_permit_that_nobody_waits_for_is_given_back(redis_server: RedisServer) -> None:
    limits = Limits(concurrency=1, budget=Budget(100))
    async with host(redis_server.url) as limiter:
        pending = limiter.reserve(one(limits), 10, 100)
        assert isinstance(pending, Pending)
        pending.forget()
        async with asyncio.timeout(10):
            while isinstance(await ask(limiter, one(limits), 10, 100), Refusal):
                await asyncio.sleep(0.02)


async def test_who_leaves_holds_nothing(redis_server: RedisServer) -> None:
    limits = Limits(concurrency=1)
    async with host(redis_server.url) as stays:
        async with host(redis_server.url) as leaves:
            permit = admitted(await ask(leaves, one(limits)))
            refused(await ask(stays, one(limits)))
        admitted(await ask(stays, one(limits)))
        permit.settle(0, 0)


async def test_without_redis_at_the_start_it_is_joined_when_it_comes(redis_server: RedisServer) -> None:
    redis_server.stop()
    async with host(redis_server.url, joined=False) as limiter:
        with pytest.raises(Unavailable):
            limiter.reserve(one(Limits(rpm=1)), 0, 0)
        redis_server.start()
        await until(lambda: not limiter.away)
        admitted(await ask(limiter, one(Limits(rpm=1))))


async def test_what_people_are_told_of_it(redis_server: RedisServer) -> None:
    version, forgets = await inspect(redis_server.url)
    assert version[0].isdigit()
    assert not forgets
    redis_server.stop()
    with pytest.raises(LinkLost) as caught:
        await inspect(redis_server.url)
    assert str(redis_server.port) not in caught.value.reason
