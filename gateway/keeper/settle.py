"""Waiting until the books hold what has ended so far."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from gateway.keeper.ship import ship_once
from gateway.metering.ledger import SUFFIX, read_lines, writer_is_dead, written_bytes
from gateway.store.engine import Database
from gateway.store.segments import open_offsets

_POLL_S = 0.05


async def settle(db: Database, run_dir: Path, within_s: float) -> bool:
    """Bring what servers have written to their segments so far into SQL, or wait until the running keeper has; False: not in time,
    or it cannot be done.

    That includes what a process ran that was killed: its segments go once those requests are booked. Raises `StoreUnavailable`.
    """
    written = segment_sizes(run_dir / "ledger")
    dead = left_by_the_dead(run_dir / "ledger")
    deadline_s = time.monotonic() + within_s
    while (complete := await ship_once(db, run_dir)) is None:
        if not any(path.exists() for path in dead) and not await _unshipped(db, written):
            return True
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(_POLL_S)
    return complete


def segment_sizes(folder: Path) -> dict[Path, int]:
    """How far each is written."""
    sizes: dict[Path, int] = {}
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # wholly shipped meanwhile, and removed
            sizes[path] = written_bytes(path)
    return sizes


def left_by_the_dead(folder: Path) -> list[Path]:
    """The last segment of each writer that does not live. (One that lives has given back the locks of those before its last.)"""
    newest = {path.name.rpartition("-")[0]: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    dead: list[Path] = []
    for writer, path in newest.items():
        try:
            if writer_is_dead(path) and max(folder.glob(f"{writer}-*{SUFFIX}")) == path:  # the second look: it may have moved on
                dead.append(path)
        except (FileNotFoundError, ValueError):  # booked meanwhile, and removed
            continue
    return dead


async def _unshipped(db: Database, written: dict[Path, int]) -> bool:
    """Is there an ending in these parts of the segments that SQL does not have? (Beginnings alone are requests that still run.)"""
    async with db.read() as conn:
        offsets = await open_offsets(conn)
    for path, size in written.items():
        start = offsets.get(path.name, 0)
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(max(0, size - start))
        except FileNotFoundError:  # wholly shipped meanwhile, and removed
            continue
        if any(kind == "E" for kind, _ in read_lines(data)):
            return True
    return False
