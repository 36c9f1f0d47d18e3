"""Limits per client address on the few endpoints that anybody may call. The only module that imports slowapi.

Only its per-endpoint decorator is used: its middlewares buffer or break streams. Counts live in this process's memory, so N processes
let N times as many through; passwords are checked one at a time anyway (auth.turns). The limits of keys are `limits.local`'s.

The counts are kept here, not in the memory that comes with slowapi: that starts a thread for each request, which then goes through all
addresses at once, and it holds as many of them as ask.
"""

from __future__ import annotations

import functools
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from limits.storage import MovingWindowSupport, Storage
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded

from auth.throttle import customer
from gateway.errors import RateLimited

__all__ = ["MAX_KEYS", "AddressLimits", "Memory", "customer"]

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Awaitable[Any]])
MAX_KEYS = 100_000
_SCHEME = "addresses"
_NO_SETTINGS = str(Path(__file__).with_name("__init__.py"))  # an empty file: by default slowapi would read ./.env


class Memory(Storage, MovingWindowSupport):
    """When each key was last used, of at most `MAX_KEYS` keys: beyond them those go that were used least lately."""

    STORAGE_SCHEME = [_SCHEME]  # noqa: RUF012  # as the base class has it; by defining the class it is known under this name

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **_: object) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._used: OrderedDict[str, deque[float]] = OrderedDict()  # Unix seconds, oldest first

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` uses now, unless that makes more than `limit` in the last `expiry` seconds."""
        now_s = time.time()
        used = self._used.setdefault(key, deque())
        self._used.move_to_end(key)
        while used and not now_s - expiry < used[0] <= now_s:
            used.popleft()
        if len(self._used) > MAX_KEYS:
            self._used.popitem(last=False)
        if len(used) + amount > limit:
            return False
        used.extend([now_s] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """(its oldest use, uses) of the window that ends now."""
        now_s = time.time()
        used = [at for at in self._used.get(key, ()) if now_s - expiry < at <= now_s]
        return (used[0] if used else now_s), len(used)

    def check(self) -> bool:
        return True

    def clear(self, key: str) -> None:
        self._used.pop(key, None)

    def reset(self) -> int:
        many = len(self._used)
        self._used.clear()
        return many

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError  # of other strategies

    def get(self, key: str) -> int:
        return len(self._used.get(key, ()))

    def get_expiry(self, key: str) -> float:
        return time.time()


class AddressLimits:
    """Decorates endpoints. They must be coroutine functions with an argument `request`. `address_of`: whose a request is."""

    def __init__(self, address_of: Callable[[Any], str]) -> None:
        self._limiter = Limiter(
            key_func=lambda request: customer(address_of(request)) or "unknown",
            strategy="moving-window",
            storage_uri=f"{_SCHEME}://",
            config_filename=_NO_SETTINGS,
            key_style="endpoint",
        )
        self._limiter.enabled = True  # whatever RATELIMIT_ENABLED says

    def limit(self, rates: str, unless: Callable[..., Awaitable[bool]] | None = None) -> Callable[[_Endpoint], _Endpoint]:
        """`rates`: such as "20/minute;200/hour". Beyond them: `RateLimited` with the seconds to wait.

        `unless`, called with the endpoint's arguments, is asked only then: who is let through all the same.
        """

        def decorate(endpoint: _Endpoint) -> _Endpoint:
            counted = self._limiter.limit(rates)(endpoint)

            @functools.wraps(endpoint)
            async def limited(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await counted(*args, **kwargs)
                except RateLimitExceeded:
                    if unless is not None and await unless(*args, **kwargs):
                        return await endpoint(*args, **kwargs)
                    wait_s = self._wait_s(kwargs["request"])
                    raise RateLimited("Too many attempts from this address; try again later.", retry_after_s=wait_s) from None

            return limited  # type: ignore[return-value]  # same signature, by functools.wraps

        return decorate

    def _wait_s(self, request: Any) -> int:
        """Until the window that was full has room again."""
        item, names = request.state.view_rate_limit
        reset_at: float = self._limiter.limiter.get_window_stats(item, *names)[0]
        return max(1, math.ceil(reset_at - time.time()))
