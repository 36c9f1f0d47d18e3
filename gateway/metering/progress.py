"""How far each running request has come, in memory that outlives its process: what a killed process leaves to be accounted for.

One file for each writer of the ledger, mapped; a slot for each request between its BEGIN (which names the slot) and its END. What goes to
the client is noted before it goes, so a row made of a slot says at least what the client received, and at most one read more. A note is
one or two stores. The file is allocated whenever it grows: a store never meets a full disk.

A slot, in words of 8 bytes (the machine's own order: it is read where it was written):

    0       the last 8 characters of the request's id
    1       attempts
    2       the running attempt may have reached its backend, or an earlier one has
    3, 4    events with words in them that were handed on, and the bytes of these
    5       of these bytes, how many an event takes beside its words; -1: its events are no tokens
    6       how many events of 3 the backend's own report covers; -1: it has reported nothing
    7..10   its report: prompt, completion (-1: not said), cached, reasoning tokens
    11..51  the target's name, up to a zero byte; of another request as long as 1 is zero
    52..63  what it is priced at (`routing.table.Prices.text`), the same
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

from gateway.errors import LedgerFull

SUFFIX: Final = ".slots"
_SLOT_BYTES: Final = 512
_WORDS: Final = 64
_FIRST_SLOTS: Final = 256
_BACKEND_AT: Final = 88
_PRICE_AT: Final = 416
_MOST_TARGETS: Final = 256
_WORDS_OF_TOKEN: Final = 4  # bytes
_PLAIN_EVENT_BYTES: Final = 16  # an event that carries more words than this on average is taken for several tokens


class Progress:
    """The slots of one writer. `path`: its file, which must not be there yet; None: memory that goes with the process."""

    __slots__ = ("_fd", "_free", "_memory", "_noted", "_size", "_targets", "_words")

    def __init__(self, path: Path | None = None) -> None:
        self._fd = -1
        self._free: list[int] = []
        self._size = 0
        self._targets: dict[tuple[str, str | None], bytes] = {}  # what is noted of an attempt, by name and price
        self._noted: list[bytes] = []  # what of these stands in each slot, whoever had it last
        self._memory = mmap.mmap(-1, _SLOT_BYTES)
        self._map_again(self._memory)
        if path is None:
            self._map(_FIRST_SLOTS)
            return
        unnamed = path.with_suffix(".slots-new")
        self._fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._map(_FIRST_SLOTS)
            unnamed.rename(path)
        except OSError:
            os.close(self._fd)
            unnamed.unlink(missing_ok=True)
            raise

    def _map(self, size: int) -> None:
        """Room for `size` slots. What is mapped already stays as it is."""
        if self._fd < 0:
            memory = mmap.mmap(-1, size * _SLOT_BYTES)
            memory[: self._size * _SLOT_BYTES] = self._memory[: self._size * _SLOT_BYTES]
        else:
            os.posix_fallocate(self._fd, 0, size * _SLOT_BYTES)
            memory = mmap.mmap(self._fd, size * _SLOT_BYTES)
        self._map_again(memory)
        self._free = list(range(size - 1, self._size - 1, -1))
        self._noted += [b""] * (size - self._size)
        self._size = size

    def _map_again(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("q")

    @property
    def fd(self) -> int:
        """Of the file; -1: there is none."""
        return self._fd

    def take(self, request_id: str) -> int:
        """A slot for a request that begins. LedgerFull if there is none to be had."""
        if not self._free:
            try:
                self._map(2 * self._size)
            except OSError:
                raise LedgerFull("The gateway cannot write its ledger now; try again later.", retry_after_s=10) from None
        slot = self._free.pop()
        at = slot * _SLOT_BYTES
        self._memory[at : at + _FRESH_BYTES] = _mark(request_id) + _FRESH
        return slot

    def give_back(self, slot: int) -> None:
        """After the END."""
        if slot >= 0:
            self._free.append(slot)

    def attempt(self, slot: int, number: int, backend: str, price: str | None) -> None:
        """An attempt begins."""
        if slot < 0:
            return
        told = (backend, price)
        data = self._targets.get(told)
        if data is None:
            if len(self._targets) >= _MOST_TARGETS:
                self._targets.clear()
            data = self._targets[told] = _field(backend, _PRICE_AT - _BACKEND_AT) + _field(price or "", _SLOT_BYTES - _PRICE_AT)
        if self._noted[slot] is not data:
            at = slot * _SLOT_BYTES + _BACKEND_AT
            self._memory[at : at + len(data)] = data
            self._noted[slot] = data
        self._words[slot * _WORDS + 1] = number  # last: before the first attempt, what stands there is of another request

    def sent(self, slot: int) -> None:
        """The attempt may have reached its backend."""
        if slot >= 0:
            self._words[slot * _WORDS + 2] = 1

    def handing(self, slot: int, events: int, size_bytes: int) -> None:
        """What of an answer is with the client once the next write is done: sums."""
        if slot >= 0:
            at = slot * _WORDS
            words = self._words
            words[at + 3] = events
            words[at + 4] = size_bytes

    def envelope(self, slot: int, size_bytes: int) -> None:
        """How much of an event is not words; -1: all of it, whatever it holds."""
        if slot >= 0:
            self._words[slot * _WORDS + 5] = size_bytes

    def reported(self, slot: int, events: int, prompt: int, completion: int, cached: int, reasoning: int) -> None:
        """The backend's own count, and after how many events it came."""
        if slot < 0:
            return
        at = slot * _WORDS
        words = self._words
        words[at + 7] = prompt
        words[at + 8] = completion
        words[at + 9] = cached
        words[at + 10] = reasoning
        words[at + 6] = events

    def close(self) -> None:
        """Last act of the process. The file stays: whoever ships the ledger removes it."""
        self._words.release()
        self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)


