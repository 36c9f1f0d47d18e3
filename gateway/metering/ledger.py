"""The ledger on disk: append-only segments, one writer each; BEGIN at admission and END at every ending.

A segment is a file of fixed size, allocated as a whole and mapped into memory: an append is a copy of a few hundred bytes, survives
`kill -9` (the pages are the kernel's), and cannot meet a full disk. Lines are JSON arrays that end in a newline; behind the last one
there are zero bytes. An END line holds the whole record, so that shipping needs no BEGIN; a BEGIN without an END tells of a request that
its process did not live to finish. Each BEGIN reserves room for its END: when no further segment can be had, new requests are refused
(LedgerFull) and running ones are still accounted for.

The writer holds a lock on its segment as long as it lives: whoever gets that lock knows that the writer is dead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import LedgerFull
from gateway.metering.lines import begin_line, end_line
from gateway.metering.record import FIELDS, UsageRecord

SUFFIX = ".seg"
SEGMENT_BYTES = 16_000_000
END_BYTES = 2048  # no END line is longer: all its parts are bounded but the client's own request id, which is left out if need be
_BEGIN_FIELDS = 8  # request_id .. client_request_id: what is known at admission
_BEGIN_MARK, _END_MARK = '["B","', '["E","'
_ID_AT = len(_END_MARK)


class SegmentWriter:
    """Appends to this process's segment, and begins a new one when it is full. `segment_bytes`: size of a segment."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._stem = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._number = 0
        self._reserved = 0  # bytes kept free for the ENDs of running requests
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
        self._number += 1
        self._fd, self._memory, self._at, self._size = fd, memory, 0, size

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int) -> None:
        """Admission. LedgerFull if there is no room for it and for its END: the request must not run."""
        r = record
        data = begin_line(
            r.request_id, r.started_at, r.operation, r.key_id, r.user_id, r.model, r.revision, r.client_request_id,
            reserved_tokens, reserved_pusd,
        )  # fmt: skip
        end = self._at + len(data)
        if end + self._reserved + END_BYTES > self._size:
            self._rotate()
            end = len(data)
        self._memory.write(data)
        self._at = end
        self._reserved += END_BYTES

    def end(self, record: UsageRecord) -> None:
        """The ending, whatever it was. Its room was reserved by `begin`."""
        data = _end_line(record, record.client_request_id)
        if len(data) > END_BYTES:
            data = _end_line(record, None)
        self._memory.write(data)
        self._at += len(data)
        self._reserved -= END_BYTES

    def _rotate(self) -> None:
        """On to a new segment. The old one stays in place as it is if there is none to be had."""
        fd, memory = self._fd, self._memory
        try:
            self._open()
        except OSError:
            raise LedgerFull("The gateway cannot write its ledger now; try again later.", retry_after_s=10) from None
        memory.close()
        os.close(fd)

    def close(self) -> None:
        """Last act of the process; gives the lock back."""
        self._memory.close()
        os.close(self._fd)


def _end_line(record: UsageRecord, client_request_id: str | None) -> bytes:
    r = record
    return end_line(
        r.request_id, r.started_at, r.operation, r.key_id, r.user_id, r.model, r.revision, client_request_id,
        r.backend, r.attempts, r.status, r.ending, r.prompt_tokens, r.completion_tokens, r.token_source, r.cost_pusd,
        r.duration_ms, r.ttft_ms, r.queue_ms, r.connect_ms, r.experiment, r.arm,
    )  # fmt: skip


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

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int) -> None:
        pass

    def end(self, record: UsageRecord) -> None:
        pass

    def close(self) -> None:
        pass


def writer_is_dead(path: Path) -> bool:
    """Has the process that wrote this segment ended (or moved on to its next one)?"""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@dataclass(slots=True)
class Lines:
    """What whole lines of a segment say."""

    values: list[Any]  # of all ENDs in the order of their lines, record after record, each as FIELDS says
    begun: dict[str, str]  # BEGIN lines by request id, without those whose END is here too
    begun_before: list[str]  # request ids of the ENDs whose BEGIN is not here


def sort_lines(data: bytes) -> Lines:
    """Parse whole lines, in bulk: a call for each line would double the cost of shipping. Torn lines are skipped."""
    try:
        text = data.decode()
        return _sort_quickly(text.split("\n"))
    except ValueError:  # torn, or of an older version
        return _sort_each(data)


def _sort_quickly(lines: list[str]) -> Lines:
    """ValueError where a line is not exactly as this version writes it."""
    ends: list[str] = []
    ended: list[str] = []
    begun: dict[str, str] = {}
    begun_before: list[str] = []
    for line in lines:
        if not line:
            continue
        request_id = line[_ID_AT : line.index('"', _ID_AT)]
        if line.startswith(_END_MARK) and line[-1] == "]":
            ends.append(line[_ID_AT - 1 : -1])
            ended.append(request_id)
            if begun.pop(request_id, None) is None:
                begun_before.append(request_id)
        elif line.startswith(_BEGIN_MARK):
            begun[request_id] = line
        else:
            raise ValueError
    values: list[Any] = orjson.loads(f"[{','.join(ends)}]")
    # As many values as records have fields, and an id where each record begins: no line has more or fewer.
    if len(values) != len(ended) * len(FIELDS) or values[:: len(FIELDS)] != ended:
        raise ValueError
    return Lines(values, begun, begun_before)


def _sort_each(data: bytes) -> Lines:
    found = Lines([], {}, [])
    for kind, row in read_lines(data):
        request_id: str = row["request_id"]
        if kind == "E":
            found.values += [row[name] for name in FIELDS]
            if found.begun.pop(request_id, None) is None:
                found.begun_before.append(request_id)
        else:
            found.begun[request_id] = orjson.dumps(["B", *row.values()]).decode()
    return found


def read_lines(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """("B" or "E", fields of a UsageRecord) for each whole line; torn lines are skipped."""
    for raw in data.split(b"\n"):
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if type(line) is not list or len(line) < _BEGIN_FIELDS + 1:
            continue
        if line[0] == "E":
            values = line[1:] + [None] * len(FIELDS)  # an older version wrote fewer
            yield "E", dict(zip(FIELDS, values, strict=False))
        elif line[0] == "B":
            yield "B", dict(zip(FIELDS[:_BEGIN_FIELDS], line[1 : 1 + _BEGIN_FIELDS], strict=True))


def interrupted(begun: str) -> list[Any]:
    """The row, in the order of FIELDS, of a request whose process died before its END. `begun`: its BEGIN line; [] if that is torn."""
    for _, fields in read_lines(begun.encode()):
        record = UsageRecord(**fields)
        record.ending = "interrupted"
        return [getattr(record, name) for name in FIELDS]
    return []
