"""Long lists, made a piece at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

PIECE = 100
_Of = TypeVar("_Of")
_Made = TypeVar("_Made")


async def in_pieces(make: Callable[[_Of], _Made], of: Sequence[_Of]) -> list[_Made]:
    """`make` of each. What is relayed has its turn in between: a thousand lines would hold up the loop for milliseconds."""
    made = list(map(make, of[:PIECE]))
    for start in range(PIECE, len(of), PIECE):
        await asyncio.sleep(0)
        made += map(make, of[start : start + PIECE])
    return made
