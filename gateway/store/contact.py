"""Is the database still there? How a process that lives from its tables knows how old they may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.store.errors import StoreUnavailable

STALE_S = 86_400.0
_SLOW_S = 2.0  # a database that says nothing for so long (a cut line) is as good as away


class Contact:
    """Kept by whoever reads the change log; each try to do so is a block of `made`.

    `away`: the last try failed, or hangs. What is not in the tables may then exist all the same.
    `stale`: that has gone on for `stale_s`. A key revoked since then would still be in the tables: they are no longer to be trusted.
    """

    def __init__(self, stale_s: float = STALE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.stale = False  # looked at before every request: an attribute, kept by `made`
        self._stale_s = stale_s
        self._clock = clock
        self._last_s = clock()  # the last time that the database was heard from
        self._failed = False
        self._asked_s: float | None = None  # a try is under way since

    @property
    def away(self) -> bool:
        return self._failed or (self._asked_s is not None and self._clock() - self._asked_s > _SLOW_S)

    @contextmanager
    def made(self) -> Iterator[None]:
        """Around one try. It failed where the block raises `StoreUnavailable`; another error is not the database's absence."""
        self._asked_s = self._clock()
        try:
            yield
        except StoreUnavailable:
            self._failed = True
            self.stale = self._clock() - self._last_s > self._stale_s
            raise
        else:
            self._failed = self.stale = False
            self._last_s = self._clock()
        finally:
            self._asked_s = None
