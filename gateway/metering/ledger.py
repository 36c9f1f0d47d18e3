"""The ledger on disk: append-only segments, one writer each; BEGIN at admission and END at every ending.

A segment is a file of fixed size, allocated as a whole and mapped into memory: an append is a copy of a few hundred bytes, survives
`kill -9` (the pages are the kernel's), and cannot meet a full disk. Lines are JSON arrays that end in a newline; behind the last one
there are zero bytes. An END line holds the whole record, so that shipping needs no BEGIN; a BEGIN without an END tells of a request that
its process did not live to finish. Each BEGIN reserves room for its END: when no further segment can be had, because the disk is
full or segments take as much of it as they may, new requests are refused (LedgerFull) and running ones are still accounted for. How far
those have come stands beside the segments (`gateway.metering.progress`).

The writer holds a lock on its segment as long as it lives: whoever gets that lock knows that the writer is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.errors import LedgerFull
from gateway.metering.lines import begin_line, end_line, parse_lines
from gateway.metering.progress import SUFFIX as SLOTS_SUFFIX
from gateway.metering.progress import Progress, Reached, reached
from gateway.metering.record import FIELDS, MAX_COST_PUSD, UsageRecord
from gateway.metering.tried import NOT_TOLD

SUFFIX: Final = ".seg"
SEGMENT_BYTES: Final = 16_000_000
END_BYTES: Final = 2048  # no END line is longer: what else it may hold is bounded, and the parts that are long are cut if need be
MAX_BYTES: Final = 4_000_000_000
_BEGIN_FIELDS: Final = 8  # request_id .. client_request_id: what is known at admission
_BEGIN_LINE: Final = 16  # values of a BEGIN line: its mark, those, and what an interrupted request is made of
_LOOK_S: Final = 0.2  # between two looks at how much of the disk the segments of all writers take, while that is too much
_UNNAMED_S: Final = 10.0  # between a file's making and its lock there is a moment
_OFFSETS_NEW: Final = "shipped.new"  # of `backlog.publish`, which takes no lock


class SegmentWriter:
    """Appends to this process's segment, and begins a new one when it is full.

    `segment_bytes`: size of a segment. `max_bytes`: what the segments of all writers in the folder may take together (looked at when a
    new one is begun, so a starting writer has its first in any case); 0: whatever the disk holds.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES, max_bytes: int = MAX_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._stem = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._number = 0
        self._reserved = 0  # bytes kept free for the ENDs of running requests
        self._full_until_s = 0.0
        self._behind: list[int] = []  # descriptors of segments that were left and are not known to be on the disk
        self._syncs = False
        self._named = False  # a segment has got its name, and the folder is not known to be on the disk since
        self.progress = Progress(folder / f"{self._stem}{SLOTS_SUFFIX}")
        self._open()

    def _open(self) -> None:
        """A segment gets its name only once it is locked and mapped: a reader must never take it for a dead writer's."""
        size = max(self._segment_bytes, 2 * self._reserved)
        path = self._folder / f"{self._stem}-{self._number:06d}{SUFFIX}"
        unnamed = path.with_suffix(".new")
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.posix_fallocate(fd, 0, size)
            memory = mmap.mmap(fd, size)
            unnamed.rename(path)
        except OSError:
            os.close(fd)
            unnamed.unlink(missing_ok=True)
            raise
        self._named = True
        self._number += 1
        self._fd, self._memory, self._at, self._size = fd, memory, 0, size

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int, prompt_tokens: int = 0) -> int:
        """Admission; returns the request's slot. LedgerFull if there is no room for it and for its END: the request must not run."""
        r = record
        slot = self.progress.take(r.request_id)
        try:
            data = begin_line(
                r.request_id, r.started_at, r.operation, r.key_id, r.user_id, r.model, r.revision, r.client_request_id,
                reserved_tokens, reserved_pusd, slot, prompt_tokens, r.team_id, r.experiment, r.arm,
            )  # fmt: skip
            end = self._at + len(data)
            if end + self._reserved + END_BYTES > self._size:
                self._rotate()
                end = len(data)
            self._memory.write(data)
        except BaseException:
            self.progress.give_back(slot)
            raise
        self._at = end
        self._reserved += END_BYTES
        return slot

    def end(self, record: UsageRecord, slot: int = -1) -> None:
        """The ending, whatever it was. Its room was reserved by `begin`."""
        data = _end_line(record, record.client_request_id, record.backend, record.tried)
        if len(data) > END_BYTES:
            data = _shorter_end_line(record)
        self._memory.write(data)
        self._at += len(data)
        self._reserved -= END_BYTES
        self.progress.give_back(slot)

    def _rotate(self) -> None:
        """On to a new segment. The old one stays in place as it is if there is none to be had."""
        fd, memory = self._fd, self._memory
        try:
            if self._max_bytes and self._too_much():
                raise LedgerFull("The gateway's ledger has no room left; try again later.", retry_after_s=10)
            self._open()
        except OSError:
            raise LedgerFull("The gateway cannot write its ledger now; try again later.", retry_after_s=10) from None
        memory.close()
        if self._syncs:
            self._behind.append(fd)
        else:
            os.close(fd)

    def _too_much(self) -> bool:
        """Would one more segment be more than there may be? Where it would, that holds for a moment: refusing must stay cheap."""
        now_s = time.monotonic()
        if now_s < self._full_until_s:
            return True
        if used_bytes(self._folder) + max(self._segment_bytes, 2 * self._reserved) <= self._max_bytes:
            return False
        self._full_until_s = now_s + _LOOK_S
        return True

    def keep_for_sync(self) -> None:
        """From now on, segments that are left stay open until `sync` has seen to them."""
        self._syncs = True

    def sync(self) -> None:
        """Bring what is written so far onto the disk: for a thread beside the one that writes."""
        while self._behind:
            fd = self._behind[0]
            os.fdatasync(fd)  # where it fails, the segment is tried again
            del self._behind[0]
            os.close(fd)
        for fd in (self._fd, self.progress.fd):
            os.fdatasync(fd)
        if self._named:
            self._named = False  # before: the next one may get its name meanwhile
            try:
                _sync_folder(self._folder)
            except OSError:
                self._named = True
                raise

    def close(self) -> None:
        """Last act of the process; gives the lock back."""
        self._memory.close()
        os.close(self._fd)
        for fd in self._behind:
            os.close(fd)
        self.progress.close()


