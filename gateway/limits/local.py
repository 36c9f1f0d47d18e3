"""Limits within one process: plain numbers on the event loop, a few microseconds a decision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from auth.principal import Limits
from gateway.limits.base import FREE, Permit, Refusal
from gateway.limits.budget import window_end


class LocalLimiter:
    """One `Account` per limit id, made at its first request.

    `spent_pusd(limit_id, window)` says what the ledger knows to be spent in the budget's running window when an account is made.
    """

    def __init__(
        self,
        spent_pusd: Callable[[str, str | None], int] = lambda _id, _window: 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._accounts: dict[str, Account] = {}
        self._spent = spent_pusd
        self._clock = clock
        self._wall = wall

    def reserve(self, limit_id: str, limits: Limits, tokens: int, cost_pusd: int) -> Permit | Refusal:
        account = self._account(limit_id, limits)
        if account is None:
            return FREE
        if limits.budget is not None and account.window_end_s <= self._wall():
            account.start_window(self._wall(), 0)
        return account.reserve(self._clock(), tokens, cost_pusd, self._wall)

    def headers(self, limit_id: str, limits: Limits) -> bytes:
        account = self._account(limit_id, limits)
        return account.headers_at(self._clock()) if account is not None else b""

    def _account(self, limit_id: str, limits: Limits) -> Account | None:
        """The account under the limits in force; None for a caller without any."""
        account = self._accounts.get(limit_id)
        if account is None:
            if not limits.limited:
                return None
            account = self._accounts[limit_id] = Account(limits, self._clock())
            self._open_budget(account, limit_id)
        elif account.limits is not limits and account.limits != limits:
            window = account.limits.budget.window if account.limits.budget else None
            account.change(limits, self._clock())
            if limits.budget is not None and (account.window_end_s == 0.0 or window != limits.budget.window):
                self._open_budget(account, limit_id)
        return account

    def _open_budget(self, account: Account, limit_id: str) -> None:
        budget = account.limits.budget
        if budget is not None:
            account.start_window(self._wall(), self._spent(limit_id, budget.window))


class Account:
    """The levels of one caller. Levels are what is left; a token level below zero is owed."""

    __slots__ = (
        "_lines",
        "limits",
        "requests_left",
        "reserved_pusd",
        "running",
        "spent_pusd",
        "tokens_left",
        "updated_s",
        "window_end_s",
    )

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.limits = limits
        self._lines = _lines(limits)
        self.updated_s = now_s
        self.requests_left = float(limits.rpm or 0)
        self.tokens_left = float(limits.tpm or 0)
        self.running = 0
        self.spent_pusd = 0
        self.reserved_pusd = 0
        self.window_end_s = 0.0

    def start_window(self, wall_s: float, spent_pusd: int) -> None:
        """A budget window begins. What is reserved by running requests stays reserved: it will be spent in this one."""
        budget = self.limits.budget
        self.spent_pusd = spent_pusd
        end_s = window_end(budget.window if budget else None, wall_s)
        self.window_end_s = math.inf if end_s is None else end_s

    def change(self, limits: Limits, now_s: float) -> None:
        """New limits for the same caller: a lower one caps the level at once, a higher one adds the difference."""
        self._refill(now_s)
        old, self.limits = self.limits, limits
        self._lines = _lines(limits)
        self.requests_left = _moved(self.requests_left, old.rpm, limits.rpm)
        self.tokens_left = _moved(self.tokens_left, old.tpm, limits.tpm)

    def reserve(self, now_s: float, tokens: int, cost_pusd: int, wall: Callable[[], float]) -> Permit | Refusal:
        self._refill(now_s)
        limits = self.limits
        rpm, tpm, budget = limits.rpm, limits.tpm, limits.budget
        if (
            (budget is None or self.spent_pusd + self.reserved_pusd + cost_pusd <= budget.amount_pusd)
            and (limits.concurrency is None or self.running < limits.concurrency)
            and (rpm is None or self.requests_left >= 1)
            and (tpm is None or self.tokens_left >= tokens)
        ):
            self.requests_left -= 1
            self.tokens_left -= tokens
            self.running += 1
            self.reserved_pusd += cost_pusd
            return LocalPermit(self, tokens, cost_pusd, self.headers())
        return self._refusal(tokens, cost_pusd, wall)

    def _refusal(self, tokens: int, cost_pusd: int, wall: Callable[[], float]) -> Refusal:
        limits = self.limits
        budget = limits.budget
        if budget is not None and self.spent_pusd + self.reserved_pusd + cost_pusd > budget.amount_pusd:
            return Refusal("budget", None if budget.window is None else max(0.0, self.window_end_s - wall()), True, self.headers())
        if limits.tpm is not None and tokens > limits.tpm:
            return Refusal("tokens", None, True, self.headers())
        waits: list[tuple[float, str]] = []
        if limits.rpm is not None and self.requests_left < 1:
            waits.append(((1 - self.requests_left) * 60 / limits.rpm if limits.rpm else 60.0, "requests"))
        if limits.tpm is not None and self.tokens_left < tokens:
            waits.append(((tokens - self.tokens_left) * 60 / limits.tpm if limits.tpm else 60.0, "tokens"))
        if not waits:
            return Refusal("concurrency", 1.0, False, self.headers())
        wait_s, kind = max(waits)
        return Refusal(kind, wait_s, False, self.headers())

    def _refill(self, now_s: float) -> None:
        elapsed_s = now_s - self.updated_s
        self.updated_s = now_s
        rpm, tpm = self.limits.rpm, self.limits.tpm
        if rpm is not None:
            left = self.requests_left + elapsed_s * rpm / 60
            self.requests_left = left if left < rpm else float(rpm)
        if tpm is not None:
            left = self.tokens_left + elapsed_s * tpm / 60
            self.tokens_left = left if left < tpm else float(tpm)

    def headers_at(self, now_s: float) -> bytes:
        self._refill(now_s)
        return self.headers()

    def headers(self) -> bytes:
        """The x-ratelimit lines: what is left now, and when the bucket would be full again."""
        lines = b""
        rpm, tpm = self.limits.rpm, self.limits.tpm
        if rpm:
            lines = self._lines[0] % (max(0, int(self.requests_left)), _reset(rpm, self.requests_left))
        if tpm:
            lines += self._lines[1] % (max(0, int(self.tokens_left)), _reset(tpm, self.tokens_left))
        return lines


class LocalPermit:
    """A reservation in one account."""

    __slots__ = ("_account", "_cost_pusd", "_tokens", "headers")

    def __init__(self, account: Account, tokens: int, cost_pusd: int, headers: bytes) -> None:
        self._account: Account | None = account
        self._tokens = tokens
        self._cost_pusd = cost_pusd
        self.headers = headers

    def settle(self, tokens: int, cost_pusd: int) -> None:
        account = self._account
        if account is None:
            return
        self._account = None
        account.running -= 1
        account.reserved_pusd -= self._cost_pusd
        account.spent_pusd += cost_pusd
        account.tokens_left += self._tokens - tokens
        limit = account.limits.tpm
        if limit is not None and account.tokens_left > limit:
            account.tokens_left = float(limit)


def _moved(left: float, old: int | None, new: int | None) -> float:
    if new is None:
        return 0.0
    return float(new) if old is None else min(left + max(0, new - old), float(new))


def _lines(limits: Limits) -> tuple[bytes, bytes]:
    """The x-ratelimit lines of requests and of tokens, but for what is left and until when."""
    return _template(b"requests", limits.rpm), _template(b"tokens", limits.tpm)


def _template(what: bytes, limit: int | None) -> bytes:
    names = (what, limit or 0, what, what)
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n" % names


def _reset(limit: int, left: float) -> bytes:
    """When the bucket is full again."""
    return duration((limit - left) * 60 / limit)


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: 20ms, 6s, 1m30s, 6m0s."""
    if seconds < 1:
        return b"%dms" % (seconds * 1000)
    minutes, rest = divmod(int(seconds + 0.999), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
