"""What of the ledger waits on disk to be booked: how much, in how many segments, and for how long.

Whoever ships says in a small file of the ledger's folder how far it has come; everybody may read what is left.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from gateway.metering.ledger import SUFFIX

OFFSETS_FILE = "shipped"
_LINE_BYTES = 256  # enough for the beginning of any line, which says when its request began


class Backlog(NamedTuple):
    """`disk_bytes`: what segments take, waiting or not; `oldest_s`: when the request began whose line has waited longest (Unix seconds)."""

    segments: int
    disk_bytes: int
    waiting_bytes: int
    oldest_s: float | None


def publish(folder: Path, offsets: Mapping[str, int]) -> None:
    """Say how far each segment is shipped."""
    data = orjson.dumps(dict(offsets), option=orjson.OPT_SORT_KEYS)
    file = folder / OFFSETS_FILE
    try:
        if file.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    fresh = file.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(file)


def backlog(folder: Path) -> Backlog:
    """Cheap enough for once a second: of segments that were left, the end of what is written is not looked for."""
    offsets = read_offsets(folder)
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.name.endswith(SUFFIX))
    except FileNotFoundError:
        found = []
    newest = {name.rpartition("-")[0]: name for name, _ in found}
    waiting_bytes, oldest_s = 0, None
    for name, size in found:
        offset = offsets.get(name, 0)
        try:
            written, began_s = _look(folder / name, offset, size if newest[name.rpartition("-")[0]] != name else None)
        except OSError:  # shipped and removed meanwhile
            continue
        waiting_bytes += written - offset
        if began_s is not None and (oldest_s is None or began_s < oldest_s):
            oldest_s = began_s
    return Backlog(len(found), sum(size for _, size in found), waiting_bytes, oldest_s)


def read_offsets(folder: Path) -> dict[str, int]:
    """What `publish` said last."""
    try:
        told = orjson.loads((folder / OFFSETS_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return {name: at for name, at in told.items() if type(at) is int} if type(told) is dict else {}


def _look(path: Path, offset: int, size: int | None) -> tuple[int, float | None]:
    """How far a segment is written (`size` where that is known), and when the request of its first waiting line began."""
    with path.open("rb") as file:
        file.seek(offset)
        line = file.read(_LINE_BYTES)
        if line[:1] in (b"", b"\0"):
            return offset, None
        if size is None:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                end = memory.find(b"\0", offset)
                size = len(memory) if end < 0 else end
    return size, _began_s(line)


def _began_s(line: bytes) -> float | None:
    try:
        return float(line.split(b",", 3)[2])  # ["B","req-...",1795242728.437149,
    except (ValueError, IndexError):
        return None
