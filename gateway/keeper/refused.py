"""Lines of the ledger that no database takes, set aside in a file of its folder (refused.jsonl), so that those behind them are booked.

One JSON object a line: why (the class of the fault, never its words), the segment, and the fields of the record. They are in no report and
in no budget: whoever runs the gateway looks at them, and removes the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from gateway.metering.record import FIELDS

REFUSED_FILE = "refused.jsonl"


def set_aside(folder: Path, segment: str, error: Exception, *, row: list[Any] | None = None, begun: str = "") -> None:
    """On the disk when this returns, and only once. `row`: in the order of FIELDS; `begun`: a BEGIN line."""
    told: dict[str, Any] = {"why": type(error).__name__, "segment": segment}
    told |= {"begin": begun} if row is None else dict(zip(FIELDS, row, strict=False))
    line = orjson.dumps(told, default=repr)
    file = folder / REFUSED_FILE
    if line in _lines(file):
        return
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


def refused_lines(folder: Path) -> int:
    """How many were set aside."""
    return sum(1 for _ in _lines(folder / REFUSED_FILE))


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as lines:
            for line in lines:
                yield line.rstrip(b"\n")
    except FileNotFoundError:
        return
