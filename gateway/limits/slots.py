"""How many requests one process runs at once, and who waits for a place.

Beyond `limit` a request waits, at most `wait_s`, in order of arrival; beyond `limit` waiting ones it is refused at once. What waits is a
body and its head: nothing is reserved for it and nothing is in the ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class Waiting(Protocol):
    """What waits for a slot."""

    def slot_free(self) -> None:
        """A slot was taken for it."""


class Slots:
    """The places of one process."""

    __slots__ = ("_queue", "limit", "most_waiting", "running", "wait_s")

    def __init__(self, limit: int, wait_s: float) -> None:
        self.limit = limit
        self.most_waiting = limit
        self.wait_s = wait_s
        self.running = 0
        self._queue: deque[Waiting] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def take(self) -> bool:
        """A slot, if one is free and nobody was here before."""
        if self.running >= self.limit or self._queue:
            return False
        self.running += 1
        return True

    def wait(self, waiting: Waiting) -> bool:
        """Stand in line. False where the line is full or nobody may wait."""
        if not self.wait_s or len(self._queue) >= self.most_waiting:
            return False
        self._queue.append(waiting)
        return True

    def forget(self, waiting: Waiting) -> None:
        """It waits no longer."""
        if waiting in self._queue:
            self._queue.remove(waiting)

    def leave(self) -> None:
        """A slot is free: the next in line has it, in a call of its own."""
        if self._queue and self.running <= self.limit:
            asyncio.get_running_loop().call_soon(self._queue.popleft().slot_free)
        else:
            self.running -= 1
