"""What is left of every limit of this host, in one file that all its server processes map: exact however many there are, without a server.

An account has the levels of one limited caller. `reserve` takes from all accounts of a request in one step, or from none; what it took is
held until `settle`, and is given back by the others (`sweep`) if the process that held it was killed: its slots are free, and its
reservation counts as used, as does that of a permit that is lost. A process may be killed at any instruction: what changes levels first
writes down how they were, and the next who takes the lock puts back what was not finished. Rates survive a restart. What a budget has
spent does not: the ledger knows, and is asked again.

This module has a form in C beside it (levels.c), which is taken where it is compiled: a decision costs it well under a microsecond. This
one takes a lock of the file and some ten microseconds. Both have the same interface and the same tests; all processes of a host run one
of them (`FORM` is part of the file's name). One thread uses it; a child that was forked is not attached.

Times are Unix seconds; money is whole 1e-12 USD; a limit of None is none.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FORM = "plain"
_MAGIC = 0x676C6576_33
_PROCESSES, _ACCOUNTS, _HELD = 256, 1 << 18, 1 << 18
_WORDS = 16  # of 8 bytes: an account, and a reservation, have as many
_HEADER = 8 * _WORDS
_SIZE_WORDS = _HEADER + (_ACCOUNTS + _HELD) * _WORDS
_ALL, _ONE, _FIRST_PROCESS = 0, 1, 2  # bytes of the file whose locks mean: attached; at work; this process lives
_NONE = -1
_MOST = 2**63 - 1
_MOST_AT_ONCE = 4
_KINDS_REQUESTS, _KINDS_TOKENS, _KINDS_CONCURRENCY, _KINDS_BUDGET = range(4)
# words of the header, of an account (from 2 on), of a reservation
_MAGIC_AT, _EPOCH_AT, _USED_AT, _FREE_AT, _FRESH_AT = range(5)
_ROOM = slice(_USED_AT, _FRESH_AT + 1)
# what is put back if a step is not finished: how many pieces, where they were; the room; the pieces
_BEGUN_AT, _PLACES_AT, _ROOM_BEFORE, _BEFORE_AT = 5, 6, slice(12, 15), _WORDS
(_UPDATED, _RPM, _TPM, _CONCURRENCY, _BUDGET, _REQUESTS_LEFT, _TOKENS_LEFT, _RUNNING, _RESERVED, _SPENT, _WINDOW_END, _EPOCH) = range(2, 14)
_WINDOW_KIND = 14
_NEXT, _PROCESS, _COUNT, _TOKENS, _COST, _FIRST_ACCOUNT = range(6)

Refused = tuple[int, float | None, bool, int, bytes]
"""(which: 0 requests, 1 tokens, 2 concurrency, 3 budget; seconds to wait, None = nobody knows; final; which account; its headers)."""


class Levels:
    """The levels of one host, attached to by this process. `path`: the file. OSError where it cannot be used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._memory: mmap.mmap | None = None
        self._q: memoryview[int] = memoryview(b"")
        self._d: memoryview[float] = memoryview(b"").cast("d")
        self._process = os.getpid()
        self._closed = False
        self._lost: list[int] = []  # what lost permits held: they are lost at any time, in the middle of a step too
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise

    def _attach(self) -> None:
        self._lock(_ONE, fcntl.F_WRLCK, wait=True)
        alone = self._lock(_ALL, fcntl.F_WRLCK)
        if os.fstat(self._fd).st_size != _SIZE_WORDS * 8:
            if not alone:
                raise OSError(errno.EBUSY, "used by another version")
            self._empty()
        self._slot = next((slot for slot in range(_PROCESSES) if self._lock(_FIRST_PROCESS + slot, fcntl.F_WRLCK)), -1)
        if self._slot < 0:
            raise OSError(errno.EUSERS, "too many processes")
        self._memory = mmap.mmap(self._fd, _SIZE_WORDS * 8)
        with memoryview(self._memory) as view:
            self._q, self._d = view.cast("q"), view.cast("d")
        if not self._make_room(0, _HEADER):
            raise OSError(errno.ENOSPC, "no room for what is left of the limits")
        if alone:
            self._begin_anew()
        elif self._q[_MAGIC_AT] != _MAGIC:
            raise OSError(errno.EBUSY, "used by another version")
        self._lock(_ALL, fcntl.F_RDLCK)
        self._put_back()
        self._give_back(self._slot)  # of the process that had this slot before, if it was killed
        self._lock(_ONE, fcntl.F_UNLCK)

    def open(self, account_id: bytes, now_s: float) -> int:
        """The number of an account by 16 bytes of its id. A new one is under no limits. MemoryError where there is no room for it."""
        first: int
        first, second = struct.unpack("qq", account_id)
        q = self._q
        index = first & (_ACCOUNTS - 1)
        with self._locked():
            for _ in range(_ACCOUNTS):
                at = _HEADER + index * _WORDS
                if not self._make_room(at, _WORDS):
                    raise MemoryError("the disk is full")
                if q[at] == first and q[at + 1] == second:
                    if q[at + _EPOCH] != q[_EPOCH_AT]:
                        self._begin((at,))
                        q[at + _RUNNING] = q[at + _RESERVED] = q[at + _SPENT] = q[at + _WINDOW_KIND] = 0
                        self._d[at + _WINDOW_END] = 0.0
                        q[at + _EPOCH] = q[_EPOCH_AT]
                    return index
                if not q[at] and not q[at + 1]:
                    break
                index = (index + 1) & (_ACCOUNTS - 1)
            if q[_USED_AT] >= _ACCOUNTS - _ACCOUNTS // 8:
                raise MemoryError("there are more limited callers than this host can count")
            self._begin((at,))
            q[_USED_AT] += 1
            q[at], q[at + 1] = first, second
            q[at + _RPM] = q[at + _TPM] = q[at + _CONCURRENCY] = q[at + _BUDGET] = _NONE
            self._d[at + _UPDATED] = now_s
            q[at + _EPOCH] = q[_EPOCH_AT]
            return index

    def change(self, number: int, rpm: int | None, tpm: int | None, concurrency: int | None, budget_pusd: int | None, now_s: float) -> None:
        """Put limits in force. A lower one caps the level at once, a higher one adds the difference."""
        at, q, d = self._at(number), self._q, self._d
        with self._locked():
            self._begin((at,))
            self._refill(at, now_s)
            for level, limit, new in ((_REQUESTS_LEFT, _RPM, rpm), (_TOKENS_LEFT, _TPM, tpm)):
                d[at + level] = _moved(d[at + level], q[at + limit], new)
            for limit, new in ((_RPM, rpm), (_TPM, tpm), (_CONCURRENCY, concurrency), (_BUDGET, budget_pusd)):
                q[at + limit] = _NONE if new is None else new

    def window(self, number: int, kind: int, end_s: float, spent_pusd: int) -> None:
        """A budget's window begins, unless another process has begun it, or a later one of its kind (a positive number: windows of two
        kinds may end together). What is reserved stays so: it will be spent in this one.
        """
        at = self._at(number)
        with self._locked():
            if self._q[at + _WINDOW_KIND] != kind or self._d[at + _WINDOW_END] < end_s:
                self._begin((at,))
                self._q[at + _WINDOW_KIND] = kind
                self._d[at + _WINDOW_END] = end_s
                self._q[at + _SPENT] = spent_pusd

    def window_end(self, number: int) -> float:
        """When the budget's window ends; 0.0: none was begun."""
        return self._d[self._at(number) + _WINDOW_END]

    def headers(self, number: int, now_s: float) -> bytes:
        """The x-ratelimit lines: what is left, and when the bucket would be full again."""
        at = self._at(number)
        with self._locked():
            self._begin((at,))
            self._refill(at, now_s)
            return self._headers(at)

    def reserve(self, numbers: tuple[int, ...], tokens: int, cost_pusd: int, now_s: float) -> LevelsPermit | Refused:
        """Take one request, `tokens` and `cost_pusd` from every one of these accounts (at most 4), or nothing from any."""
        if not 1 <= len(numbers) <= _MOST_AT_ONCE:
            raise TypeError("reserve(numbers: tuple of 1 to 4, tokens, cost_pusd, now_s)")
        places = [self._at(number) for number in numbers]
        q, d = self._q, self._d
        with self._locked():
            next_held = self._next_held()
            held = self._held_at(next_held)
            self._begin((*places, held))
            for place, at in enumerate(places):
                self._refill(at, now_s)
                why = self._refusal(at, tokens, cost_pusd, now_s)
                if why is not None:
                    return *why, place, self._headers(at)
            # what does not fit into 64 bits is not counted, so that all that is can be taken off again
            cost_pusd = min(cost_pusd, *(_MOST - q[at + _RESERVED] for at in places))
            self._take_held(next_held)
            q[held + _COUNT], q[held + _TOKENS], q[held + _COST] = len(places), tokens, cost_pusd
            for place, at in enumerate(places):
                q[held + _FIRST_ACCOUNT + place] = at
                d[at + _REQUESTS_LEFT] -= 1
                d[at + _TOKENS_LEFT] -= tokens
                q[at + _RUNNING] += 1
                q[at + _RESERVED] += cost_pusd
            return LevelsPermit(self, held, self._headers(places[0]))

    def sweep(self) -> int:
        """Give back what killed processes held; how many reservations these were."""
        q, count = self._q, 0
        with self._locked():
            slots = {q[self._held_at(number) + _PROCESS] - 1 for number in range(1, q[_FRESH_AT])} - {-1, self._slot}
            for slot in slots:
                if self._lock(_FIRST_PROCESS + slot, fcntl.F_WRLCK):
                    count += self._give_back(slot)
                    self._lock(_FIRST_PROCESS + slot, fcntl.F_UNLCK)
        return count

    def state(self, number: int) -> tuple[int, int, int, float, float]:
        """(running, reserved_pusd, spent_pusd, requests left, tokens left): for tests, and for people."""
        at, q, d = self._at(number), self._q, self._d
        with self._locked():
            return q[at + _RUNNING], q[at + _RESERVED], q[at + _SPENT], d[at + _REQUESTS_LEFT], d[at + _TOKENS_LEFT]

    def close(self) -> None:
        """Give back what this process holds, and detach."""
        if self._closed:
            return
        if self._process == os.getpid():
            with self._locked():
                self._give_back(self._slot)
        self._detach()

    def _detach(self) -> None:
        self._closed = True
        self._q.release()
        self._d.release()
        if self._memory is not None:
            self._memory.close()  # it has a descriptor of its own, which holds the locks as well
        os.close(self._fd)

    def settle(self, held: int, tokens: int, cost_pusd: int) -> None:
        """For permits."""
        if not self._closed and self._process == os.getpid():
            with self._locked():
                self._settle(held, tokens, cost_pusd)

    def lose(self, held: int) -> None:
        """For permits that are lost."""
        self._lost.append(held)

    def _give_back(self, slot: int) -> int:
        """What a killed process held: its slots are free, its reservation counts as used."""
        q, count = self._q, 0
        for number in range(1, q[_FRESH_AT]):
            held = self._held_at(number)
            if q[held + _PROCESS] == slot + 1:
                self._settle(held, q[held + _TOKENS], q[held + _COST])
                count += 1
        return count

    def _settle(self, held: int, tokens: int, cost_pusd: int) -> None:
        q, d = self._q, self._d
        places = [q[held + _FIRST_ACCOUNT + place] for place in range(q[held + _COUNT])]
        self._begin((*places, held))
        for at in places:
            q[at + _RUNNING] -= 1
            q[at + _RESERVED] -= q[held + _COST]
            q[at + _SPENT] = min(q[at + _SPENT] + cost_pusd, _MOST)
            left = d[at + _TOKENS_LEFT] + q[held + _TOKENS] - tokens
            d[at + _TOKENS_LEFT] = left if q[at + _TPM] == _NONE else min(left, float(q[at + _TPM]))
        q[held + _PROCESS] = 0
        q[held + _NEXT] = q[_FREE_AT]
        q[_FREE_AT] = (held - self._held_at(0)) // _WORDS
        q[_BEGUN_AT] = 0

    def _next_held(self) -> int:
        q = self._q
        number: int = q[_FREE_AT] or q[_FRESH_AT]
        if number >= _HELD or (not q[_FREE_AT] and not self._make_room(self._held_at(number), _WORDS)):
            raise MemoryError("more requests run than this host can count")
        return number

    def _take_held(self, number: int) -> None:
        q, held = self._q, self._held_at(number)
        if number == q[_FREE_AT]:
            q[_FREE_AT] = q[held + _NEXT]
        else:
            q[_FRESH_AT] += 1
        q[held + _PROCESS] = self._slot + 1

    def _refusal(self, at: int, tokens: int, cost_pusd: int, now_s: float) -> tuple[int, float | None, bool] | None:
        """(which, seconds to wait, final); None: there is room."""
        q, d = self._q, self._d
        rpm, tpm, concurrency, budget = q[at + _RPM], q[at + _TPM], q[at + _CONCURRENCY], q[at + _BUDGET]
        if budget != _NONE and q[at + _SPENT] + q[at + _RESERVED] + cost_pusd > budget:
            end_s = d[at + _WINDOW_END]
            return _KINDS_BUDGET, None if math.isinf(end_s) else max(0.0, end_s - now_s), True
        if tpm != _NONE and tokens > tpm:
            return _KINDS_TOKENS, None, True
        waits: list[tuple[float, int]] = []
        if rpm != _NONE and d[at + _REQUESTS_LEFT] < 1:
            waits.append(((1 - d[at + _REQUESTS_LEFT]) * 60 / rpm if rpm else 60.0, _KINDS_REQUESTS))
        if tpm != _NONE and d[at + _TOKENS_LEFT] < tokens:
            waits.append(((tokens - d[at + _TOKENS_LEFT]) * 60 / tpm if tpm else 60.0, _KINDS_TOKENS))
        if waits:
            wait_s, which = max(waits)
            return which, wait_s, False
        if concurrency != _NONE and q[at + _RUNNING] >= concurrency:
            return _KINDS_CONCURRENCY, 1.0, False
        return None

    def _refill(self, at: int, now_s: float) -> None:
        d = self._d
        elapsed_s = now_s - d[at + _UPDATED]
        if elapsed_s <= 0:  # another process read its clock later, but was here before; or the clock was set back: nothing for that time
            if elapsed_s < -1 and d[at + _UPDATED] > time.time() + 1:
                d[at + _UPDATED] = time.time()
            return
        d[at + _UPDATED] = now_s
        for level, limit in ((_REQUESTS_LEFT, self._q[at + _RPM]), (_TOKENS_LEFT, self._q[at + _TPM])):
            if limit != _NONE:
                d[at + level] = min(d[at + level] + elapsed_s * limit / 60, float(limit))

    def _headers(self, at: int) -> bytes:
        q, d = self._q, self._d
        parts: Sequence[tuple[bytes, int, int]] = ((b"requests", _RPM, _REQUESTS_LEFT), (b"tokens", _TPM, _TOKENS_LEFT))
        return b"".join([_lines(what, q[at + limit], d[at + left]) for what, limit, left in parts if q[at + limit] > 0])

    def _begin_anew(self) -> None:
        """Nobody else is attached. The levels of rates stay; what ran is over, and what was spent the ledger is asked again."""
        q = self._q
        epoch = q[_EPOCH_AT] + 1 if q[_MAGIC_AT] == _MAGIC else 1
        if q[_MAGIC_AT] == _MAGIC:
            self._put_back()
        if q[_MAGIC_AT] != _MAGIC or q[_USED_AT] > _ACCOUNTS // 2:  # too many were left behind: full again, all of them
            self._empty()
            if not self._make_room(0, _HEADER):
                raise OSError(errno.ENOSPC, "no room for what is left of the limits")
        q[_BEGUN_AT] = 0
        q[_FREE_AT], q[_FRESH_AT], q[_EPOCH_AT], q[_MAGIC_AT] = 0, 1, epoch, _MAGIC

    def _empty(self) -> None:
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, _SIZE_WORDS * 8)

    def _make_room(self, at: int, words: int) -> bool:
        """The file is sparse, and a hole that cannot be filled (the disk is full) would kill the process: this call can fail instead."""
        try:
            os.posix_fallocate(self._fd, at * 8, words * 8)
        except OSError as error:
            return error.errno not in (errno.ENOSPC, errno.EDQUOT)
        return True

    def _begin(self, places: Sequence[int]) -> None:
        """Write down how these accounts and records are. Until the lock is let go, or a record settled, they change whole or not at all."""
        q = self._q
        q[_ROOM_BEFORE] = q[_ROOM]
        for number, at in enumerate(places):
            q[_PLACES_AT + number] = at
            before = _BEFORE_AT + number * _WORDS
            q[before : before + _WORDS] = q[at : at + _WORDS]
        q[_BEGUN_AT] = len(places)

    def _put_back(self) -> None:
        """What was not finished. The bounds are for a file that a crash of the whole machine has torn."""
        q = self._q
        if 0 < q[_BEGUN_AT] <= _MOST_AT_ONCE + 1:
            for number in range(q[_BEGUN_AT]):
                at, before = q[_PLACES_AT + number], _BEFORE_AT + number * _WORDS
                if _HEADER <= at <= _SIZE_WORDS - _WORDS:
                    q[at : at + _WORDS] = q[before : before + _WORDS]
            q[_ROOM] = q[_ROOM_BEFORE]
        q[_BEGUN_AT] = 0

    def _at(self, number: int) -> int:
        self._check()
        if not 0 <= number < _ACCOUNTS:
            raise IndexError("there is no such account")
        return _HEADER + number * _WORDS

    @staticmethod
    def _held_at(number: int) -> int:
        return _HEADER + (_ACCOUNTS + number) * _WORDS

    def _check(self) -> None:
        if self._closed or self._process != os.getpid():
            raise ValueError("these levels are closed")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Every step. What an exception or the end of the process breaks off is put back."""
        self._check()
        q = self._q
        self._lock(_ONE, fcntl.F_WRLCK, wait=True)
        try:
            self._put_back()
            while self._lost:
                held = self._lost.pop()
                self._settle(held, q[held + _TOKENS], q[held + _COST])
            yield
            q[_BEGUN_AT] = 0
        finally:
            self._put_back()
            self._lock(_ONE, fcntl.F_UNLCK)

    def _lock(self, byte: int, kind: int, *, wait: bool = False) -> bool:
        """A lock of the open file, not of the process: it goes when the process dies, and not before."""
        wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            return False
        return True


class LevelsPermit:
    """A reservation. `headers`: the x-ratelimit lines of the first account."""

    __slots__ = ("_held", "_levels", "headers")

    def __init__(self, levels: Levels, held: int, headers: bytes) -> None:
        self._levels: Levels | None = levels
        self._held = held
        self.headers = headers

    def settle(self, tokens: int, cost_pusd: int) -> None:
        """The request is over and used this much. Further calls do nothing."""
        levels, self._levels = self._levels, None
        if levels is not None:
            levels.settle(self._held, tokens, cost_pusd)

    def __del__(self) -> None:
        if self._levels is not None:
            self._levels.lose(self._held)


def _moved(left: float, old: int, new: int | None) -> float:
    if new is None:
        return 0.0
    return float(new) if old == _NONE else min(left + max(0, new - old), float(new))


def _lines(what: bytes, limit: int, left: float) -> bytes:
    values = (what, limit, what, max(0, int(left)), what, _duration((limit - left) * 60 / limit))
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % values


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 20ms, 6s, 1m30s, 6m0s."""
    if seconds < 1:
        return b"%dms" % (seconds * 1000)
    minutes, rest = divmod(int(seconds + 0.999), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
