"""The segments on disk against what SQL knows of them: none is missing, none is damaged, and what they say was booked is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.keeper.ship import ID_FILE
from gateway.metering.ledger import SUFFIX, sort_lines, writer_is_dead
from gateway.store import segments
from gateway.store.engine import Database
from gateway.store.rows import normal
from gateway.store.segments import Segment
from gateway.store.verify import Fault, missing_or_other

_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Segments:
    """`elsewhere`: segments in the folders of other hosts, which cannot be looked at from here."""

    checked: int
    elsewhere: int
    faults: list[Fault]


async def verify_segments(db: Database, folder: Path) -> Segments:
    """Raises `StoreUnavailable`. A fault counts if it is still there a moment later: the keeper moves on meanwhile."""
    found = await _look(db, folder)
    if found.faults:
        await asyncio.sleep(_AGAIN_S)
        again = await _look(db, folder)
        lasting = {fault.where for fault in again.faults}
        found = Segments(again.checked, again.elsewhere, [fault for fault in found.faults if fault.where in lasting])
    return found


async def _look(db: Database, folder: Path) -> Segments:
    async with db.read() as conn:
        known = {segment.name: segment for segment in await segments.all_known(conn)}
    files = _files(folder)
    mine = _folder_id(folder)
    elsewhere = {name for name, segment in known.items() if db.dialect != "sqlite" and segment.folder not in (None, mine)}
    faults = _missing(known.values(), files, elsewhere) + _gaps(known, files, elsewhere)
    for name, path in sorted(files.items()):
        faults += await _damaged(db, path, known.get(name))
    return Segments(len(files), sum(not known[name].finished for name in elsewhere), faults)


def _files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob(f"*{SUFFIX}")} if folder.is_dir() else {}


def _folder_id(folder: Path) -> str:
    try:
        return (folder / ID_FILE).read_text("ascii").strip()
    except FileNotFoundError:
        return ""


def _missing(known: Iterable[Segment], files: Mapping[str, Path], elsewhere: set[str]) -> list[Fault]:
    return [
        Fault("segment", one.name, f"The segment {one.name} is missing: {one.offset} bytes of it were shipped, what else it held is lost.")
        for one in known
        if not one.finished and one.name not in files and one.name not in elsewhere
    ]


def _gaps(known: Mapping[str, Segment], files: Mapping[str, Path], elsewhere: set[str]) -> list[Fault]:
    """A writer counts its segments from 0, and finished ones are remembered: a number that is nowhere was lost before it was shipped."""
    numbers: dict[str, set[int]] = {}
    for one in (*known.values(), *(Segment(name, 0, None, False) for name in files)):
        if one.number >= 0 and one.name not in elsewhere:
            numbers.setdefault(one.writer, set()).add(one.number)
    names = [
        f"{writer}-{number:06d}{SUFFIX}" for writer, there in sorted(numbers.items()) for number in sorted(set(range(max(there))) - there)
    ]
    return [Fault("segment", name, f"The segment {name} is missing; a later one of its writer is there.") for name in names]


async def _damaged(db: Database, path: Path, known: Segment | None) -> list[Fault]:
    name = path.name
    try:
        dead = writer_is_dead(path)
        data = await asyncio.to_thread(_written, path)
    except FileNotFoundError:  # wholly shipped meanwhile
        return []
    shipped = known.offset if known is not None and not known.finished else 0
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < shipped:
        return [Fault("segment", name, f"The segment {name} has {len(whole)} bytes of whole lines; {shipped} were shipped.")]
    if shipped and data[shipped - 1 : shipped] != b"\n":
        return [Fault("segment", name, f"The segment {name} was shipped up to the middle of a line.")]
    lines = whole.split(b"\n")[:-1]
    torn = [number for number, line in enumerate(lines, 1) if not _is_line(line)]
    if torn and (dead or torn != [len(lines)]):
        return [Fault("segment", name, f"The segment {name} has {len(torn)} lines that cannot be read, the first is line {torn[0]}.")]
    return await missing_or_other(db, normal(sort_lines(whole[:shipped]).columns))


def _written(path: Path) -> bytes:
    data = path.read_bytes()
    end = data.find(b"\0")
    return data if end < 0 else data[:end]


def _is_line(line: bytes) -> bool:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return type(value) is list and len(value) > 1 and value[0] in ("B", "E")
