"""The content log's way to the disk: a queue, a thread, and files that hold nothing in the clear.

Each server process has one `ContentLog`. A request that is over hands it an `Entry` and goes on; the thread packs it, encrypts it and
appends it to a file of its own. The keeper takes whole files into the database (`gateway.keeper.contents`). What is on the disk survives
the process; what still waits for the thread when it is killed is lost: this log is best effort, the ledger is exact.

Nothing waits for it and nothing fails by it. Where there is no room (in the queue, on the disk) an entry loses what was said, is counted,
and its row says that it is not kept. Rows are many too: a little beyond its bound, or where the ledger needs the disk, nothing at all is
written, only counted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import orjson
import structlog

from gateway.metering.ledger import writer_is_dead

logger = structlog.get_logger(__name__)

DONE, OPEN, DRAFT = ".spool", ".open", ".draft"
REQUEST, ANSWER = "request", "answer"
FULL, DISK, FAULT = "full", "disk", "fault"  # why nothing of a request is kept
GATHER_S: Final = 0.1  # the thread takes what has come in so long at once: woken by each request, it would get in the way of its last bytes
TURN_S: Final = 1.0  # how long a file is written at most, while there is something to write
FILE_BYTES: Final = 4_000_000
QUEUE_BYTES: Final = 64_000_000
_QUEUE_ENTRIES: Final = 50_000
_LEFT_BYTES: Final = 300_000_000  # free on the disk: the ledger needs it more
_ROWS_ALONE: Final = 0.05  # of the spool's bound: what rows without content may take beyond it
_LEVEL: Final = 1


class Entry:
    """What is kept of one request. `request`, `answer`: pieces as they went over the wire; None: binary, of which only type and size are
    kept. `*_bytes`: how much there was, whatever is kept of it; `size_bytes`: what is kept. `not_kept`: why there is no content.
    """

    __slots__ = (
        "answer",
        "answer_bytes",
        "answer_type",
        "at",
        "ending",
        "key_id",
        "model",
        "not_kept",
        "operation",
        "request",
        "request_bytes",
        "request_id",
        "request_type",
        "size_bytes",
        "status",
        "team_id",
        "user_id",
    )

    def __init__(
        self,
        request_id: str,
        at: float,
        key_id: str | None,
        user_id: str,
        team_id: str | None,
        model: str,
        operation: str,
        status: int,
        ending: str,
    ) -> None:
        self.request_id = request_id
        self.at = at
        self.key_id = key_id
        self.user_id = user_id
        self.team_id = team_id
        self.model = model
        self.operation = operation
        self.status = status
        self.ending = ending
        self.not_kept: str | None = None
        self.request_type = self.answer_type = ""
        self.request_bytes = self.answer_bytes = 0
        self.request: list[bytes] | None = None
        self.answer: list[bytes] | None = None
        self.size_bytes = 0

    def drop(self, why: str) -> None:
        self.request = self.answer = None
        self.size_bytes = 0
        self.not_kept = why

    def line(self, seal: Callable[[bytes], bytes], sealed_with: str) -> bytes:
        """As it stands in a file. Seals."""
        fields = {
            "request_id": self.request_id,
            "at": self.at,
            "key_id": self.key_id,
            "user_id": self.user_id,
            "team_id": self.team_id,
            "model": self.model,
            "operation": self.operation,
            "status": self.status,
            "ending": self.ending,
            "not_kept": self.not_kept,
            "sealed_with": sealed_with,
            "request_type": self.request_type,
            "answer_type": self.answer_type,
            "request_bytes": self.request_bytes,
            "answer_bytes": self.answer_bytes,
            "request_truncated": self.request is not None and _size(self.request) < self.request_bytes,
            "answer_truncated": self.answer is not None and _size(self.answer) < self.answer_bytes,
            REQUEST: self._sealed(REQUEST, self.request, seal),
            ANSWER: self._sealed(ANSWER, self.answer, seal),
        }
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)

    def _sealed(self, side: str, pieces: list[bytes] | None, seal: Callable[[bytes], bytes]) -> str | None:
        return None if pieces is None else seal(packed(self.request_id, side, b"".join(pieces))).decode("ascii")


def packed(request_id: str, side: str, content: bytes) -> bytes:
    """What is sealed: it says whose it is, so that whoever can write to the database cannot put it under another request."""
    return b"%b\n%b\n%b" % (request_id.encode(), side.encode(), zlib.compress(content, _LEVEL))


def unpacked(request_id: str, side: str, opened: bytes) -> bytes:
    """The other way round. `ValueError` where it is of another request, or of the other side."""
    head = b"%b\n%b\n" % (request_id.encode(), side.encode())
    if not opened.startswith(head):
        raise ValueError("it belongs to another request")
    return zlib.decompress(opened[len(head) :])


def read_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The entries of a file, as columns of `contents`; and how many lines are none.

    A kill or a full disk cuts lines off, and another version may have written them. One that is no record must cost no other.
    """
    rows, unfit = [], 0
    for line in data.split(b"\n"):
        if line:
            row = _row(line)
            if row is None:
                unfit += 1
            else:
                rows.append(row)
    return rows, unfit


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(fields) is not dict:
        return None
    row = {name: fields.get(name) for name in _FITS}
    if not row["request_id"] or not all(fits(row[name]) for name, fits in _FITS.items()):
        return None
    for side in (REQUEST, ANSWER):
        sealed = row[side]
        row[side] = None if sealed is None else sealed.encode("ascii")
    return row


