"""What the keeper's probe last said about a backend, and for how long that holds."""

from __future__ import annotations


class Verdict:
    """Held by `routing.health.Health`. Times are seconds of one monotonic clock. `reason`: why it is dead, one fixed word."""

    __slots__ = ("_ok", "_since_s", "_valid_until_s", "reason")

    def __init__(self) -> None:
        self._ok = False
        self._since_s = 0.0
        self._valid_until_s = 0.0
        self.reason = ""

    def alive(self, now_s: float) -> bool | None:
        """True, False, or None: nothing probes it, or the last word is too old."""
        return self._ok if now_s < self._valid_until_s else None

    def dead(self, now_s: float) -> bool:
        return not self._ok and now_s < self._valid_until_s

    def since_s(self) -> float | None:
        """When it became what it is; None: there is none."""
        return self._since_s or None

    def dead_until_s(self) -> float:
        """When a word of death ceases to hold unless it is said again; 0: there is none."""
        return 0.0 if self._ok else self._valid_until_s

    def say(self, ok: bool, now_s: float, valid_s: float, reason: str) -> bool:
        """Take a new one. True: it was dead, and is not any more."""
        revived = ok and not self._ok and self._since_s != 0.0
        if self.alive(now_s) is not ok:
            self._since_s = now_s
        self._ok = ok
        self._valid_until_s = now_s + valid_s
        self.reason = reason
        return revived

    def clear(self) -> None:
        """Nothing probes it any more."""
        self._valid_until_s = self._since_s = 0.0
        self.reason = ""
