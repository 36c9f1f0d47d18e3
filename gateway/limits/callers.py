"""Who is limited, as one process knows them: each of them once, so that what is changed for one holds for all who refer to it."""

from __future__ import annotations

from collections.abc import Iterator

from auth.principal import Limited, Limits


class Callers:
    """By limit id. Whoever had limits once is kept when they are taken away, and counted on: they may be given back in the same window."""

    def __init__(self) -> None:
        self._known: dict[str, Limited] = {}

    def put(self, limit_id: str, limits: Limits) -> Limited | None:
        """These are in force now. None: it never had any."""
        known = self._known.get(limit_id)
        if known is not None:
            if known.limits != limits:
                known.limits = limits
        elif limits.limited:
            known = self._known[limit_id] = Limited(limit_id, limits)
        return known

    def kept(self, limit_id: str) -> Limited:
        """One that is referred to whether it has limits or not."""
        known = self._known.get(limit_id)
        if known is None:
            known = self._known[limit_id] = Limited(limit_id, Limits())
        return known

    def forget(self, limit_id: str) -> None:
        """It is gone for good."""
        self._known.pop(limit_id, None)

    def limits(self) -> dict[str, Limits]:
        """What is in force, by limit id."""
        return {limit_id: known.limits for limit_id, known in self._known.items()}

    def __iter__(self) -> Iterator[Limited]:
        return iter(self._known.values())
