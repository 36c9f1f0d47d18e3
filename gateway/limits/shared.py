"""Limits over all server processes of a host: the levels are in shared memory (`limits.levels`), the decision is one step on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from auth.principal import Limited, Limits
from gateway.errors import Unavailable
from gateway.limits.base import FREE, Permit, Refusal
from gateway.limits.budget import MAX_PUSD, reset_number, window_end
from gateway.limits.standing import Standing, account_id, standing

# as `levels` counts them
_KINDS: Final = ("requests", "tokens", "requests_day", "tokens_day", "concurrency", "budget", "token_budget")
_FIRST_BUDGET: Final = 5
_WHOSE: Final = ("key", "user", "team", "model")
_MONEY: Final = 0
_TOKENS: Final = 1
_WINDOW_KINDS: Final[dict[str | None, int]] = {None: 1, "day": 2, "week": 3, "month": 4}
_KINDS_OF_WINDOWS: Final = 4
_Refused = tuple[int, "float | None", bool, int, bytes]
_Limit = int | None
_Limits = tuple[_Limit, _Limit, _Limit, _Limit, _Limit, _Limit, _Limit, _Limit]
_NO_WINDOW: Final = "none"  # there is no such budget; None is one for ever


class Levels(Protocol):
    """`gateway.limits.levels.Levels`, in either form."""

    def open(self, account_id: bytes, now_s: float, /) -> int: ...

    def find(self, account_id: bytes, /) -> int | None: ...

    def change(self, number: int, limits: _Limits, whose: int, now_s: float, /) -> None: ...

    def window(self, number: int, which: int, kind: int, end_s: float, spent: int, /) -> None: ...

    def headers(self, numbers: tuple[int, ...], now_s: float, /) -> bytes: ...

    def reserve(self, numbers: tuple[int, ...], tokens: int, cost_pusd: int, now_s: float, /) -> Permit | _Refused: ...

    def sweep(self) -> int: ...

    def state(self, number: int, /) -> tuple[int, int, int, int, int, float, float, float, float, float, float]: ...

    def close(self) -> None: ...


class Account:
    """What this process knows of one that is limited. `window_end_s`: when the first window of a budget ends; infinite where none does."""

    __slots__ = ("ends_s", "limits", "number", "numbers", "whose", "window_end_s")

    def __init__(self, number: int, whose: int, limits: Limits) -> None:
        self.number = number
        self.numbers: tuple[int, ...] = (number,)
        self.whose = whose
        self.limits = limits
        self.ends_s = [math.inf, math.inf]
        self.window_end_s = math.inf


class SharedLimiter:
    """Implements `Limiter`. One per process; an account is made at the first request of its caller.

    `spent(limit_id, window)`: the money (1e-12 USD) and the tokens that the ledger knows to be spent in a budget's running window, where
    no process knows better. `clock`: Unix seconds, the same on all processes. `stopped`: (limit id, budget or token_budget) of those that
    have refused a request, until somebody takes the set away.
    """

    def __init__(
        self,
        levels: Levels,
        spent: Callable[[str, str | None], tuple[int, int]] = lambda _id, _window: (0, 0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._levels = levels
        self._spent = spent
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self.stopped: set[tuple[str, str]] = set()

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal:
        if not callers:
            return FREE
        now_s = self._clock()
        numbers = self._numbers(callers, now_s)
        if not numbers:
            return FREE
        try:
            decision = self._levels.reserve(numbers, tokens, cost_pusd if cost_pusd < MAX_PUSD else MAX_PUSD, now_s)
        except MemoryError:
            raise Unavailable("This host runs as many limited requests as it can count.", code="limits_unavailable") from None
        if type(decision) is not tuple:
            return cast("Permit", decision)
        which, wait_s, final, place, headers = decision
        limit_id, whose = self._whose(numbers[place], callers)
        if which >= _FIRST_BUDGET:
            self.stopped.add((limit_id, _KINDS[which]))
        return Refusal(_KINDS[which], wait_s, final, headers, whose)

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        """Never raises: what an error says must reach its client."""
        if not callers:
            return b""
        now_s = self._clock()
        try:
            numbers = self._numbers(callers, now_s)
        except Unavailable:
            return b""
        return self._levels.headers(numbers, now_s) if numbers else b""

    def sweep(self) -> int:
        """Give back what killed processes held. Twice a second."""
        return self._levels.sweep()

    def running(self) -> dict[str, tuple[int, int]]:
        """(running, reserved_pusd) of each account that this process knows and that holds something."""
        states = {limit_id: self._levels.state(account.number) for limit_id, account in self._accounts.items()}
        return {limit_id: (state[0], state[1]) for limit_id, state in states.items() if state[0] or state[1] or state[3]}

    def standing(self, limit_id: str) -> Standing | None:
        """Of one whose limits some process of this host has counted since it started."""
        return standing(self._levels, limit_id, self._clock())

    def forget(self) -> None:
        """Others have counted meanwhile. Whoever comes next is looked up as if for the first time, with what `spent` says then."""
        self._accounts = {}

    def known(self) -> list[str]:
        """The limit ids of those that have accounts in this process."""
        return list(self._accounts)

    def put_again(self, limit_id: str, limits: Limits) -> None:
        """These are in force, whatever a process has said since that was behind with its reading."""
        account = self._accounts.get(limit_id)
        if account is not None:
            account.limits = limits
            self._put(account, limit_id, self._clock())

    def close(self) -> None:
        self._levels.close()

    def _numbers(self, callers: tuple[Limited, ...], now_s: float) -> tuple[int, ...]:
        """Their accounts, under the limits in force and in the windows that run; without those that never had any limits."""
        if len(callers) == 1:
            account = self._account(callers[0], now_s)
            return account.numbers if account is not None else ()
        found: list[int] = []
        for caller in callers:
            account = self._account(caller, now_s)
            if account is not None:
                found.append(account.number)
        return tuple(found)

    def _account(self, caller: Limited, now_s: float) -> Account | None:
        limits = caller.limits
        account = self._accounts.get(caller.limit_id)
        if account is None or account.limits is not limits:
            account = self._follow(account, caller.limit_id, limits, now_s)
            if account is None:
                return None
        if account.window_end_s <= now_s:
            self._next_windows(account, now_s)
        return account

    def _whose(self, number: int, callers: tuple[Limited, ...]) -> tuple[str, str]:
        """(limit id, what it is the limit of) of the one with this account."""
        for caller in callers:
            account = self._accounts.get(caller.limit_id)
            if account is not None and account.number == number:
                return caller.limit_id, _WHOSE[account.whose]
        return callers[0].limit_id, _WHOSE[0]

    def _follow(self, account: Account | None, limit_id: str, limits: Limits, now_s: float) -> Account | None:
        """The account under the limits in force; None for a caller that never had any."""
        if account is None:
            if not limits.limited:
                return None
            account = Account(self._open(limit_id, now_s), _whose_is(limit_id), limits)
            self._put(account, limit_id, now_s)
            self._accounts[limit_id] = account
        elif account.limits != limits:
            old, account.limits = account.limits, limits
            self._change(account, now_s)
            for which in (_MONEY, _TOKENS):
                window = _window_of(limits, which)
                if window != _window_of(old, which) or limits.since != old.since:
                    self._first_window(account, limit_id, which, window, now_s)
        account.limits = limits
        return account

    def _open(self, limit_id: str, now_s: float) -> int:
        try:
            return self._levels.open(account_id(limit_id), now_s)
        except MemoryError:
            message = "This host counts as many limited keys as it can; a restart forgets those that are not used any more."
            raise Unavailable(message, code="limits_unavailable", retry=False) from None

    def _put(self, account: Account, limit_id: str, now_s: float) -> None:
        """Its limits are in force, and the windows that they have."""
        self._change(account, now_s)
        self._first_window(account, limit_id, _MONEY, _window_of(account.limits, _MONEY), now_s)
        self._first_window(account, limit_id, _TOKENS, _window_of(account.limits, _TOKENS), now_s)

    def _change(self, account: Account, now_s: float) -> None:
        limits = account.limits
        budget_pusd = limits.budget.amount_pusd if limits.budget is not None else None
        tokens = limits.token_budget.tokens if limits.token_budget is not None else None
        all_of_them = (limits.rpm, limits.tpm, limits.rpd, limits.tpd, limits.concurrency, budget_pusd, tokens, limits.soft)
        self._levels.change(account.number, all_of_them, account.whose, now_s)

    def _first_window(self, account: Account, limit_id: str, which: int, window: str | None, now_s: float) -> None:
        """The window that is running, with what the ledger says was spent in it; unless another process has begun it already."""
        account.ends_s[which] = math.inf
        if window != _NO_WINDOW:
            account.ends_s[which] = end_s = _end_s(window, now_s)
            self._levels.window(account.number, which, _kind(window, account.limits), end_s, self._spent(limit_id, window)[which])
        account.window_end_s = min(account.ends_s)

    def _next_windows(self, account: Account, now_s: float) -> None:
        for which in (_MONEY, _TOKENS):
            window = _window_of(account.limits, which)
            if account.ends_s[which] <= now_s and window != _NO_WINDOW:
                account.ends_s[which] = end_s = _end_s(window, now_s)
                self._levels.window(account.number, which, _kind(window, account.limits), end_s, 0)
        account.window_end_s = min(account.ends_s)


def running_window(limits: Limits, which: int, now_s: float) -> tuple[int, float]:
    """(kind, end) of the window of the budget of money (0) or of tokens (1), which there is, as levels name it."""
    window = _window_of(limits, which)
    return _kind(window, limits), _end_s(window, now_s)


def _whose_is(limit_id: str) -> int:
    for whose in (1, 2, 3):
        if limit_id.startswith(_WHOSE[whose] + ":"):
            return whose
    return 0


def _window_of(limits: Limits, which: int) -> str | None:
    if which == _MONEY:
        return limits.budget.window if limits.budget is not None else _NO_WINDOW
    return limits.token_budget.window if limits.token_budget is not None else _NO_WINDOW


def _kind(window: str | None, limits: Limits) -> int:
    """A budget that was set back is in a window of another kind: what was spent in it is counted anew."""
    return _WINDOW_KINDS[window] + _KINDS_OF_WINDOWS * reset_number(limits.since)


def _end_s(window: str | None, now_s: float) -> float:
    end_s = window_end(window, now_s)
    return math.inf if end_s is None else end_s
