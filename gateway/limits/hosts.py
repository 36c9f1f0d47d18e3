"""Limits over several hosts: Redis decides (`hosts.lua`, one step for all that a request is counted under), this process asks it.

A decision takes a round trip, so `reserve` answers `Pending`. What is asked while a step is under way goes with the next one, all of it
at once. Each host counts what it admits in its own shared memory too (`own`): reports and warnings are read there, and it decides alone
while Redis is away, if that is wanted (`alone`); else limited callers are refused then.

Nothing is lost with Redis or with a connection. A process knows what it holds and tells it again (`join`), with what it has settled
meanwhile. If the state itself is gone (Redis came back empty, or with what it knew a while ago: steps are numbered), each process tells
what it saw last of every account, and nobody is admitted before all had time to. What a killed process held counts as used, and its slots
are free about a second later.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
import structlog

from auth.principal import Limited, Limits
from gateway.errors import GatewayError, Unavailable
from gateway.limits.base import FREE, Pending, Permit, Refusal
from gateway.limits.budget import MAX_PUSD, window_end, window_start
from gateway.limits.redis import LinkLost
from gateway.limits.shared import SharedLimiter

logger = structlog.get_logger(__name__)

WAIT_S = 1.0  # the longest that a request waits for a decision; then Redis is as good as away for it
HEARTBEAT_S = 0.3  # by which others see that this process lives, and by which it sees to those that do not
RETRY_S = 0.2
UNSURE_S = 2.0  # after Redis was away: by then all have told what was spent meanwhile
LEAVE_S = 1.0
MOST_AT_ONCE = 64  # operations in a step: Redis does nothing else for some 3 ms then
_MOST_TOKENS = 2**50
_SPLIT = 10**6
_NONE = -1
_KINDS = ("requests", "tokens", "requests_day", "tokens_day", "concurrency", "budget", "token_budget")
_BUDGETS = _KINDS[5:]
_WHOSE = ("user", "team", "model")
_AWAY = "Limits cannot be checked now; try again shortly."

Spent = Callable[[str, str | None], tuple[int, int]]


class Link(Protocol):
    """`gateway.limits.redis.RedisLink`."""

    async def open(self, lost: Callable[[], None]) -> None: ...

    async def step(self, arguments: Sequence[bytes]) -> Any: ...

    async def close(self) -> None: ...


class Forgotten(LinkLost):
    """Redis is there, and took this process for dead: nothing of the step was done."""


class Account:
    """What this process knows of one that is limited. `asked`: how it is named in a step; `state`: what Redis had of it last."""

    __slots__ = ("asked", "from_s", "limit_id", "limits", "state", "until_s")

    def __init__(self, limit_id: str) -> None:
        self.limit_id = limit_id
        self.limits: Limits | None = None
        self.asked = b""
        self.from_s = 0.0  # when the last window of a budget began: a clock that is earlier now was set right
        self.until_s = math.inf  # when the first window of a budget ends
        self.state: bytes | None = None


class Held:
    """A reservation in Redis, until it is settled there. `used`: tokens and money, once it is over."""

    __slots__ = ("cost_pusd", "names", "tokens", "used")

    def __init__(self, tokens: int, cost_pusd: int, names: list[str]) -> None:
        self.tokens = tokens
        self.cost_pusd = cost_pusd
        self.names = names
        self.used: tuple[int, int] | None = None


class Ask:
    """One operation of the next step: a reservation (`pending`), or a settlement."""

    __slots__ = ("callers", "held", "number", "pending", "text", "timer")

    def __init__(self, number: str, text: bytes, held: Held, callers: tuple[Limited, ...], pending: Pending | None) -> None:
        self.number = number
        self.text = text
        self.held = held
        self.callers = callers
        self.pending = pending
        self.timer: asyncio.TimerHandle | None = None


class HostsPermit:
    """A reservation in Redis, and the same in the host's own levels."""

    __slots__ = ("_limiter", "_number", "_own", "headers")

    def __init__(self, limiter: HostsLimiter, number: str, own: Permit, headers: bytes) -> None:
        self._limiter: HostsLimiter | None = limiter
        self._number = number
        self._own = own
        self.headers = headers

    def settle(self, tokens: int, cost_pusd: int) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            self._own.settle(tokens, cost_pusd)
            limiter.settle(self._number, tokens, cost_pusd)

    def __del__(self) -> None:
        if self._limiter is not None:
            self._limiter.lose(self._number)


class AlonePermit:
    """A reservation while Redis is away. What it uses of budgets is told later."""

    __slots__ = ("_ids", "_limiter", "_own", "headers")

    def __init__(self, limiter: HostsLimiter, own: Permit, ids: list[str]) -> None:
        self._limiter: HostsLimiter | None = limiter
        self._own = own
        self._ids = ids
        self.headers = own.headers

    def settle(self, tokens: int, cost_pusd: int) -> None:
        limiter, self._limiter = self._limiter, None
        self._own.settle(tokens, cost_pusd)
        if limiter is not None:
            limiter.owe(self._ids, tokens, cost_pusd)


