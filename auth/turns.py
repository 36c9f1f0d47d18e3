"""One password hash at a time on the host, and whose turn it is.

Hashing is the one thing here that a stranger can make expensive. So of all the gateway's processes on a host only one hashes at any
moment (a lock on a file), in a thread that gives way to everything else (niced), and there are two queues:

- *ahead*: logins from an address that this user has logged in from before, and whoever has proven who they are;
- *behind*: everybody else. At most one of them, of all processes, stands for the next turn, and together they get a share of one core
  (`share`, after a burst): what is left of the time is for those ahead, who therefore wait for one hash of theirs at most.

Both queues are bounded. Whoever finds theirs full is told so at once (`HasherBusy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from auth.errors import HasherBusy

NICENESS = 10  # no more: where the machine is busy, a thread that hardly ever runs would hold the interpreter from the event loop
MAX_AHEAD, MAX_BEHIND = 64, 16
SHARE = 0.15
BURST_S = 1.0
_MAX_PAUSE_S = 5.0
_T = TypeVar("_T")


class Turns:
    """Runs hashes, each in its turn. `lock_file`: shared by the processes of a host; None: this process is alone.

    `share`: of one core, for those behind; `burst_s`: CPU seconds that they may use up at once before.
    """

    def __init__(
        self,
        lock_file: Path | None = None,
        *,
        max_ahead: int = MAX_AHEAD,
        max_behind: int = MAX_BEHIND,
        share: float = SHARE,
        burst_s: float = BURST_S,
    ) -> None:
        self._turn = _HostLock(lock_file)
        self._gap = _HostLock(lock_file and lock_file.with_name(lock_file.name + ".behind"))
        self._bounds = {True: max_ahead, False: max_behind}
        self._waiting = {True: 0, False: 0}
        self._threads = {
            True: ThreadPoolExecutor(1, "password", initializer=_lower_priority, initargs=(NICENESS,)),
            False: ThreadPoolExecutor(1, "password-behind", initializer=_lower_priority, initargs=(NICENESS,)),
        }
        self._share = share
        self._burst_s = burst_s
        self._closed = threading.Event()

    async def run(self, work: Callable[[], _T], *, ahead: bool) -> _T:
        """`work` in its turn. Raises `HasherBusy` where one is at work and the queue behind it is full."""
        self.require_room(ahead=ahead)
        self._waiting[ahead] += 1
        try:
            turn = self._ahead if ahead else self._behind
            return await asyncio.get_running_loop().run_in_executor(self._threads[ahead], turn, work)
        finally:
            self._waiting[ahead] -= 1

    def require_room(self, *, ahead: bool) -> None:
        """Raises `HasherBusy` where one is at work and the queue behind it is full."""
        if self._waiting[ahead] > self._bounds[ahead]:
            raise HasherBusy

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, work: Callable[[], _T]) -> _T:
        with self._turn.held():
            return work()

    def _behind(self, work: Callable[[], _T]) -> _T:
        with self._gap.held():
            self._closed.wait(min(max(0.0, self._gap.value - time.monotonic()), _MAX_PAUSE_S))
            with self._turn.held():
                started_s = time.thread_time()
                result = work()
                used_s = time.thread_time() - started_s
            self._gap.value = self._next_gap_s(used_s)
            return result

    def _next_gap_s(self, used_s: float) -> float:
        """When the next of those behind may have its turn: a bucket of `burst_s`, refilled at `share`, as the time at which it is full."""
        now_s = time.monotonic()
        before_s = min(self._gap.value, now_s)  # a file from before the machine was started says nothing
        return max(before_s, now_s - self._burst_s / self._share) + used_s / self._share


class _HostLock:
    """A lock over the threads and processes of a host, and a number that belongs to whoever holds it (0 at first)."""

    _FORM = struct.Struct("<d")

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._threads = threading.Lock()
        self.value = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._threads:
            if self._path is None:
                yield
                return
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                raw = os.pread(fd, self._FORM.size, 0)
                self.value = float(self._FORM.unpack(raw)[0]) if len(raw) == self._FORM.size else 0.0
                yield
                os.pwrite(fd, self._FORM.pack(self.value), 0)
            finally:
                os.close(fd)


def _lower_priority(niceness: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)  # on Linux: this thread alone