class Reached:
    """What a slot says."""

    __slots__ = (
        "attempts",
        "backend",
        "cached",
        "completion",
        "half_reported",
        "handed",
        "price",
        "prompt",
        "reasoning",
        "reported",
        "sent",
    )

    def __init__(self, slot: bytes) -> None:
        words = memoryview(slot).cast("q")
        self.attempts: int = words[1]
        self.sent = words[2] == 1
        self.handed: int = words[3]
        self.backend = _text(slot[_BACKEND_AT:_PRICE_AT]) if self.attempts else None
        self.price = _text(slot[_PRICE_AT:]) if self.attempts else None
        self.completion: int = estimated_tokens(words[3], words[4], words[5]) if words[5] >= 0 else 0
        self.reported = words[6] >= 0
        self.half_reported = False
        self.prompt: int = words[7]
        self.cached: int = words[9]
        self.reasoning: int = words[10]
        if self.reported:
            self.half_reported = words[7] < 0 or words[8] < 0
            self.completion = max(self.completion, words[8]) if words[3] > words[6] or words[8] < 0 else words[8]


def reached(data: bytes, slot: int, request_id: str) -> Reached | None:
    """What `data` (all of a file of slots) says of a request; None if its slot is not there, or is another's."""
    found = data[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES] if slot >= 0 else b""
    if len(found) < _SLOT_BYTES or found[:8] != _mark(request_id):
        return None
    return Reached(found)


def estimated_tokens(events: int, size_bytes: int, envelope_bytes: int) -> int:
    """Of so many events: one each, or what their words come to where they carry more than a token has."""
    words_bytes = size_bytes - events * envelope_bytes if envelope_bytes else 0
    return events if words_bytes <= _PLAIN_EVENT_BYTES * events else words_bytes // _WORDS_OF_TOKEN


def _field(text: str, size_bytes: int) -> bytes:
    return text.encode()[: size_bytes - 1].ljust(size_bytes, b"\0")


def _text(data: bytes) -> str | None:
    return data.partition(b"\0")[0].decode("utf-8", "replace") or None


def _mark(request_id: str) -> bytes:
    """The end of an id, which is what tells the requests of a process apart."""
    mark = request_id[-8:].encode()
    return mark if len(mark) == 8 else mark.rjust(8)[-8:]


_FRESH: Final = b"\0" * 40 + b"\xff" * 8  # words 1 to 6; the others are read only where these say that they were written
_FRESH_BYTES: Final = 56
