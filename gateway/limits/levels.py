"""What is left of every limit of this host, in one file that all its server processes map: exact however many there are, without a server.

An account has the levels of one limited caller: four rates ("L per minute" or "per day" is a bucket of L that refills at L per 60 or
86,400 s), what runs at once, and two budgets, of money and of tokens, each with a window of its own. `reserve` takes from all accounts
of a request in one step, or from none; what it took is held until `settle`, and is given back by the others (`sweep`) if the process
that held it was killed: its slots are free, and its reservation counts as used, as does that of a permit that is lost. A process may be
killed at any instruction: what changes levels first writes down how they were, and the next who takes the lock puts back what was not
finished. Rates survive a restart. What a budget has spent does not: the ledger knows, and is asked again.

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
from typing import cast

FORM = "plain"
_MAGIC = 0x676C6576_35
_PROCESSES, _ACCOUNTS, _HELD = 256, 1 << 18, 1 << 18
_WORDS = 28  # of 8 bytes: an account, and a reservation, have as many
_HEADER = 8 * _WORDS
_SIZE_WORDS = _HEADER + (_ACCOUNTS + _HELD) * _WORDS
_ALL, _ONE, _FIRST_PROCESS = 0, 1, 2  # bytes of the file whose locks mean: attached; at work; this process lives
_NONE = -1
_MOST = 2**63 - 1
_MOST_AT_ONCE = 4
_REQUESTS, _TOKENS, _REQUESTS_DAY, _TOKENS_DAY, _CONCURRENCY, _BUDGET, _TOKEN_BUDGET = range(7)  # the first four are the rates
_RATES = ((_REQUESTS, 60.0), (_TOKENS, 60.0), (_REQUESTS_DAY, 86_400.0), (_TOKENS_DAY, 86_400.0))  # and their periods in seconds
_BUDGETS = (_MONEY, _IN_TOKENS) = range(2)
_WHOSE = (b"key", b"user", b"team", b"model")
_MOST_PERCENT = 999
# words of the header, of an account (from 2 on; four rates stand together, and what is left of them), of a reservation
_MAGIC_AT, _EPOCH_AT, _USED_AT, _FREE_AT, _FRESH_AT = range(5)
_ROOM = slice(_USED_AT, _FRESH_AT + 1)
# what is put back if a step is not finished: how many pieces, where they were; the room; the pieces
_BEGUN_AT, _PLACES_AT, _ROOM_BEFORE, _BEFORE_AT = 5, 6, slice(12, 15), _WORDS
_UPDATED, _RATE, _LEFT, _MOST_RUNNING, _RUNNING, _BUDGET_AT, _EPOCH, _WINDOW_KIND, _SOFT, _OWNER = (
    2,
    3,
    7,
    11,
    12,
    (13, 17),
    21,
    (22, 23),
    24,
    25,
)
_AMOUNT, _RESERVED, _SPENT, _END = range(4)  # of a budget
_LOST = (26, 27)  # the part of what is spent that killed processes had reserved: what it came to, the books will say
_LIMITS_AT = (*range(_RATE, _RATE + 4), _MOST_RUNNING, *(at + _AMOUNT for at in _BUDGET_AT), _SOFT)  # in the order of `Limits`
_NEXT, _PROCESS, _COUNT, _HELD_TOKENS, _COST, _FIRST_ACCOUNT = range(6)

Refused = tuple[int, float | None, bool, int, bytes]
"""(which: 0 requests, 1 tokens, 2 and 3 those of a day, 4 concurrency, 5 the budget, 6 the one in tokens; seconds to wait, None = nobody
knows; final; which account; headers of all of them)."""
Limits = tuple[int | None, int | None, int | None, int | None, int | None, int | None, int | None, int | None]
"""(rpm, tpm, rpd, tpd, concurrency, budget_pusd, budget in tokens, percent of a budget from which on answers warn)."""
State = tuple[int, int, int, int, int, float, float, float, float, float, float]
"""(running, reserved_pusd, spent_pusd, reserved_tokens, spent_tokens, end of the window of money, of that of tokens, then what is left of
rpm, tpm, rpd, tpd as of the last step)."""
Counted = tuple[int, float, int, int]
"""(kind and end of a budget's window, spent, the part of that which killed processes had reserved)."""
_Why = tuple[bool, float, int, int, int]  # final; seconds to wait; the earlier accounts stand first; which; the account's place


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
                        q[at + _RUNNING] = 0
                        for budget in _BUDGETS:
                            money = at + _BUDGET_AT[budget]
                            q[money + _RESERVED] = q[money + _SPENT] = q[at + _WINDOW_KIND[budget]] = q[at + _LOST[budget]] = 0
                            self._d[money + _END] = 0.0
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
            for word in _LIMITS_AT:
                q[at + word] = _NONE
            self._d[at + _UPDATED] = now_s
            q[at + _EPOCH] = q[_EPOCH_AT]
            return index

    def find(self, account_id: bytes) -> int | None:
        """The number of an account that some process has opened since the last start. Makes none."""
        first: int
        first, second = struct.unpack("qq", account_id)
        q, index = self._q, first & (_ACCOUNTS - 1)
        with self._locked():
            for _ in range(_ACCOUNTS):
                at = _HEADER + index * _WORDS
                if not self._make_room(at, _WORDS) or (not q[at] and not q[at + 1]):
                    return None
                if q[at] == first and q[at + 1] == second:
                    return index if q[at + _EPOCH] == q[_EPOCH_AT] else None
                index = (index + 1) & (_ACCOUNTS - 1)
        return None

    def change(self, number: int, limits: Limits, whose: int, now_s: float) -> None:
        """Put limits in force. A lower one caps the level at once, a higher one adds the difference. `whose`: 0 a key's, 1 a user's, 2 a
        team's, 3 a model's.
        """
        if len(limits) != len(_LIMITS_AT):
            raise TypeError("change(number, limits: tuple of 8, whose, now_s)")
        if not 0 <= whose < len(_WHOSE) or not _NONE <= (limits[-1] or 0) < 2**31:
            raise ValueError("whose, or soft, is not one of ours")
        at, q, d = self._at(number), self._q, self._d
        with self._locked():
            self._begin((at,))
            self._refill(at, now_s)
            for rate, _ in _RATES:
                d[at + _LEFT + rate] = _moved(d[at + _LEFT + rate], q[at + _RATE + rate], limits[rate])
            for word, new in zip(_LIMITS_AT, limits, strict=True):
                q[at + word] = _NONE if new is None else new
            q[at + _OWNER] = whose

    def window(self, number: int, which: int, kind: int, end_s: float, spent: int, back: bool = False, /) -> None:
        """A window of a budget (`which`: 0 of money, 1 of tokens) begins, unless another process has begun it, or a later one of its kind
        (1 to 255: windows of two kinds may end together; `back`: the later one was begun by a clock that was wrong). What is reserved
        stays so: it will be spent in this one. Of one that has begun, both what was counted here and what the caller has read are no
        more than was spent.
        """
        if which not in _BUDGETS or not 1 <= kind <= 255:
            raise ValueError("which is 0 or 1, kind 1 to 255")
        at, q = self._at(number), self._q
        budget, kind_at = at + _BUDGET_AT[which], at + _WINDOW_KIND[which]
        with self._locked():
            if q[kind_at] != kind or self._d[budget + _END] < end_s or (back and self._d[budget + _END] > end_s):
                self._begin((at,))
                q[kind_at] = kind
                self._d[budget + _END] = end_s
                q[budget + _SPENT] = spent
                q[at + _LOST[which]] = 0
            elif self._d[budget + _END] == end_s and q[budget + _SPENT] < spent:
                self._begin((at,))
                q[budget + _SPENT] = spent

    def counted(self, number: int, which: int) -> Counted:
        """What was counted in a budget's window."""
        if which not in _BUDGETS:
            raise ValueError("which is 0 or 1")
        at, q = self._at(number), self._q
        budget = at + _BUDGET_AT[which]
        with self._locked():
            return q[at + _WINDOW_KIND[which]], self._d[budget + _END], q[budget + _SPENT], q[at + _LOST[which]]

    def reconcile(self, number: int, which: int, counted: Counted, booked: int) -> None:
        """The books have `booked` of this window, and in it all that had ended when `counted` was read, be it that a process had died.

        What was spent is the larger of the two figures, as in `window`. What killed processes had reserved then was counted at its upper
        bound, and the books have it as it was: so as much of it comes off as was counted more than is booked, and never more than it
        was. What has been counted since `counted` was read stays on, for it may not be booked. (What of it is booked already hides as
        much that should come off: to the budget's side, by what is spent in a second.) Nothing is done in another window.
        """
        if which not in _BUDGETS:
            raise ValueError("which is 0 or 1")
        if not isinstance(counted, tuple) or len(counted) != 4:
            raise TypeError("reconcile(number, which, counted: tuple of 4, booked)")
        if booked > _MOST:
            raise OverflowError("more than can be counted")
        at, q = self._at(number), self._q
        budget, lost_at = at + _BUDGET_AT[which], at + _LOST[which]
        kind, end_s, spent, lost = counted
        with self._locked():
            if q[at + _WINDOW_KIND[which]] != kind or self._d[budget + _END] != end_s:
                return
            self._begin((at,))
            known = min(lost, q[lost_at])
            q[lost_at] -= known
            q[budget + _SPENT] = max(q[budget + _SPENT] - min(known, max(0, spent - booked)), booked)

    def headers(self, numbers: tuple[int, ...], now_s: float) -> bytes:
        """The x-ratelimit lines of the rates that have least left, and when their buckets would be full again; `x-budget-warning` of the
        budget that has gone furthest beyond its soft limit.
        """
        places = self._places(numbers)
        with self._locked():
            self._begin(places)
            for at in places:
                self._refill(at, now_s)
            return self._headers(places)

    def reserve(self, numbers: tuple[int, ...], tokens: int, cost_pusd: int, now_s: float) -> LevelsPermit | Refused:
        """Take one request, `tokens` and `cost_pusd` from every one of these accounts (at most 4), or nothing from any."""
        if max(tokens, cost_pusd) > _MOST:
            raise OverflowError("more than can be counted")
        places = self._places(numbers)
        q, d = self._q, self._d
        with self._locked():
            next_held = self._next_held()
            held = self._held_at(next_held)
            self._begin((*places, held))
            whys: list[_Why] = []
            for place, at in enumerate(places):
                self._refill(at, now_s)
                whys += self._refusals(at, place, tokens, cost_pusd, now_s)
            if whys:
                final, wait_s, _, which, place = max(whys, key=lambda why: why[:3])
                return which, None if math.isinf(wait_s) else wait_s, final, place, self._headers(places)
            # what does not fit into 64 bits is not counted, so that all that is can be taken off again
            tokens = min(tokens, *(_MOST - q[at + _BUDGET_AT[_IN_TOKENS] + _RESERVED] for at in places))
            cost_pusd = min(cost_pusd, *(_MOST - q[at + _BUDGET_AT[_MONEY] + _RESERVED] for at in places))
            self._take_held(next_held)
            q[held + _COUNT], q[held + _HELD_TOKENS], q[held + _COST] = len(places), tokens, cost_pusd
            for place, at in enumerate(places):
                q[held + _FIRST_ACCOUNT + place] = at
                for rate, _ in _RATES:
                    d[at + _LEFT + rate] -= tokens if rate & 1 else 1
                q[at + _RUNNING] += 1
                q[at + _BUDGET_AT[_MONEY] + _RESERVED] += cost_pusd
                q[at + _BUDGET_AT[_IN_TOKENS] + _RESERVED] += tokens
            return LevelsPermit(self, held, self._headers(places))

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

    def state(self, number: int) -> State:
        """What is counted: for tests, and for people."""
        at, q, d = self._at(number), self._q, self._d
        with self._locked():
            budgets = [q[at + budget + word] for budget in _BUDGET_AT for word in (_RESERVED, _SPENT)]
            ends_s = [d[at + budget + _END] for budget in _BUDGET_AT]
            return cast("State", (q[at + _RUNNING], *budgets, *ends_s, *d[at + _LEFT : at + _LEFT + len(_RATES)]))

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
        """What a killed process held: its slots are free, its reservation counts as used until the books are known (`reconcile`)."""
        q, count = self._q, 0
        for number in range(1, q[_FRESH_AT]):
            held = self._held_at(number)
            if q[held + _PROCESS] == slot + 1:
                self._settle(held, q[held + _HELD_TOKENS], q[held + _COST], lost=True)
                count += 1
        return count

    def _settle(self, held: int, tokens: int, cost_pusd: int, *, lost: bool = False) -> None:
        q, d = self._q, self._d
        places = [q[held + _FIRST_ACCOUNT + place] for place in range(q[held + _COUNT])]
        self._begin((*places, held))
        for at in places:
            q[at + _RUNNING] -= 1
            for which, reserved, used in ((_MONEY, q[held + _COST], cost_pusd), (_IN_TOKENS, q[held + _HELD_TOKENS], tokens)):
                budget = at + _BUDGET_AT[which]
                q[budget + _RESERVED] -= reserved
                q[budget + _SPENT] = min(q[budget + _SPENT] + used, _MOST)
                if lost:
                    q[at + _LOST[which]] = min(q[at + _LOST[which]] + used, _MOST)
            for rate in (_TOKENS, _TOKENS_DAY):
                left, limit = d[at + _LEFT + rate] + (float(q[held + _HELD_TOKENS]) - tokens), q[at + _RATE + rate]
                d[at + _LEFT + rate] = left if limit == _NONE else min(left, float(limit))
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

    def _refusals(self, at: int, place: int, tokens: int, cost_pusd: int, now_s: float) -> Iterator[_Why]:
        """All that this account has against it."""
        q, d = self._q, self._d
        for which, wanted in ((_MONEY, cost_pusd), (_IN_TOKENS, tokens)):
            amount, reserved, spent = q[at + _BUDGET_AT[which] : at + _BUDGET_AT[which] + 3]
            if amount != _NONE and spent + reserved + wanted > amount:
                wait_s = max(0.0, d[at + _BUDGET_AT[which] + _END] - now_s)
                yield True, wait_s, -place, _BUDGET + which, place
        for rate, period_s in _RATES:
            limit, wanted = q[at + _RATE + rate], tokens if rate & 1 else 1
            if limit == _NONE:
                continue
            if rate & 1 and wanted > limit:
                yield True, math.inf, -place, rate, place
            elif d[at + _LEFT + rate] < wanted:
                yield False, (wanted - d[at + _LEFT + rate]) * period_s / limit if limit else period_s, -place, rate, place
        if q[at + _MOST_RUNNING] != _NONE and q[at + _RUNNING] >= q[at + _MOST_RUNNING]:
            yield False, 1.0, -place, _CONCURRENCY, place

    def _refill(self, at: int, now_s: float) -> None:
        d = self._d
        elapsed_s = now_s - d[at + _UPDATED]
        if elapsed_s <= 0:  # another process read its clock later, but was here before; or the clock was set back: nothing for that time
            if elapsed_s < -1 and d[at + _UPDATED] > time.time() + 1:
                d[at + _UPDATED] = time.time()
            return
        d[at + _UPDATED] = now_s
        for rate, period_s in _RATES:
            limit = self._q[at + _RATE + rate]
            if limit != _NONE:
                d[at + _LEFT + rate] = min(d[at + _LEFT + rate] + elapsed_s * limit / period_s, float(limit))

    def _headers(self, places: Sequence[int]) -> bytes:
        q, d = self._q, self._d
        lines: list[bytes] = []
        for what, name in enumerate((b"requests", b"tokens")):
            rates = [
                (d[at + _LEFT + rate], q[at + _RATE + rate], period_s)
                for at in places
                for rate, period_s in _RATES
                if rate & 1 == what and q[at + _RATE + rate] > 0
            ]
            if rates:
                lines.append(_lines(name, *min(rates, key=lambda rate: rate[0])))
        percent, of = max((self._passed(at, which) for at in places for which in _BUDGETS), key=lambda passed: passed[0])
        if percent >= 0:
            lines.append(b"x-budget-warning: %b%d%%\r\n" % (of, percent))
        return b"".join(lines)

    def _passed(self, at: int, which: int) -> tuple[int, bytes]:
        """(percent spent of this budget, whose it is, as the header has it); -1 percent: no more than its soft limit."""
        q = self._q
        amount, _, spent = q[at + _BUDGET_AT[which] : at + _BUDGET_AT[which] + 3]
        if q[at + _SOFT] == _NONE or amount <= 0 or spent * 100 < amount * q[at + _SOFT]:
            return -1, b""
        return min(spent * 100 // amount, _MOST_PERCENT), _WHOSE[q[at + _OWNER] & 3] + (b" tokens " if which == _IN_TOKENS else b" ")

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

    def _places(self, numbers: tuple[int, ...]) -> list[int]:
        if not isinstance(numbers, tuple) or not 1 <= len(numbers) <= _MOST_AT_ONCE:
            raise TypeError("the accounts are a tuple of 1 to 4 numbers")
        return [self._at(number) for number in numbers]

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
                self._settle(held, q[held + _HELD_TOKENS], q[held + _COST])
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
    """A reservation. `headers`: those of `Levels.headers`."""

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


def _lines(what: bytes, left: float, limit: int, period_s: float) -> bytes:
    values = (what, limit, what, max(0, int(left)), what, _duration((limit - left) * period_s / limit))
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % values


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 20ms, 6s, 1m30s, 6m0s, 23h59m0s."""
    if seconds < 1:
        return b"%dms" % (seconds * 1000)
    minutes, rest = divmod(int(seconds + 0.999), 60)
    if minutes >= 60:
        return b"%dh%dm%ds" % (minutes // 60, minutes % 60, rest)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
