"""Limits per client address on the few endpoints that anybody may call. The only module that imports slowapi.

Only its per-endpoint decorator is used: its middlewares buffer or break streams. Counts live in this process's memory, so N processes
let N times as many through; passwords are checked one at a time anyway (auth.passwords). The limits of keys are `limits.local`'s.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from slowapi import Limiter
from slowapi.errors import RateLimitExceeded

from gateway.errors import RateLimited

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Awaitable[Any]])
_NO_SETTINGS = str(Path(__file__).with_name("__init__.py"))  # an empty file: by default slowapi would read ./.env


class AddressLimits:
    """Decorates endpoints. They must be coroutine functions with an argument `request`. `address_of`: whose a request is."""

    def __init__(self, address_of: Callable[[Any], str]) -> None:
        self._limiter = Limiter(
            key_func=lambda request: customer(address_of(request)),
            strategy="moving-window",
            storage_uri="memory://",
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


def customer(address: str) -> str:
    """What stands for one customer in limits: the address, in its normal form; of IPv6 the /64, which is what one customer is given."""
    if ":" not in address:
        return address or "unknown"
    try:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    except ValueError:
        return "unknown"