def _sync_folder(folder: Path) -> None:
    """The names in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _end_line(record: UsageRecord, client_request_id: str | None, backend: str | None, tried: str | None) -> bytes:
    r = record
    return end_line(
        r.request_id, r.started_at, r.operation, r.key_id, r.user_id, r.model, r.revision, client_request_id,
        backend, r.attempts, r.status, r.ending, r.prompt_tokens, r.completion_tokens, r.token_source, r.cost_pusd,
        r.duration_ms, r.ttft_ms, r.queue_ms, r.connect_ms, r.experiment, r.arm,
        r.team_id, r.cached_tokens, r.reasoning_tokens, r.price, tried,
    )  # fmt: skip


def _shorter_end_line(record: UsageRecord) -> bytes:
    """Without the client's own id, and if need be without the attempts that failed and with the head of the backend's name."""
    backend, tried = record.backend, record.tried
    data = _end_line(record, None, backend, tried)
    if len(data) > END_BYTES and tried is not None:
        data = _end_line(record, None, backend, NOT_TOLD)
    if len(data) > END_BYTES and backend is not None:
        data = _end_line(record, None, backend[:40], NOT_TOLD if tried is not None else None)
    return data


def used_bytes(folder: Path) -> int:
    """What the segments of all writers take of the disk."""
    size_bytes = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):  # shipped meanwhile, and removed
                    size_bytes += entry.stat().st_size
    return size_bytes


def written_bytes(path: Path) -> int:
    """How far a segment is written: where its zero bytes begin."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                at = memory.find(b"\0")
                return len(memory) if at < 0 else at
        except ValueError:  # an empty file cannot be mapped
            return 0


class NullLedger:
    """Writes nothing: for measuring what the ledger costs, never composed by the server."""

    def __init__(self) -> None:
        self.progress = Progress()

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int, prompt_tokens: int) -> int:
        return -1

    def end(self, record: UsageRecord, slot: int) -> None:
        pass

    def close(self) -> None:
        pass


def writer_is_dead(path: Path) -> bool:
    """Has the process that wrote this segment ended (or moved on to its next one)?"""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask at once must not take each other for the writer
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@dataclass(slots=True)
class Lines:
    """What whole lines of a segment say."""

    columns: list[list[Any]]  # of all ENDs in the order of their lines, a list for each of FIELDS
    begun: dict[str, str]  # BEGIN lines by request id, without those whose END is here too
    begun_before: list[str]  # request ids of the ENDs whose BEGIN is not here


def sort_lines(data: bytes) -> Lines:
    """Parse whole lines, in bulk: a call for each line would double the cost of shipping. Torn lines are skipped."""
    try:
        return Lines(*parse_lines(data))
    except ValueError:  # torn, or of an older version
        return _sort_each(data)


def _sort_each(data: bytes) -> Lines:
    rows: list[list[Any]] = []
    begun: dict[str, str] = {}
    begun_before: list[str] = []
    for line in _parsed(data):
        request_id: str = line[1]
        if line[0] == "E":
            rows.append(list(_row(line).values()))
            if begun.pop(request_id, None) is None:
                begun_before.append(request_id)
        else:
            begun[request_id] = orjson.dumps(line).decode()
    return Lines(as_columns(rows), begun, begun_before)


