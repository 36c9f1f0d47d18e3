"""A limiter with levels of its own, for tests that need no second process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from gateway.limits.levels import Levels
from gateway.limits.shared import SharedLimiter


def own_limiter(
    spent: Callable[[str, str | None], tuple[int, int]] = lambda _id, _window: (0, 0), clock: Callable[[], float] = time.time
) -> SharedLimiter:
    """Its file has no name: it goes with the limiter."""
    return SharedLimiter(own_levels(), spent, clock)


def own_levels(form: Callable[[str], Levels] = Levels) -> Levels:
    fd = os.memfd_create("levels")
    try:
        return form(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
