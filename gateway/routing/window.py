"""How the attempts of the last 30 seconds ended."""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 30


class Window:
    """Good and bad ends, counted in slots of one second: bounded memory at any rate. Time is passed in and does not go back."""

    __slots__ = ("_bad", "_good", "_second", "bad", "good")

    def __init__(self) -> None:
        self.good = 0
        self.bad = 0
        self._second = 0
        self._good: list[int] = [0] * WINDOW_S
        self._bad: list[int] = [0] * WINDOW_S

    def add(self, ok: bool, now_s: float) -> None:
        self.advance(now_s)
        at = self._second % WINDOW_S
        if ok:
            self._good[at] += 1
            self.good += 1
        else:
            self._bad[at] += 1
            self.bad += 1

    def advance(self, now_s: float) -> None:
        """Drop what is older than the window."""
        second = int(now_s)
        if second <= self._second:
            return
        if second - self._second >= WINDOW_S:
            self.clear()
        else:
            for passed in range(self._second + 1, second + 1):
                at = passed % WINDOW_S
                self.good -= self._good[at]
                self.bad -= self._bad[at]
                self._good[at] = self._bad[at] = 0
        self._second = second

    def clear(self) -> None:
        if self.good or self.bad:
            self._good = [0] * WINDOW_S
            self._bad = [0] * WINDOW_S
            self.good = self.bad = 0