def as_columns(rows: list[list[Any]]) -> list[list[Any]]:
    """Records, each in the order of FIELDS, as a list for each field."""
    return [[row[at] for row in rows] for at in range(len(FIELDS))]


def _parsed(data: bytes) -> list[list[Any]]:
    """Every whole line of a kind that we know."""
    lines: list[list[Any]] = []
    for raw in data.split(b"\n"):
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if type(line) is list and len(line) > _BEGIN_FIELDS and (line[0] == "E" or line[0] == "B") and type(line[1]) is str:
            lines.append(line)
    return lines


def _row(end: list[Any]) -> dict[str, Any]:
    """A record by the names of its fields. What an older version did not write is as in a record of which nothing is known."""
    values = end[1 : 1 + len(FIELDS)]
    return dict(zip(FIELDS, values + _unknown()[len(values) :], strict=True))


def _unknown() -> list[Any]:
    record = UsageRecord("", 0.0, "", None, "", "", 0)
    return [getattr(record, name) for name in FIELDS]


def read_lines(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """("B" or "E", fields of a UsageRecord) for each whole line; torn lines are skipped."""
    return [
        ("E", _row(line)) if line[0] == "E" else ("B", dict(zip(FIELDS[:_BEGIN_FIELDS], line[1 : 1 + _BEGIN_FIELDS], strict=True)))
        for line in _parsed(data)
    ]


def read_slots(folder: Path, segment: str) -> bytes:
    """What the writer of this segment (the name of its file) noted of its running requests; empty where it noted nothing."""
    try:
        return (folder / f"{segment.rpartition('-')[0]}{SLOTS_SUFFIX}").read_bytes()
    except FileNotFoundError:
        return b""


def forget_slots(folder: Path) -> None:
    """Remove what dead writers noted whose segments are all gone."""
    for path in folder.glob(f"*{SLOTS_SUFFIX}"):
        if not any(folder.glob(f"{path.stem}-*{SUFFIX}")) and writer_is_dead(path):
            path.unlink(missing_ok=True)


def forget_unnamed(folder: Path) -> None:
    """Remove the files that a writer was killed over before they had their names. (One that lives has them locked at once.)"""
    for path in (*folder.glob("*.new"), *folder.glob(f"*{SLOTS_SUFFIX}-new")):
        with contextlib.suppress(FileNotFoundError):  # it has its name now
            if path.name != _OFFSETS_NEW and time.time() - path.stat().st_mtime > _UNNAMED_S and writer_is_dead(path):
                path.unlink()


def interrupted(begun: str, noted: bytes = b"") -> list[Any]:
    """The row, in the order of FIELDS, of a request whose process died before its END.

    `begun`: its BEGIN line; [] if that is torn. `noted`: what `read_slots` found. A request that never reached a backend has used nothing.
    """
    for line in _parsed(begun.encode()):
        record = UsageRecord(*line[1 : 1 + _BEGIN_FIELDS])
        record.ending = "interrupted"
        if len(line) >= _BEGIN_LINE:
            slot, prompt_tokens = int(line[11]), int(line[12])
            record.team_id, record.experiment, record.arm = line[13:16]
            found = reached(noted, slot, record.request_id)
            if found is not None:
                _fill(record, found, prompt_tokens)
        return [getattr(record, name) for name in FIELDS]
    return []


def _fill(record: UsageRecord, found: Reached, prompt_tokens: int) -> None:
    record.attempts, record.backend, record.price = found.attempts, found.backend, found.price
    if found.handed:
        record.status = 200
    if found.sent:
        record.completion_tokens = found.completion
        if found.reported:
            record.prompt_tokens = prompt_tokens if found.prompt < 0 else found.prompt
            record.token_source = "estimate" if found.half_reported else "backend"
            record.cached_tokens, record.reasoning_tokens = min(found.cached, record.prompt_tokens), min(found.reasoning, found.completion)
        else:
            record.prompt_tokens = prompt_tokens
        record.cost_pusd = priced(found.price, record.prompt_tokens, record.completion_tokens, record.cached_tokens)


def priced(price: str | None, prompt: int, completion: int, cached: int) -> int:
    """Cost in 1e-12 USD by a price as records hold it: INPUT/OUTPUT/CACHED, USD per million tokens, CACHED perhaps empty.

    0 by what is no such price: a kill may have torn it.
    """
    if price is None:
        return 0
    try:
        rates = [int(Decimal(part).scaleb(6)) if part else None for part in price.split("/")]
    except (ArithmeticError, ValueError):
        return 0
    if len(rates) != 3 or rates[0] is None or rates[1] is None:
        return 0
    cached_rate = rates[0] if rates[2] is None else rates[2]
    return min((prompt - cached) * rates[0] + cached * cached_rate + completion * rates[1], MAX_COST_PUSD)
