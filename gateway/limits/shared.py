"""Limits over all server processes of a host: the levels are in shared memory (`limits.levels`), the decision is one step on them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from auth.principal import Limits
from gateway.errors import Unavailable
from gateway.limits.base import FREE, Permit, Refusal
from gateway.limits.budget import MAX_PUSD, window_end

_KINDS: Final = ("requests", "tokens", "concurrency", "budget")  # as `levels` counts them
_WINDOW_KINDS: Final[dict[str | None, int]] = {None: 1, "day": 2, "week": 3, "month": 4}
_Refused = tuple[int, "float | None", bool, int, bytes]


class Levels(Protocol):
    """`gateway.limits.levels.Levels`, in either form."""

    def open(self, account_id: bytes, now_s: float, /) -> int: ...

    def change(
        self, number: int, rpm: int | None, tpm: int | None, concurrency: int | None, budget_pusd: int | None, now_s: float, /
    ) -> None: ...

    def window(self, number: int, kind: int, end_s: float, spent_pusd: int, /) -> None: ...

    def headers(self, number: int, now_s: float, /) -> bytes: ...

    def reserve(self, numbers: tuple[int, ...], tokens: int, cost_pusd: int, now_s: float, /) -> Permit | _Refused: ...

    def sweep(self) -> int: ...

    def state(self, number: int, /) -> tuple[int, int, int, float, float]: ...

    def close(self) -> None: ...


class Account:
    """What this process knows of a limited caller. `window_end_s`: of the budget's window; infinite where there is nothing to begin."""

    __slots__ = ("limits", "number", "numbers", "window_end_s")

    def __init__(self, number: int, limits: Limits) -> None:
        self.number = number
        self.numbers: tuple[int, ...] = (number,)
        self.limits = limits
        self.window_end_s = math.inf


class SharedLimiter:
    """Implements `Limiter`. One per process; an account is made at the first request of its caller.

    `spent_pusd(limit_id, window)` says what the ledger knows to be spent in the budget's running window, where no process knows better.
    `clock`: Unix seconds, the same on all processes.
    """

    def __init__(
        self,
        levels: Levels,
        spent_pusd: Callable[[str, str | None], int] = lambda _id, _window: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._levels = levels
        self._spent = spent_pusd
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def reserve(self, limit_id: str, limits: Limits, tokens: int, cost_pusd: int) -> Permit | Refusal:
        account = self._accounts.get(limit_id)
        now_s = self._clock()
        if account is None or account.limits is not limits:
            account = self._follow(account, limit_id, limits, now_s)
            if account is None:
                return FREE
        if account.window_end_s <= now_s:
            self._next_window(account, now_s)
        try:
            decision = self._levels.reserve(account.numbers, tokens, cost_pusd if cost_pusd < MAX_PUSD else MAX_PUSD, now_s)
        except MemoryError:
            raise Unavailable("This host runs as many limited requests as it can count.", code="limits_unavailable") from None
        if type(decision) is not tuple:
            return cast("Permit", decision)
        which, wait_s, final, _, headers = decision
        return Refusal(_KINDS[which], wait_s, final, headers)

    def headers(self, limit_id: str, limits: Limits) -> bytes:
        """Never raises: what an error says must reach its client."""
        account = self._accounts.get(limit_id)
        now_s = self._clock()
        if account is None or account.limits is not limits:
            try:
                account = self._follow(account, limit_id, limits, now_s)
            except Unavailable:
                return b""
        return self._levels.headers(account.number, now_s) if account is not None else b""

    def sweep(self) -> int:
        """Give back what killed processes held. Twice a second."""
        return self._levels.sweep()

    def running(self) -> dict[str, tuple[int, int]]:
        """(running, reserved_pusd) of each account that this process knows and that holds something."""
        states = {limit_id: self._levels.state(account.number) for limit_id, account in self._accounts.items()}
        return {limit_id: (state[0], state[1]) for limit_id, state in states.items() if state[0] or state[1]}

    def close(self) -> None:
        self._levels.close()

    def _follow(self, account: Account | None, limit_id: str, limits: Limits, now_s: float) -> Account | None:
        """The account under the limits in force; None for a caller that never had any."""
        if account is None:
            if not limits.limited:
                return None
            account = Account(self._open(limit_id, now_s), limits)
            self._accounts[limit_id] = account
            self._change(account, limits, now_s)
            self._first_window(account, limit_id, now_s)
        elif account.limits != limits:
            old, new = account.limits.budget, limits.budget
            account.limits = limits
            self._change(account, limits, now_s)
            if new is None or old is None or old.window != new.window:
                self._first_window(account, limit_id, now_s)
        account.limits = limits
        return account

    def _open(self, limit_id: str, now_s: float) -> int:
        try:
            return self._levels.open(hashlib.sha256(limit_id.encode()).digest()[:16], now_s)
        except MemoryError:
            message = "This host counts as many limited keys as it can; a restart forgets those that are not used any more."
            raise Unavailable(message, code="limits_unavailable", retry=False) from None

    def _change(self, account: Account, limits: Limits, now_s: float) -> None:
        budget_pusd = limits.budget.amount_pusd if limits.budget is not None else None
        self._levels.change(account.number, limits.rpm, limits.tpm, limits.concurrency, budget_pusd, now_s)

    def _first_window(self, account: Account, limit_id: str, now_s: float) -> None:
        """The window that is running, with what the ledger says was spent in it; unless another process has begun it already."""
        budget = account.limits.budget
        account.window_end_s = math.inf
        if budget is not None:
            account.window_end_s = _end_s(budget.window, now_s)
            kind = _WINDOW_KINDS[budget.window]
            self._levels.window(account.number, kind, account.window_end_s, self._spent(limit_id, budget.window))

    def _next_window(self, account: Account, now_s: float) -> None:
        budget = account.limits.budget
        account.window_end_s = math.inf
        if budget is not None:
            account.window_end_s = _end_s(budget.window, now_s)
            self._levels.window(account.number, _WINDOW_KINDS[budget.window], account.window_end_s, 0)


def _end_s(window: str | None, now_s: float) -> float:
    end_s = window_end(window, now_s)
    return math.inf if end_s is None else end_s