class HostsLimiter:
    """Implements `Limiter`. `alone`: while Redis is away the host decides by its own levels; else it refuses.

    `spent`: as of `SharedLimiter`. Begin with `start` (a running loop), end with `close`. `own` belongs to who made it.
    """

    def __init__(
        self,
        own: SharedLimiter,
        link: Callable[[str], Link],
        spent: Spent = lambda _id, _window: (0, 0),
        *,
        alone: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own = own
        self._process = secrets.token_hex(8)
        self._link = link(self._process)
        self._spent = spent
        self._alone = alone
        self._clock = clock
        self.away = True
        self._known = ""  # the state in Redis that this process has worked with
        self._step_number = 0  # the last step of it that this process saw
        self._sure_at_s = 0.0  # from then on (monotonic) what the ledger knows is told to Redis
        self._session = 0
        self._number = 0
        self._accounts: dict[str, Account] = {}
        self._held: dict[str, Held] = {}
        self._owed: dict[str, tuple[int, int]] = {}
        self._queue: deque[Ask] = deque()
        self._wake = asyncio.Event()
        self._lost = False
        self._joined = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    # what a request asks

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal | Pending:
        if not callers:
            return FREE
        now_s = self._clock()
        accounts = [self._account(caller, now_s) for caller in callers if caller.limits.limited]
        if not accounts:
            return FREE
        if self.away:
            return self._decide_alone(callers, tokens, cost_pusd)
        held = Held(min(tokens, _MOST_TOKENS), min(cost_pusd, MAX_PUSD), [account.limit_id for account in accounts])
        self._number += 1
        number = f"{self._number:x}"
        asked = b",".join([account.asked for account in accounts])
        values = (number.encode(), held.tokens, *divmod(held.cost_pusd, _SPLIT), asked, time.monotonic() < self._sure_at_s)
        ask = Ask(number, b'["reserve","%b",%d,%d,%d,[%b],%d]' % values, held, callers, Pending())
        ask.timer = asyncio.get_running_loop().call_later(WAIT_S, self._late, ask)
        self._push(ask)
        assert ask.pending is not None
        return ask.pending

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        """As far as this host knows."""
        return self._own.headers(callers)

    def settle(self, number: str, tokens: int, cost_pusd: int) -> None:
        """For permits."""
        held = self._held.get(number)
        if held is None:
            return
        held.used = (min(tokens, _MOST_TOKENS), min(cost_pusd, MAX_PUSD))
        if not self.away:  # else `join` tells it
            values = (number.encode(), held.used[0], *divmod(held.used[1], _SPLIT))
            self._push(Ask(number, b'["settle","%b",%d,%d,%d]' % values, held, (), None))

    def lose(self, number: str) -> None:
        """For permits that are lost: what they reserved is used."""
        held = self._held.get(number)
        if held is not None:
            self.settle(number, held.tokens, held.cost_pusd)

    def owe(self, limit_ids: list[str], tokens: int, cost_pusd: int) -> None:
        """For permits that Redis does not know."""
        for limit_id in limit_ids:
            before = self._owed.get(limit_id, (0, 0))
            self._owed[limit_id] = (before[0] + tokens, before[1] + cost_pusd)

    def _push(self, ask: Ask) -> None:
        self._queue.append(ask)
        self._wake.set()

    def _decide_alone(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal:
        if not self._alone:
            raise _unavailable()
        decision = self._own.reserve(callers, tokens, cost_pusd)
        if isinstance(decision, Refusal):
            return decision
        budgets = [c.limit_id for c in callers if c.limits.budget is not None or c.limits.token_budget is not None]
        return AlonePermit(self, decision, budgets) if budgets else decision

    def _account(self, caller: Limited, now_s: float) -> Account:
        account = self._accounts.get(caller.limit_id)
        if account is None:
            account = self._accounts[caller.limit_id] = Account(caller.limit_id)
        if account.limits is not caller.limits or not account.from_s <= now_s < account.until_s:
            self._follow(account, caller.limits, now_s, self._spent)
        return account

    def budgets(self) -> dict[str, Limits]:
        """Of those with budgets that have asked, by limit id: `booked` wants to know what they have spent."""
        of = {limit_id: account.limits for limit_id, account in self._accounts.items()}
        return {limit_id: it for limit_id, it in of.items() if it is not None and (it.budget is not None or it.token_budget is not None)}

    def booked(self, limits: Mapping[str, Limits], spent: Mapping[tuple[str, str | None], tuple[int, int]], now_s: float) -> None:
        """What the ledger had at `now_s` is the least that these (of `budgets`) have spent; not where limits were changed since."""
        for limit_id, of in limits.items():
            account = self._accounts.get(limit_id)
            if account is not None and account.limits is of:
                self._follow(account, of, now_s, lambda limit_id, window: spent.get((limit_id, window), (0, 0)))

    def _follow(self, account: Account, limits: Limits, now_s: float, spent: Spent) -> None:
        """How it is asked for, under these limits and in the windows that run, with what was spent in them."""
        account.limits, account.from_s, account.until_s = limits, 0.0, math.inf
        money: object = 0
        tokens: object = 0
        if limits.budget is not None:
            money = self._budget(account, limits.budget.amount_pusd, limits.budget.window, 0, now_s, spent)
        if limits.token_budget is not None:
            tokens = self._budget(account, limits.token_budget.tokens, limits.token_budget.window, 1, now_s, spent)
        plain = (limits.rpm, limits.tpm, limits.rpd, limits.tpd, limits.concurrency, limits.soft)
        numbers = [_NONE if number is None else min(number, _MOST_TOKENS) for number in plain]
        account.asked = orjson.dumps([account.limit_id, *numbers, _whose(account.limit_id), money, tokens])

    @staticmethod
    def _budget(account: Account, amount: int, window: str | None, which: int, now_s: float, spent_in: Spent) -> list[object]:
        start_s, end_s = window_start(window, now_s), window_end(window, now_s)
        account.from_s = max(account.from_s, start_s)
        if end_s is not None:
            account.until_s = min(account.until_s, end_s)
        spent = spent_in(account.limit_id, window)[which]
        split = _SPLIT if which == 0 else 2**62
        since_s = account.limits.since if account.limits is not None else None
        # one that was set back is in a window of its own, where spending begins anew
        kind = (window or "ever") + ("" if since_s is None else f"@{int(since_s * 1000)}")
        return [*divmod(amount, split), kind, end_s or 0, *divmod(spent, split), start_s]

    # what decides

    def _late(self, ask: Ask) -> None:
        """Redis is not away, but as good as that for this request."""
        pending, ask.pending = ask.pending, None
        if pending is not None:
            self._decide(pending, ask)

    def _decide(self, pending: Pending, ask: Ask) -> None:
        """Without Redis."""
        decision: Permit | Refusal | GatewayError
        try:
            decision = self._decide_alone(ask.callers, ask.held.tokens, ask.held.cost_pusd)
        except GatewayError as error:
            decision = error
        pending.decide(decision)

    def _answered(self, ask: Ask, answer: Any) -> None:
        if ask.timer is None:
            self._held.pop(ask.number, None)
            return
        ask.timer.cancel()
        pending, ask.pending = ask.pending, None
        if answer[0] == 1:
            self._held[ask.number] = ask.held
            permit = HostsPermit(self, ask.number, self._own_permit(ask), answer[1])
            if pending is None:  # too late
                permit.settle(0, 0)
            else:
                pending.decide(permit)
        elif pending is not None and answer[0] == 0:
            _, headers, which, wait_s, final, place = answer
            limit_id = ask.held.names[place]
            whose = _whose(limit_id)
            if _KINDS[which] in _BUDGETS:
                self._own.stopped.add((limit_id, _KINDS[which]))
            pending.decide(Refusal(_KINDS[which], float(wait_s) if wait_s else None, bool(final), headers, whose))
        elif pending is not None:  # what was lost is being gathered
            self._decide(pending, ask)

    def _own_permit(self, ask: Ask) -> Permit:
        """The host's own count. It may be behind (after a start) and refuse: then it goes without this one."""
        try:
            decision = self._own.reserve(ask.callers, ask.held.tokens, ask.held.cost_pusd)
        except GatewayError:
            return FREE
        return FREE if isinstance(decision, Refusal) else decision

    # the conversation with Redis

    async def start(self, within_s: float = 2.0) -> None:
        """Returns when Redis is joined; or later than that, when it is away: it is tried again and again."""
        self._running = asyncio.create_task(self._run(), name="limits")
        try:
            async with asyncio.timeout(within_s):
                await self._joined.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Settle what is left, and leave."""
        running, self._running = self._running, None
        if running is None:
            return
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        joined = not self.away
        self._go_away()
        if joined:
            settled = [_settlement(number, held) for number, held in self._held.items() if held.used is not None]
            try:
                async with asyncio.timeout(LEAVE_S):
                    await self._tell([*settled, b'["leave"]'])
            except (LinkLost, TimeoutError):
                pass
        await self._link.close()

    async def _run(self) -> None:
        told = False
        while True:
            try:
                await self._join()
                if told:
                    self._sure_at_s = time.monotonic() + UNSURE_S
                    logger.warning("limits are decided over all hosts again")
                told = False
                self.away = False
                self._joined.set()
                while True:
                    await self._next()
                    await self._step()
            except Forgotten:  # it was stopped for a while; who waits, waits on
                await self._link.close()
                continue
            except LinkLost as fault:
                if not told:
                    how = "this host decides alone" if self._alone else "limited callers are refused"
                    logger.error("Redis is away", fault=fault.reason, meanwhile=how)
                told = True
            except Exception:
                logger.exception("limits over hosts failed; they are begun again")
                told = True
            self._go_away()
            await self._link.close()
            await asyncio.sleep(RETRY_S)

    async def _join(self) -> None:
        """Connect, and tell what this process holds."""
        self._lost = False
        self._session += 1
        await self._link.open(self._on_lost)
        [[state], number, *_] = await self._tell([b'["hello"]'])
        older = number < self._step_number  # it came back with what it knew a while ago
        if self._known and (older or state.decode() != self._known):
            await self._restore()
        permits = [
            [number, held.tokens, *divmod(held.cost_pusd, _SPLIT), held.names, *_used(held)] for number, held in list(self._held.items())
        ]
        over = [permit[0] for permit in permits if permit[5] != _NONE]
        [[state], number, *_] = await self._tell([orjson.dumps(["join", self._known, permits, int(older)])])
        self._known, self._step_number = state.decode(), number
        for number in over:
            self._held.pop(str(number), None)
        for number, held in self._held.items():  # settled in this very moment
            if held.used is not None:
                self._queue.append(Ask(number, _settlement(number, held), held, (), None))

    async def _restore(self) -> None:
        """What this process saw last, of a state that is gone."""
        known = [account for account in self._accounts.values() if account.state is not None]
        for first in range(0, len(known), MOST_AT_ONCE):
            told: list[bytes] = []
            for account in known[first : first + MOST_AT_ONCE]:
                assert account.state is not None
                told += (orjson.dumps(["state", account.limit_id]), account.state)
            await self._tell(told)

    async def _next(self) -> None:
        """Until there is something to ask, or to show that this process lives."""
        if self._owed:
            await self._pay()
        if not self._queue and not self._lost:
            self._wake.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
        if self._lost:
            raise LinkLost("connection lost")

    async def _pay(self) -> None:
        """What was spent without Redis. If the answer is lost it is told again: rather too much than too little is counted."""
        owed = list(self._owed.items())[:MOST_AT_ONCE]
        await self._tell([orjson.dumps(["spent", limit_id, used[0], *divmod(used[1], _SPLIT)]) for limit_id, used in owed])
        for limit_id, used in owed:
            tokens, cost_pusd = self._owed.pop(limit_id)
            if (tokens, cost_pusd) != used:
                self._owed[limit_id] = (tokens - used[0], cost_pusd - used[1])

    async def _step(self) -> None:
        asks = [self._queue.popleft() for _ in range(min(len(self._queue), MOST_AT_ONCE))]
        try:
            answers, *_ = await self._tell([ask.text for ask in asks])
        except BaseException:
            self._queue.extendleft(reversed(asks))
            raise
        for ask, answer in zip(asks, answers, strict=True):
            self._answered(ask, answer)

    async def _tell(self, operations: Sequence[bytes]) -> Any:
        """One step. Keeps what it says of the accounts, and its number: a later `hello` that says less is of an older state."""
        reply = await self._link.step((self._head(), *operations))
        if reply == b"join":
            raise Forgotten("taken for dead")
        self._step_number = max(self._step_number, reply[1])
        for at in range(2, len(reply), 2):
            account = self._accounts.get(reply[at].decode())
            if account is not None:
                account.state = reply[at + 1]
        return reply

    def _head(self) -> bytes:
        return orjson.dumps([self._process, str(self._session)])

    def _on_lost(self) -> None:
        self._lost = True
        self._wake.set()

    def _go_away(self) -> None:
        """Who waits is told now; what is to be settled, `join` will say."""
        self.away = True
        asks, self._queue = self._queue, deque()
        for ask in asks:
            pending, ask.pending = ask.pending, None
            if ask.timer is not None:
                ask.timer.cancel()
            if pending is not None:
                self._decide(pending, ask)


def _unavailable() -> Unavailable:
    return Unavailable(_AWAY, code="limits_unavailable", retry_after_s=1)


def _used(held: Held) -> tuple[int, int, int]:
    """-1 where it is not over yet."""
    return (held.used[0], *divmod(held.used[1], _SPLIT)) if held.used is not None else (_NONE, 0, 0)


def _settlement(number: str, held: Held) -> bytes:
    return orjson.dumps(["settle", number, *_used(held)])


def _whose(limit_id: str) -> str:
    return next((whose for whose in _WHOSE if limit_id.startswith(whose + ":")), "key")