def _is_text(value: Any) -> bool:
    return type(value) is str and "\0" not in value


def _is_text_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_sealed(value: Any) -> bool:
    return value is None or (type(value) is str and value.isascii())


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_status(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1000


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e11


_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "request_id": _is_text,
    "at": _is_time,
    "key_id": _is_text_or_none,
    "user_id": _is_text,
    "team_id": _is_text_or_none,
    "model": _is_text,
    "operation": _is_text,
    "status": _is_status,
    "ending": _is_text,
    "not_kept": _is_text_or_none,
    "sealed_with": _is_text,
    "request_type": _is_text,
    "answer_type": _is_text,
    "request_bytes": _is_size,
    "answer_bytes": _is_size,
    "request_truncated": _is_flag,
    "answer_truncated": _is_flag,
    REQUEST: _is_sealed,
    ANSWER: _is_sealed,
}
"""The columns of `contents`, and what fits them on either database."""


class ContentLog:
    """One process's. `max_bytes`: kept of each side of a request. `seal` runs in the thread. `spool_bytes`: of all files of the host.

    `keep` belongs to the loop; everything with a file to the thread, which begins with the first entry.
    """

    def __init__(
        self,
        folder: Path,
        seal: Callable[[bytes], bytes],
        sealed_with: str,
        *,
        max_bytes: int,
        spool_bytes: int,
        queue_bytes: int = QUEUE_BYTES,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._seal = seal
        self._sealed_with = sealed_with
        self._spool_bytes = spool_bytes
        self._queue_bytes = queue_bytes
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken_bytes = self._taken = self._unkept = self._told = 0  # the loop's
        self._done_bytes = self._done = self._unwritten = 0  # the thread's
        self._file: _File | None = None
        self._number = 0
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._free_bytes = free_bytes
        self._looked_s: float | None = None
        self._content_room_bytes = self._row_room_bytes = 0.0
        self._failing = False
        self.failures = 0
        self._over = threading.Event()

    def keep(self, entry: Entry) -> None:
        """A logged request is over. Never raises, never waits."""
        size = entry.size_bytes
        if self._taken_bytes - self._done_bytes + size > self._queue_bytes:
            entry.drop(FULL)
            size = 0
        self._unkept += entry.not_kept is not None
        if self._taken - self._done >= _QUEUE_ENTRIES:
            self._unkept += entry.not_kept is None
            return
        self._taken_bytes += size
        self._taken += 1
        self._queue.put(entry)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="content-log", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more now: what is handed over waits in the queue, and the next entry tries again
            return
        self._thread = thread

    def take_dropped(self) -> int:
        """How many requests have lost their content since this was asked last."""
        dropped = self._unkept + self._unwritten
        new, self._told = dropped - self._told, dropped
        return new

    def close(self, within_s: float = 10.0) -> None:
        """All that was handed over is in files now, if that takes no longer than this."""
        if self._thread is not None:
            self._over.set()
            self._queue.put(None)
            self._thread.join(within_s)

    # the thread's

    def _run(self) -> None:
        while True:
            try:
                entry = self._queue.get(timeout=TURN_S if self._file is not None else None)
                self._over.wait(GATHER_S)
                while entry is not None:
                    self._take(entry)
                    entry = self._queue.get_nowait()
                self._turn()
                return
            except Empty:
                entry = None  # it may wait here for long, and must not hold what was said
                if self._file is not None and time.monotonic() - self._file.since_s > TURN_S:
                    self._turn()

    def _take(self, entry: Entry) -> None:
        size = entry.size_bytes
        self._write(entry)
        self._done_bytes += size
        self._done += 1
        if self._file is not None and self._file.size_bytes > FILE_BYTES:
            self._turn()

    def _write(self, entry: Entry) -> None:
        self._look()
        if entry.not_kept is None and self._content_room_bytes <= 0:
            entry.drop(DISK)
            self._unwritten += 1
        if self._row_room_bytes <= 0:
            return
        try:
            line = self._line(entry)
            self._append(line)
            self._content_room_bytes -= len(line)
            self._row_room_bytes -= len(line)
            self._failing = False
        except Exception as error:
            self._unwritten += entry.not_kept is None
            self._fail(error)
            self._turn()

    def _fail(self, error: Exception) -> None:
        """Nothing is written until the next look."""
        self._content_room_bytes = self._row_room_bytes = 0
        self.failures += 1
        if not self._failing:
            logger.error("the content log cannot be written", fault=type(error).__name__)
        self._failing = True

    def _line(self, entry: Entry) -> bytes:
        try:
            return entry.line(self._seal, self._sealed_with)
        except Exception:  # a text that is none (a lone surrogate in a name): the request has its row all the same
            self._unwritten += entry.not_kept is None
            entry.drop(FAULT)
            entry.request_type = entry.answer_type = ""
            return entry.line(self._seal, self._sealed_with)

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._number += 1
            self._file = _File(self._folder, f"{self._name}-{self._number:08d}")
        self._file.write(line)

    def _turn(self) -> None:
        """What was written is the keeper's from now on."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.finish()
            except OSError:
                pass  # it keeps its name, and is taken when this process has ended

    def _look(self) -> None:
        """How much there is room for, once in a second at most: the disk is the ledger's first, and what waits has a bound."""
        now_s = time.monotonic()
        if self._looked_s is not None and now_s - self._looked_s <= TURN_S:
            return
        self._looked_s = now_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = self._free_bytes(self._folder) - _LEFT_BYTES
            left = self._spool_bytes - waiting_bytes(self._folder)
            self._content_room_bytes = min(free, left)
            self._row_room_bytes = min(free, left + self._spool_bytes * _ROWS_ALONE)
        except OSError as error:
            self._fail(error)


class _File:
    """One file while it is written. Its lock says that its writer lives; it is held before the file has a name that others look for."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = folder / f"{name}{DRAFT}"
        self._path = folder / f"{name}{OPEN}"
        self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size_bytes = 0
        self.since_s = time.monotonic()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            draft.rename(self._path)
        except OSError:
            os.close(self._fd)
            draft.unlink(missing_ok=True)
            raise

    def write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(self._fd, view) :]
        self.size_bytes += len(line)

    def finish(self) -> None:
        try:
            if self.size_bytes:
                self._path.rename(self._path.with_suffix(DONE))
            else:  # no whole line is in it
                self._path.unlink()
        finally:
            os.close(self._fd)


def waiting_bytes(folder: Path) -> int:
    """Of all files of this host that are not in the database yet."""
    return sum(stat.st_size for _, stat in _files(folder))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.endswith((DONE, OPEN)):
            try:
                yield folder / entry.name, entry.stat()
            except FileNotFoundError:
                continue


def finished(folder: Path) -> list[Path]:
    """Files that nobody writes any more, oldest first."""
    found = sorted((stat.st_mtime, path) for path, stat in _files(folder))
    return [path for _, path in found if path.suffix == DONE or _is_orphan(path)]


def drop_older(folder: Path, than_s: float) -> int:
    """Files that nothing was written to since then: whatever they hold is older still. Returns how many."""
    old = [path for path, stat in _files(folder) if stat.st_mtime < than_s]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _is_orphan(path: Path) -> bool:
    try:
        return writer_is_dead(path) and path.exists()
    except FileNotFoundError:
        return False


def _size(pieces: list[bytes] | None) -> int:
    return 0 if pieces is None else sum([len(piece) for piece in pieces])
