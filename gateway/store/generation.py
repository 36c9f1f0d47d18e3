"""Two counters in shared memory that tell every process of the host that something changed, and what each has put in force.

Reading one costs about as much as reading an attribute, so a worker can look before every request.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHANGE, _LOCAL = 0, 1
_FOLLOWERS, _FIRST = 60, 8
"""A place for each: when it was heard last (CLOCK_MONOTONIC, the same for all processes of the host, ns; 0: free), what it has applied."""
_SIZE_BYTES = 8 * (_FIRST + 2 * _FOLLOWERS)
_GONE_NS = 1_000_000_000  # who was not heard for so long is not waited for
_LOST_NS = 60 * _GONE_NS  # nor does the place stay theirs


class Generation:
    """`change`: id of the latest change in the database's change log. `local`: counts changes of the local models' state.

    The file may be created by several processes at once. Owner only (0600): whoever writes it makes workers reload.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE_BYTES:
                os.ftruncate(fd, _SIZE_BYTES)  # grows with zeros; keeps what another process wrote meanwhile
            self._memory = mmap.mmap(fd, _SIZE_BYTES)
        finally:
            os.close(fd)
        self._slots = memoryview(self._memory).cast("Q")

    @property
    def change(self) -> int:
        return self._slots[_CHANGE]

    @property
    def local(self) -> int:
        return self._slots[_LOCAL]

    def set_change(self, change_id: int) -> None:
        """Raise `change` to `change_id`. A smaller one is ignored: two commits may report in the wrong order."""
        with self._locked():
            if change_id > self._slots[_CHANGE]:
                self._slots[_CHANGE] = change_id

    def reset_change(self, change_id: int) -> None:
        """Set `change`, downwards too. For the start of a server, whose database may not be the one of last time."""
        with self._locked():
            self._slots[_CHANGE] = change_id

    def bump_local(self) -> int:
        with self._locked():
            self._slots[_LOCAL] += 1
            return self._slots[_LOCAL]

    def follow(self) -> int:
        """A place for a process that applies changes, from now on waited for; -1 where none is free: it is not."""
        with self._locked():
            now_ns = time.monotonic_ns()
            for place in range(_FIRST, _FIRST + 2 * _FOLLOWERS, 2):
                heard_ns = self._slots[place]
                if not heard_ns or not now_ns - _LOST_NS < heard_ns <= now_ns:  # later than now: of before the machine was started again
                    self._slots[place + 1] = 0
                    self._slots[place] = now_ns
                    return place
        return -1

    def note(self, place: int, change_id: int) -> None:
        """Everything up to this change is in force there. To be said several times a second."""
        if place >= 0:
            self._slots[place + 1] = change_id
            self._slots[place] = time.monotonic_ns()

    def leave(self, place: int) -> None:
        if place >= 0:
            self._slots[place] = 0

    def in_force(self, change_id: int) -> bool:
        """Has every process of the host that follows, and can be heard, put it in force?"""
        now_ns = time.monotonic_ns()
        for place in range(_FIRST, _FIRST + 2 * _FOLLOWERS, 2):
            heard_ns = self._slots[place]
            if heard_ns and 0 <= now_ns - heard_ns < _GONE_NS and self._slots[place + 1] < change_id:
                return False
        return True

    def close(self) -> None:
        self._slots.release()
        self._memory.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A descriptor of its own for each call: flock does not exclude threads or forks that share one.
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
