"""Segments that are done with, emptied and kept for whoever begins the next one.

Their pages are in memory already: writing to a new file instead costs more than all else about a line, for every page has to be found,
zeroed and mapped first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

SUFFIX = ".spare"
UNNAMED_SUFFIX = ".new"
"""Of a file on its way from one name to another: whatever is left of it by a kill is removed (`ledger.forget_unnamed`)."""
MOST = 4
_ZEROS = bytes(262_144)


def put_by(segment: Path) -> None:
    """A segment that nobody reads or writes any more: it is kept where there is need of it, else removed."""
    unnamed = segment.with_suffix(UNNAMED_SUFFIX)
    try:
        segment.rename(unnamed)
    except FileNotFoundError:
        return
    try:
        if sum(1 for _ in segment.parent.glob(f"*{SUFFIX}")) < MOST:
            _empty(unnamed)
            unnamed.rename(segment.with_suffix(SUFFIX))
            return
    except OSError:
        pass
    with contextlib.suppress(OSError):
        unnamed.unlink(missing_ok=True)


def _empty(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        at, size = 0, os.fstat(fd).st_size
        while at < size and os.pread(fd, 1, at) != b"\0":  # from the beginning: what a kill leaves half done reads as empty
            at += os.pwrite(fd, _ZEROS[: size - at], at)
    finally:
        os.close(fd)


def take(folder: Path, size_bytes: int, unnamed: Path) -> int:
    """A spare one of this size or larger, renamed to `unnamed`: its descriptor, with the lock; -1: there is none."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size >= size_bytes:
                path.rename(unnamed)
                return fd
        except OSError:  # somebody else's by now
            pass
        if fd >= 0:
            os.close(fd)
    return -1


def clear(folder: Path) -> None:
    """Remove them all: after a loss of power nobody knows what is in them."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)
