"""What limits have counted against the books, now and then: what was never counted on this host is added, and what a killed process had
reserved comes off as far as it was not used.

A budget's window may have been begun with what the books had, while a request was still on its way there: the larger figure holds
(`Levels.reconcile`). Nothing is lowered but what killed processes had reserved, by what the books have of it, and those know for certain:

1. First it is noted what was counted, and how much of that such reservations are.
2. Then `_LAG_S` go by: a request is counted and written to its segment in one breath, in whichever order.
3. Then all that is written is waited for, and all that dead writers have left: their requests are rows before their segments go.
4. Only then the books are read. They have whatever the first look saw, so what they have less than it is what was never used.

A window that begins after now was begun while the clock was ahead: the running one takes its place, with what the books have of it.

What ends in the meantime is not in what was noted, and so does not come off. Where the third step takes too long the larger figure is all
that is taken over. One process of a host does this at a time, by the lock of a file; two would take the same off twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

from auth.principal import Limits
from gateway.keeper.settle import left_by_the_dead, segment_sizes
from gateway.limits.budget import window_start
from gateway.limits.shared import running_window
from gateway.limits.standing import account_id
from gateway.metering.backlog import read_offsets
from gateway.store.engine import Database
from gateway.store.spending import Spent, spent_in_windows

WITHIN_S = 10.0
_LAG_S = 1.0
_POLL_S = 0.25
_CLOCKS_S = 60.0  # a window that begins later than this was begun by a clock that was wrong, and set right since
_AT_ONCE = 100
_Counted = tuple[int, float, int, int]
_Noted = tuple[int, tuple[_Counted, _Counted]]  # its account; what was counted of the budget of money, and of that of tokens


class Levels(Protocol):
    """`gateway.limits.levels.Levels`, as far as it is needed."""

    def find(self, account_id: bytes, /) -> int | None: ...

    def window(self, number: int, which: int, kind: int, end_s: float, spent: int, back: bool, /) -> None: ...

    def counted(self, number: int, which: int, /) -> _Counted: ...

    def reconcile(self, number: int, which: int, counted: _Counted, booked: int, /) -> None: ...


async def reconcile(
    db: Database, run_dir: Path, levels: Levels, limits: Mapping[str, Limits], within_s: float = WITHIN_S, lag_s: float = _LAG_S
) -> None:
    """Of all of these (by limit id) that have budgets and were counted on this host. Raises `StoreUnavailable`."""
    with _alone(run_dir / "reconcile.lock") as is_alone:
        if not is_alone:
            return
        noted = await _note(levels, limits)
        if not noted:
            return
        await asyncio.sleep(lag_s)
        complete = await _all_booked(run_dir / "ledger", within_s)
        rest = iter(noted)
        while some := {limit_id: limits[limit_id] for limit_id in islice(rest, _AT_ONCE)}:
            now_s = time.time()
            async with db.read() as conn:
                booked = await spent_in_windows(conn, some, now_s)
            for limit_id, of in some.items():
                _take_over(levels, noted[limit_id], of, limit_id, booked, now_s, complete)


async def _note(levels: Levels, limits: Mapping[str, Limits]) -> dict[str, _Noted]:
    """What was counted, of those that have budgets."""
    noted: dict[str, _Noted] = {}
    for done, (limit_id, of) in enumerate(limits.items(), 1):
        if done % _AT_ONCE == 0:
            await asyncio.sleep(0)
        if of.budget is None and of.token_budget is None:
            continue
        number = levels.find(account_id(limit_id))
        if number is not None:
            noted[limit_id] = number, (levels.counted(number, 0), levels.counted(number, 1))
    return noted


def _take_over(
    levels: Levels, noted: _Noted, of: Limits, limit_id: str, booked: Mapping[tuple[str, str | None], Spent], now_s: float, complete: bool
) -> None:
    number, of_both = noted
    for which, (budget, (kind, end_s, spent, lost)) in enumerate(zip((of.budget, of.token_budget), of_both, strict=True)):
        if budget is None:
            continue
        now_kind, now_end_s = running_window(of, which, now_s)
        spent_by_books = booked[limit_id, budget.window][which]
        if (kind, end_s) == (now_kind, now_end_s):
            levels.reconcile(number, which, (kind, end_s, spent, lost if complete else 0), spent_by_books)
        elif kind == now_kind and (end_s <= now_s or window_start(budget.window, end_s - 1) > now_s + _CLOCKS_S):
            levels.window(number, which, kind, now_end_s, spent_by_books, end_s > now_s)


async def _all_booked(folder: Path, within_s: float) -> bool:
    """Wait until the books have what is written now, and what dead processes left."""
    deadline_s = time.monotonic() + within_s
    written, dead = await asyncio.to_thread(segment_sizes, folder), left_by_the_dead(folder)
    while True:
        offsets = read_offsets(folder)
        waiting = {path for path, size in written.items() if offsets.get(path.name, 0) < size}
        if not any(path.exists() for path in waiting.union(dead)):
            return True
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(_POLL_S)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)
