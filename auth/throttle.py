"""How long a login has to wait after wrong ones, by account and address. Never a lock-out: every wait ends, and soon.

Three counts of wrong passwords, each with a wait that grows with it and a longest wait; a count is forgotten an hour after its last one:

    of one account from one address   doubles each time from the 6th on: 1 s ... 1 min
    from one address, any account     doubles each time from the 21st on: 1 s ... 1 min
    of one account, from anywhere     doubles every ten from the 21st on: 0.25 s ... 10 s; at most 0.5 s for an address that has none yet

The last two are for *strangers*: addresses from which this user has not logged in before. From a known address only the first count is
looked at; its wait begins with the 11th and is at most 3 s. So whoever tries a thousand addresses slows down those alone, and the owner
comes in.

An attempt is counted before the password is looked at (or many at once would all see a count of none) and taken back if it was right.
An account that does not exist is counted like any other.

The counts stand in a file of fixed size in shared memory, for all processes of the host: a table of 65,536 slots by a keyed digest, so
that the file names nobody. Only attempts that got as far as a hash (`auth.turns`) write into it, so it cannot be flooded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from auth.errors import LoginDelayed

FORGET_S = 3600.0
_HEAD = struct.Struct("<8s16s8x")  # form and version, key of the digests
_MAGIC = b"gwlogin1"
_SLOT = struct.Struct("<16sIId")  # digest, count, known address, Unix seconds of the last one
_SETS, _WAYS = 8192, 8
_SIZE_BYTES = _HEAD.size + _SETS * _WAYS * _SLOT.size
_EMPTY = b"\0" * 16
_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True)
class Wait:
    """After `free` wrong ones `first_s`, doubled every `step` more, at most `longest_s`."""

    free: int
    first_s: float
    step: int
    longest_s: float

    def after(self, count: int) -> float:
        if count < self.free:
            return 0.0
        doublings = min((count - self.free) / self.step, _MAX_DOUBLINGS)
        return float(min(self.longest_s, self.first_s * 2.0**doublings))


PAIR = Wait(free=5, first_s=1.0, step=1, longest_s=60.0)
PAIR_KNOWN = Wait(free=10, first_s=1.0, step=1, longest_s=3.0)
ADDRESS = Wait(free=20, first_s=1.0, step=1, longest_s=60.0)
ACCOUNT = Wait(free=20, first_s=0.25, step=10, longest_s=10.0)
ACCOUNT_FRESH = Wait(free=20, first_s=0.25, step=10, longest_s=0.5)


@dataclass(slots=True)
class _Count:
    """One slot. `at`: its place in the file; `count` 0 = nobody's, or forgotten."""

    at: int
    digest: bytes
    count: int
    known: bool
    last_s: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One login that may go on. End it with `Throttle.succeeded` or `Throttle.withdrawn`; one that failed is counted already.

    `at_s`: when it was counted; `before_s`: when the last one before it was, of each count.
    """

    digests: tuple[bytes, ...]
    known: bool
    at_s: float
    before_s: tuple[float, ...]


class Throttle:
    """`path`: the shared file; None: counts of this process alone. `clock`: Unix seconds."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._fd = -1
        if path is None:
            self._memory = mmap.mmap(-1, _SIZE_BYTES)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._fd).st_size < _SIZE_BYTES:
                os.ftruncate(self._fd, _SIZE_BYTES)
            self._memory = mmap.mmap(self._fd, _SIZE_BYTES)
        with self._locked():
            magic, self._key = _HEAD.unpack_from(self._memory)
            if magic != _MAGIC:
                self._key = secrets.token_bytes(16)
                self._memory[:] = b"\0" * _SIZE_BYTES
                _HEAD.pack_into(self._memory, 0, _MAGIC, self._key)

    def refuse_early(self, account: str, address: str) -> None:
        """Raises `LoginDelayed` for what `enter` would refuse, as far as it is known without the database: cheap, and counts nothing."""
        digests = self._digests(account, address)
        with self._locked():
            now_s = self._clock()
            pair = self._find(digests[0], now_s)
            if pair.count:
                self._require_waited(self._found(digests, pair, now_s), pair.known, now_s)

    def enter(self, account: str, address: str, *, known: bool) -> Attempt:
        """Count an attempt. `known`: this user has logged in from this address before. Raises `LoginDelayed`."""
        digests = self._digests(account, address)
        with self._locked():
            now_s = self._clock()
            counts = self._found(digests, self._find(digests[0], now_s), now_s)
            self._require_waited(counts, known, now_s)
            mine = digests[:1] if known else digests
            for digest in mine:
                slot = self._find(digest, now_s)  # again: two new ones may have been shown the same spare slot
                self._write(slot, slot.count + 1, known, now_s)
        return Attempt(mine, known, now_s, tuple(count.last_s for count in counts[: len(mine)]))

    def succeeded(self, attempt: Attempt) -> None:
        """The password was right: this user's count from this address is forgotten, and the others are as before."""
        self._take_back(attempt, forget_pair=True)

    def withdrawn(self, attempt: Attempt) -> None:
        """The password was not looked at."""
        self._take_back(attempt, forget_pair=False)

    def close(self) -> None:
        self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)

    def _take_back(self, attempt: Attempt, *, forget_pair: bool) -> None:
        with self._locked():
            now_s = self._clock()
            for i, digest in enumerate(attempt.digests):
                slot = self._find(digest, now_s)
                if not slot.count:
                    continue
                last_s = attempt.before_s[i] if slot.last_s == attempt.at_s else slot.last_s
                self._write(slot, 0 if forget_pair and i == 0 else slot.count - 1, attempt.known, last_s)

    @staticmethod
    def _require_waited(counts: tuple[_Count, ...], known: bool, now_s: float) -> None:
        pair, address, account = counts
        waits = [_left_s(pair, PAIR_KNOWN if known else PAIR, now_s)]
        if not known:
            waits.append(_left_s(address, ADDRESS, now_s))
            waits.append(_left_s(account, ACCOUNT if address.count else ACCOUNT_FRESH, now_s))
        if max(waits) > 0:
            raise LoginDelayed(max(waits))

    def _digests(self, account: str, address: str) -> tuple[bytes, bytes, bytes]:
        """Of the pair, the address, the account."""
        names = ((account, address), ("", address), (account, ""))
        return tuple(  # type: ignore[return-value]  # three names, three digests
            hashlib.blake2b(f"{len(a)} {a} {b}".encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest() for a, b in names
        )

    def _found(self, digests: tuple[bytes, bytes, bytes], pair: _Count, now_s: float) -> tuple[_Count, ...]:
        return pair, self._find(digests[1], now_s), self._find(digests[2], now_s)

    def _find(self, digest: bytes, now_s: float) -> _Count:
        """Its slot; else the one that it would take: an empty one, one that is forgotten, or the one that weighs least."""
        at = _HEAD.size + int.from_bytes(digest[:4], "little") % _SETS * _WAYS * _SLOT.size
        spare_at, spare_weight = at, (float("inf"), 0.0)
        for place in range(at, at + _WAYS * _SLOT.size, _SLOT.size):
            owner, count, known, last_s = _SLOT.unpack_from(self._memory, place)
            live = owner != _EMPTY and abs(now_s - last_s) < FORGET_S  # abs: clocks are set back
            if owner == digest:
                return _Count(place, digest, count if live else 0, bool(known), min(last_s, now_s))
            weight = (float(count), last_s) if live else (0.0, 0.0)
            if weight < spare_weight:
                spare_at, spare_weight = place, weight
        return _Count(spare_at, digest, 0, False, 0.0)

    def _write(self, slot: _Count, count: int, known: bool, last_s: float) -> None:
        digest = slot.digest if count else _EMPTY
        _SLOT.pack_into(self._memory, slot.at, digest, min(count, 0xFFFF_FFFF), known, last_s)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Over processes; within one only its event loop comes here. Held for microseconds."""
        if self._fd < 0:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def customer(address: str) -> str:
    """What stands for one customer: the address, in its normal form; of IPv6 the /64, which is what one customer is given.

    "" where the address is not known. What is a customer's already stays as it is.
    """
    if ":" not in address or address.endswith("/64"):
        return address
    try:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    except ValueError:
        return ""


def _left_s(count: _Count, wait: Wait, now_s: float) -> float:
    return count.last_s + wait.after(count.count) - now_s if count.count else 0.0
