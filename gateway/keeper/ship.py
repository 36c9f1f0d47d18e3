"""Shipping: ledger segments into SQL, each row once.

A segment's END lines become rows; rows, roll-up deltas and the segment's offset are one transaction, so shipping may be cut off anywhere
and repeated. A BEGIN without an END is settled as `interrupted` once its writer is dead. A segment that is wholly shipped and will not
grow is removed. A line that no database takes is set aside (`gateway.keeper.refused`); what fails with one segment does not stop others.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from gateway.keeper.refused import REFUSED_FILE, set_aside
from gateway.metering.backlog import publish
from gateway.metering.ledger import (
    SUFFIX,
    Lines,
    as_columns,
    forget_slots,
    forget_unnamed,
    interrupted,
    read_lines,
    read_slots,
    sort_lines,
    writer_is_dead,
)
from gateway.metering.record import FIELDS
from gateway.store import booking, segments
from gateway.store.days import Days
from gateway.store.engine import Connection, Database
from gateway.store.errors import StoreUnavailable
from gateway.store.key_uses import Uses
from gateway.store.rows import Columns

logger = structlog.get_logger(__name__)

BATCH_BYTES = 4_000_000
ID_FILE = "id"
_KEY_AT, _STARTED_AT = FIELDS.index("key_id"), FIELDS.index("started_at")
_MOST_S = 1e12  # no day of the calendar is beyond it
_LITTLE_BYTES = 65_536  # what a usual round finds


@dataclass
class _Segment:
    """One segment file as far as it has been read."""

    path: Path
    offset: int
    begun: dict[str, str] = field(default_factory=dict)  # BEGIN lines by request id, whose END has not been seen
    refused: int = 0  # lines of it that were set aside


class Shipper:
    """Ships the segments of one folder. One per host at a time: it holds a lock on the folder."""

    def __init__(self, db: Database, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = db
        self._folder = folder
        self._segments: dict[str, _Segment] = {}
        self._failing: set[str] = set()  # segments that something is wrong with, and the log says so
        self._uses = Uses()
        self._days = Days()
        self._id = ""
        self._lock_fd = os.open(folder / "shipper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """Become the one who ships; False while another process is."""
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._lock_fd)

    async def ship(self) -> int:
        """Ship all that is there now. Returns how many ENDs there were. Raises StoreUnavailable; nothing is lost then."""
        shipped = 0
        names = sorted(path.name for path in self._folder.glob(f"*{SUFFIX}"))
        for name in names:
            try:
                shipped += await self._ship_segment(name)
                self._failing.discard(name)
            except StoreUnavailable:
                raise
            except Exception:
                self._note_failing(name)
        await self._settle_dead(names)
        publish(self._folder, {name: segment.offset for name, segment in self._segments.items()})
        await self._uses.write(self._db)
        return shipped

    @property
    def failing(self) -> bool:
        """Is there anything that could not be shipped the last time?"""
        return bool(self._failing)

    def _note_failing(self, name: str) -> None:
        """While an exception is handled. Its segment stays as it is, and is tried again."""
        if name not in self._failing:
            self._failing.add(name)
            logger.exception("a segment of the ledger cannot be shipped", segment=name)

    async def ship_the_last(self) -> None:
        """As `ship`, and what is known of the use of keys: nothing follows."""
        await self.ship()
        await self._uses.write(self._db, everything=True)

    async def _ship_segment(self, name: str) -> int:
        segment = self._segments.get(name) or await self._open(name)
        ended = 0
        with segment.path.open("rb") as file:
            while True:
                data, all_there_is = _read(file, segment.offset)
                if not data:
                    return ended
                lines = sort_lines(data)
                offset = segment.offset + len(data)
                if lines.columns[0]:
                    ended += await self._book(lines.columns, segment, offset)
                self._take(segment, lines)
                segment.offset = offset
                if all_there_is:
                    return ended  # what came meanwhile waits: a transaction for every few rows would cost more than the rows
                await asyncio.sleep(0)

    async def _open(self, name: str) -> _Segment:
        """A segment seen for the first time by this process: shipped rows are skipped, open BEGINs are found again.

        Of these, those with a row have ended: their END was in a later segment, which is gone already.
        """
        async with self._db.write() as conn:
            offset = await segments.see(conn, name, self._folder_id())
        segment = _Segment(self._folder / name, offset)
        if offset:
            with segment.path.open("rb") as file:
                lines = sort_lines(file.read(offset))
            started_at = _started_at(lines.begun)
            if started_at:
                async with self._db.read() as conn:
                    for request_id in await booking.booked(conn, started_at):
                        del lines.begun[request_id]
            self._take(segment, lines)
        self._segments[name] = segment  # last: one that is half known would pass for one in which nothing is open
        return segment

    def _take(self, segment: _Segment, lines: Lines) -> None:
        """Note what has begun, and that what began before has ended: here or in an earlier segment."""
        segment.begun |= lines.begun
        for request_id in lines.begun_before:
            if segment.begun.pop(request_id, None) is None:
                for other in self._segments.values():
                    other.begun.pop(request_id, None)

    async def _settle_dead(self, names: list[str]) -> None:
        """Segments whose writer is gone: what has no END becomes a row, and the file goes."""
        by_writer: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_writer[name.rpartition("-")[0]].append(name)
        for writer, writer_names in by_writer.items():
            if self._failing.intersection(writer_names):
                continue  # what they say is not all known: nothing of this writer is over
            try:
                await self._settle_writer(writer, writer_names)
                self._failing.discard(writer)
            except StoreUnavailable:
                raise
            except Exception:
                self._note_failing(writer)
        forget_slots(self._folder)
        forget_unnamed(self._folder)

    async def _settle_writer(self, writer: str, writer_names: list[str]) -> None:
        # a segment's lock is given back after the next one has its name: without the second look, a writer that moved on since
        # the folder was listed would pass for dead, and its running requests for interrupted
        dead = writer_is_dead(self._folder / writer_names[-1])
        dead = dead and max(path.name for path in self._folder.glob(f"{writer}-*{SUFFIX}")) == writer_names[-1]
        if dead:
            for name in writer_names:  # it may have written between our reading and its death
                await self._ship_segment(name)
        for name in writer_names if dead else writer_names[:-1]:
            await self._finish(name, dead)

    async def _finish(self, name: str, dead: bool) -> None:
        segment = self._segments[name]
        if segment.begun and not dead:
            return  # its process still runs those requests
        noted = read_slots(self._folder, name) if segment.begun else b""
        rows = self._interrupted(segment, noted)
        if rows:
            await self._book(as_columns(rows), segment, segment.offset)
        async with self._db.write(durable=True) as conn:  # the file is all that a power cut would leave of rows that are not on the disk
            await segments.finish(conn, name)
        segment.path.unlink(missing_ok=True)
        del self._segments[name]

    def _interrupted(self, segment: _Segment, noted: bytes) -> list[list[Any]]:
        """Rows of what has begun and will not end. A line that a kill has spoiled must not keep the others waiting."""
        rows: list[list[Any]] = []
        for begun in segment.begun.values():
            try:
                row = interrupted(begun, noted)
            except Exception as error:
                self._refuse(segment, error, begun=begun)
            else:
                if row:
                    rows.append(row)
        return rows

    async def _book(self, columns: Columns, segment: _Segment, offset: int) -> int:
        """Book rows, and that the segment is shipped up to `offset`. Rows that no database takes are set aside, by halves."""
        try:
            return await self._insert(columns, segment, offset)
        except Exception as error:
            if isinstance(error, StoreUnavailable) or not booking.is_of_the_rows(error):
                raise
            fault = error
        rows = len(columns[0])
        if rows <= 1:
            self._refuse(segment, fault, row=[column[0] for column in columns])
            return await self._insert([[] for _ in columns], segment, offset)
        half = rows // 2
        # sent again, should this be cut off: what is there stays
        booked = await self._book([column[:half] for column in columns], segment, segment.offset)
        return booked + await self._book([column[half:] for column in columns], segment, offset)

    async def _insert(self, columns: Columns, segment: _Segment, offset: int) -> int:
        async with self._booking(columns[_STARTED_AT]) as conn:
            new = await booking.insert_columns(conn, columns, segment.path.name, offset)
        self._uses.note_all(columns[_KEY_AT], columns[_STARTED_AT])
        return new

    def _refuse(self, segment: _Segment, error: Exception, *, row: list[Any] | None = None, begun: str = "") -> None:
        set_aside(self._folder, segment.path.name, error, row=row, begun=begun)
        if not segment.refused:
            logger.error("lines of the ledger that cannot be booked are set aside", segment=segment.path.name, file=REFUSED_FILE)
        segment.refused += 1

    @asynccontextmanager
    async def _booking(self, started_at: list[float]) -> AsyncIterator[Connection]:
        """A transaction in which rows of these moments can be booked: their days have tables."""
        await self._days.ready(self._db, started_at)
        try:
            async with self._db.write() as conn:
                yield conn
        except BaseException:
            self._days.forget()  # a table may have been dropped
            raise

    def _folder_id(self) -> str:
        """Tells this folder from those of other hosts. Written once; whoever holds the lock may."""
        if not self._id:
            file = self._folder / ID_FILE
            try:
                self._id = file.read_text("ascii").strip()
            except FileNotFoundError:
                self._id = secrets.token_hex(8)
                file.write_text(self._id, "ascii")
        return self._id


def _started_at(begun: dict[str, str]) -> dict[str, float]:
    """When the requests of these BEGIN lines began, by their ids; without those whose line a kill has spoiled."""
    found: dict[str, float] = {}
    for _, fields in read_lines("\n".join(begun.values()).encode()):
        request_id, at_s = fields["request_id"], fields["started_at"]
        if request_id in begun and type(at_s) is float and abs(at_s) < _MOST_S:
            found[request_id] = at_s
    return found


def _read(file: BinaryIO, offset: int) -> tuple[bytes, bool]:
    """Whole lines from `offset` on, as many as make a batch; and whether these were all that is there."""
    file.seek(offset)
    data = file.read(_LITTLE_BYTES)
    content = data.find(b"\0")
    if content < 0 and len(data) == _LITTLE_BYTES:
        data += file.read(BATCH_BYTES - _LITTLE_BYTES)
        content = data.find(b"\0", _LITTLE_BYTES)
    if content < 0:
        content = len(data)
    return data[: data.rfind(b"\n", 0, content) + 1], content < BATCH_BYTES


async def ship_once(db: Database, run_dir: Path) -> bool | None:
    """Ship everything now, if no keeper does: None where one does. False: some of it cannot be shipped, and the log says why."""
    shipper = Shipper(db, run_dir / "ledger")
    try:
        if not shipper.acquire():
            return None
        await shipper.ship_the_last()
        return not shipper.failing
    finally:
        shipper.close()
