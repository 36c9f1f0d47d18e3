"""The seam of limits: reserve before a request, settle after it, exactly once.

"L per minute" is a bucket of L that starts full and refills continuously at L per minute, so that in any t seconds at most L + L*t/60 are
admitted; "L per day" is the same over 86,400 s. A request is counted under its key, user, team and model in one step: all of them have
room for it, or nothing is taken from any. Tokens are reserved by an estimate and settled by what was used: reserved tokens never pass
the bucket, what comes out above is owed and paid from later refill. A budget's spent + reserved never passes it, be it of money or of
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from auth.principal import Limited
from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not now. `kind`: requests, tokens, requests_day, tokens_day, concurrency, budget, token_budget. `whose` limit it is: key, user,
    team, model. `retry_after_s` None: waiting does not help (or nobody knows how long).

    `final`: waiting for a rate to refill does not help either; under a rate the same request can never be admitted, under a budget not
    in this window. Where several refuse, a final one is named, else the one with the longest wait.
    """

    kind: str
    retry_after_s: float | None
    final: bool = False
    headers: bytes = b""
    whose: str = "key"


class Permit(Protocol):
    """A reservation. `headers`: the x-ratelimit and x-budget-warning lines for the answer (empty without limits)."""

    headers: bytes

    def settle(self, tokens: int, cost_pusd: int) -> None:
        """The request is over and used this much. Frees its slot and gives back what it did not use. Further calls do nothing."""


class Waits(Protocol):
    """Who waits for a decision."""

    def decided(self, decision: Permit | Refusal | GatewayError) -> None:
        """A permit is the waiting one's from now on. An error: nobody can decide now."""


class Pending:
    """A decision that somebody else takes, a moment later: over several hosts. It comes in any case, and within a bounded time."""

    __slots__ = ("_waits",)

    def __init__(self) -> None:
        self._waits: Waits | None = None

    def wait(self, waits: Waits) -> None:
        """Called at once by who asked. `decided` follows, never before this returns."""
        self._waits = waits

    def forget(self) -> None:
        """Nobody waits any longer: a permit that comes yet is given back."""
        self._waits = None

    def decide(self, decision: Permit | Refusal | GatewayError) -> None:
        waits, self._waits = self._waits, None
        if waits is not None:
            waits.decided(decision)
        elif not isinstance(decision, Refusal) and not isinstance(decision, GatewayError):
            decision.settle(0, 0)


class Limiter(Protocol):
    """Decides in one step over all limits of a request. `callers`: at most four, and there may be none."""

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal | Pending:
        """Take one request, `tokens` and `cost_pusd` from all of them at once, or nothing at all."""

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        """The same lines for an answer that nothing was reserved for."""


class FreePermit:
    """What a caller without limits gets."""

    __slots__ = ()
    headers = b""

    def settle(self, tokens: int, cost_pusd: int) -> None:
        """Nothing was reserved."""


class NullLimiter:
    """Admits everything: for measuring what limits cost, never composed by the server."""

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal:
        return FREE

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        return b""


FREE = FreePermit()
