"""The content log from the spool into the database, and out of it again at the end of its time.

A file's rows are one transaction, after which the file goes; cut off anywhere, it is taken again, and what is there stays as it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from gateway.metering.spool import DRAFT, drop_older, finished, read_lines
from gateway.store import changelog, contents, meta
from gateway.store.engine import Connection, Database
from gateway.store.errors import SecretKeyRefused, StoreUnavailable
from gateway.store.secret_key import SecretKeys, fingerprint

logger = structlog.get_logger(__name__)

_ROWS = 100  # deleted in one transaction: each may have megabytes
_DRAFT_S = 60.0
_LOCK = "ship.lock"


class ContentShipper:
    """Of one host's folder. Several may be asked; one at a time works. `kept_s`: what is older is not stored any more.

    `keys`: this host's, or `SecretKeyRefused`. What neither they nor those that the database knows can open is not stored.
    """

    def __init__(self, db: Database, folder: Path, kept_s: float, keys: Callable[[], Awaitable[SecretKeys]]) -> None:
        self._db = db
        self._folder = folder
        self._kept_s = kept_s
        self._keys = keys
        self._failing: set[str] = set()

    async def ship(self) -> int:
        """All files that are finished, or whose writer has ended; how many. Raises `StoreUnavailable`; nothing is lost then."""
        # Before anything else: a file that nothing can be done with, or no database is there for, does not outlive its content.
        if dropped := await asyncio.to_thread(drop_older, self._folder, time.time() - self._kept_s):
            logger.error("files of the content log have run out before they could be shipped", files=dropped)
        paths = finished(self._folder)
        if not paths:
            return 0
        shipped, own = 0, await self._own()
        with _turn(self._folder) as mine:
            for path in paths if mine else ():
                try:
                    await self._take(path, own)
                    shipped += 1
                    self._failing.discard(path.name)
                except StoreUnavailable:
                    raise
                except Exception:  # it stays, and holds up no other
                    if path.name not in self._failing:
                        self._failing.add(path.name)
                        logger.exception("a file of the content log cannot be shipped", file=path.name)
        return shipped

    async def _own(self) -> Collection[str] | None:
        """The fingerprints of this host's keys; None: it has none that are the database's, and cannot judge."""
        try:
            keys = await self._keys()
        except SecretKeyRefused:
            return None
        return {fingerprint(key) for key in (keys.current, *keys.previous)}

    async def _take(self, path: Path, own: Collection[str] | None) -> None:
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            return
        now_s = time.time()
        lines, unfit = await asyncio.to_thread(read_lines, data)
        if unfit:
            logger.warning("lines of the content log are no records and are left out", lines=unfit, file=path.name)
        rows = [row for row in lines if row["at"] >= now_s - self._kept_s]
        for row in rows:  # the clock of whoever served it may be ahead: it must not be kept longer for that, nor outlive an erasure
            row["at"] = min(row["at"], now_s)
        if rows:
            async with self._db.write() as conn:
                await changelog.lock(conn)  # an erasure that is being noted is seen, or sees what is stored here
                await contents.insert_new(conn, rows if own is None else await self._openable(conn, rows, own))
        await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _openable(self, conn: Connection, rows: list[dict[str, Any]], own: Collection[str]) -> list[dict[str, Any]]:
        """Without those that are sealed with a key which was given up as lost."""
        known = {*own, await meta.get(conn, meta.KEY_FINGERPRINT), await meta.get(conn, meta.KEY_SUCCESSOR)}
        kept = [row for row in rows if row["sealed_with"] in known]
        if len(kept) < len(rows):
            logger.warning("logged content that no key opens any more is not stored", requests=len(rows) - len(kept))
        return kept

    async def tidy(self) -> int:
        """Drop what has run out, some at a time. Returns how many requests that were."""
        now_s, dropped = time.time(), 0
        while True:
            async with self._db.write() as conn:
                gone = await contents.delete_older(conn, now_s - self._kept_s, limit=_ROWS)
            dropped += gone
            if gone < _ROWS:
                break
            await asyncio.sleep(0)
        await self._finish_erasures()
        async with self._db.write() as conn:
            await contents.forget_erasures(conn, now_s - self._kept_s)
        for draft in self._folder.glob(f"*{DRAFT}"):  # of a process that was killed as it made one
            if draft.stat().st_mtime < now_s - _DRAFT_S:
                draft.unlink(missing_ok=True)
        return dropped

    async def _finish_erasures(self) -> None:
        """Of those that were cut off."""
        async with self._db.read() as conn:
            wanted = await contents.erasures(conn)
        for kind, entity_id, before_s in wanted:
            while True:
                async with self._db.write() as conn:
                    if await contents.erase(conn, kind, entity_id, before_s, limit=_ROWS) < _ROWS:
                        break


@contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """False: another process ships this folder at this moment."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except BlockingIOError:
        mine = False
    try:
        yield mine
    finally:
        os.close(fd)
