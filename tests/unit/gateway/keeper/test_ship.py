"""What is in SQL is what the records said, whatever happens between the two."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select

from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import ENDINGS, FIELDS, TOKEN_SOURCES, UsageRecord
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.migrate import migrate
from gateway.store.requests import rows_since
from gateway.store.segments import open_offsets
from gateway.store.tables import key_uses
from gateway.store.usage import Wanted, whole_report

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
MS = st.floats(0, 1e9).map(lambda ms: round(ms, 6))  # as the ledger writes it
COUNTS = st.integers(0, 10**9)
ADMITTED = st.fixed_dictionaries(
    {
        "started_at": st.floats(1.7e9, 1.7e9 + 90_000).map(lambda at: round(at, 6)),
        "operation": st.sampled_from(("chat", "embeddings")),
        "key_id": st.none() | st.sampled_from(("k1", "k2")),
        "user_id": NAMES,
        "model": NAMES,
        "revision": st.integers(0, 2**40),
        "client_request_id": st.none() | st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=128),
    }
)
ENDED = st.fixed_dictionaries(
    {
        "backend": st.none() | NAMES,
        "attempts": st.integers(0, 3),
        "status": st.integers(200, 599),
        "ending": st.sampled_from(ENDINGS),
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "token_source": st.sampled_from(TOKEN_SOURCES),
        "cost_pusd": st.integers(0, 10**16),
        "duration_ms": MS,
        "ttft_ms": st.none() | MS,
        "queue_ms": MS,
        "connect_ms": st.none() | MS,
        "experiment": st.none() | NAMES,
        "arm": st.none() | NAMES,
    }
)
STEPS = st.lists(
    st.tuples(st.just("begin"), ADMITTED)
    | st.tuples(st.just("end"), ENDED)
    | st.tuples(st.sampled_from(("ship", "restart", "repeat")), st.none()),
    max_size=40,
)


@dataclass
class Books:
    """A writer, a shipper and a database; and what ought to be in it."""

    folder: Path
    db: Database
    writer: SegmentWriter
    shipper: Shipper
    running: list[UsageRecord] = field(default_factory=list)
    ended: list[UsageRecord] = field(default_factory=list)
    begun: int = 0

    async def step(self, kind: str, values: dict[str, Any] | None) -> None:
        if kind == "begin":
            assert values is not None
            self.begun += 1
            self.running.append(UsageRecord(f"req-{self.begun:08x}", **values))
            self.writer.begin(self.running[-1], 1, 1)
        elif kind == "end" and self.running:
            assert values is not None
            record = self.running.pop(self.begun % len(self.running))
            for name, value in values.items():
                setattr(record, name, value)
            self.writer.end(record)
            self.ended.append(record)
        elif kind == "ship":
            await self.shipper.ship()
        elif kind == "restart":
            self.restart()
        elif kind == "repeat":  # as after a restore from a backup: the segments are shipped from their beginning once more
            async with self.db.write() as conn:
                await conn.exec_driver_sql("DELETE FROM ledger_segments")
            self.restart()

    def restart(self) -> None:
        self.shipper.close()
        self.shipper = Shipper(self.db, self.folder)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(path)) as conn:
        tables = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'usage_[0-9]*'")]
        found = [row for table in tables for row in conn.execute(f"SELECT {', '.join(FIELDS)} FROM {table}")]
        rows = [dict(zip(FIELDS, row, strict=True)) for row in found]
    return {row["request_id"]: row for row in rows}


async def _run(folder: Path, migrated: Path, steps: list[tuple[str, dict[str, Any] | None]]) -> None:
    path = folder / "gateway.sqlite3"
    shutil.copy(migrated, path)
    db = Database(f"sqlite+aiosqlite:///{path}")
    books = Books(folder / "ledger", db, SegmentWriter(folder / "ledger", segment_bytes=8000), Shipper(db, folder / "ledger"))
    for kind, values in steps:
        await books.step(kind, values)
    books.writer.close()
    await books.shipper.ship()
    for record in books.running:
        record.ending = "interrupted"
    expected = [asdict(record) for record in (*books.ended, *books.running)]
    assert _rows(path) == {row["request_id"]: row for row in expected}
    async with db.read() as conn:
        found = await whole_report(conn, "user", Wanted())
        assert await open_offsets(conn) == {}
    costs: Counter[str] = Counter()
    for row in expected:
        costs[row["user_id"]] += row["cost_pusd"]
    assert {line.group: line.cost_pusd for line in found} == costs
    assert sum(line.requests for line in found) == len(expected)
    assert list(books.folder.glob("*.seg")) == []
    books.shipper.close()
    await db.close()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS)
def test_rows_equal_records(
    migrated: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, dict[str, Any] | None]]
) -> None:
    asyncio.run(_run(tmp_path_factory.mktemp("books"), migrated, steps))


async def test_segments_of_an_older_version_are_shipped_beside_new_lines(tmp_path: Path, db: Database) -> None:
    """27 lines of twenty fields are as many values as twenty of 27: they must not be taken for those."""
    folder = tmp_path / "ledger"
    writer = SegmentWriter(folder)
    records = [UsageRecord(f"req-{n}", 1.7e9 + n, "chat", "k", "u", "m", 1, attempts=n, status=200, ending="success") for n in range(28)]
    (path,) = folder.glob("*.seg")
    lines = [["E", *list(asdict(record).values())[:20]] for record in records[:27]]
    old = (
        b"".join(orjson.dumps(line) + b"\n" for line in lines)
        + orjson.dumps(["B", "req-x", 1.7e9, "chat", None, "u", "m", 1, None, 5, 5])
        + b"\n"
    )
    with path.open("r+b") as file:
        file.write(old)
    shipper = Shipper(db, folder)
    assert await shipper.ship() == 27
    records[27].experiment, records[27].arm = "summer", "a"
    later = SegmentWriter(folder)
    later.begin(records[27], 1, 1)
    later.end(records[27])
    writer.close()
    assert await shipper.ship() == 1
    async with db.read() as conn:
        rows = await rows_since(conn, 0)
    booked = [{name: row[name] for name in FIELDS} for row in rows if row["request_id"] != "req-x"]
    assert booked == [asdict(record) for record in records]
    assert [row["ending"] for row in rows if row["request_id"] == "req-x"] == ["interrupted"]
    later.close()
    shipper.close()


async def test_keys_are_known_to_be_used_however_their_requests_ended(tmp_path: Path, db: Database) -> None:
    """One that ended, one that its process did not live to finish, and one that came with a login token."""
    writer, shipper = SegmentWriter(tmp_path), Shipper(db, tmp_path)
    shipper.acquire()

    def begun(number: int, key_id: str | None, at: float) -> UsageRecord:
        record = UsageRecord(f"r{number}", at, "chat", key_id, "u", "m", 1)
        writer.begin(record, 0, 0)
        return record

    async def uses() -> dict[str, float]:
        async with db.read() as conn:
            return {row.key_id: row.at for row in (await conn.execute(select(key_uses))).all()}

    for number, (key_id, at) in enumerate((("k1", 1.7e9 + 5), ("k1", 1.7e9 + 3), (None, 1.7e9 + 9))):
        writer.end(begun(number, key_id, at))
    begun(9, "k2", 1.7e9 + 1)
    await shipper.ship()
    assert await uses() == {"k1": 1.7e9 + 5}
    writer.end(begun(10, "k1", 1.7e9 + 7))
    await shipper.ship()
    assert await uses() == {"k1": 1.7e9 + 5}, "at most once a minute"
    writer.close()
    await shipper.ship_the_last()
    assert await uses() == {"k1": 1.7e9 + 7, "k2": 1.7e9 + 1}
    shipper.close()


async def test_a_segment_is_removed_only_when_its_rows_are_on_the_disk(tmp_path: Path, migrated: Path) -> None:
    """Else a power cut would take rows whose segment is gone already."""
    path = tmp_path / "gateway.sqlite3"
    shutil.copy(migrated, path)
    db = Database(f"sqlite+aiosqlite:///{path}")
    seen: list[tuple[bool, int]] = []

    @event.listens_for(db._writer.sync_engine, "commit")
    def _commit(conn: Any) -> None:
        synchronous = conn.exec_driver_sql("PRAGMA synchronous").scalar_one()
        seen.append((conn.exec_driver_sql("SELECT count(*) FROM ledger_segments WHERE finished_at > 0").scalar_one(), synchronous))

    writer, shipper = SegmentWriter(tmp_path / "ledger"), Shipper(db, tmp_path / "ledger")
    record = UsageRecord("r", 1.7e9, "chat", "k", "u", "m", 1)
    writer.end(record, writer.begin(record, 1, 1))
    await shipper.ship()
    writer.close()
    await shipper.ship()
    assert list((tmp_path / "ledger").glob("*.seg")) == []
    assert len(seen) > 2
    assert [synchronous for finished, synchronous in seen if not finished] == [1] * (len(seen) - 1)
    assert seen[-1] == (1, 2), "what finishes the segment is synced (2: FULL)"
    shipper.close()
    await db.close()


async def test_what_ended_in_a_segment_that_is_gone_is_not_open_again_after_a_restart(tmp_path: Path, db: Database) -> None:
    """One stream keeps the first segment; the second, with the END of another request of the first, is removed."""
    writer, shipper = SegmentWriter(tmp_path, segment_bytes=12_000), Shipper(db, tmp_path)

    def begun(number: int) -> UsageRecord:
        record = UsageRecord(f"req-{number:08x}", 1.7e9 + number, "chat", "k", "u", "m", 1, ending="success")
        writer.begin(record, 1, 1)
        return record

    def fill() -> None:
        """Until it has moved on."""
        count = len(list(tmp_path.glob("*.seg")))
        while len(list(tmp_path.glob("*.seg"))) == count:
            fill.number += 1  # type: ignore[attr-defined]
            writer.end(begun(fill.number))  # type: ignore[attr-defined]

    fill.number = 100  # type: ignore[attr-defined]
    short, long = begun(1), begun(2)
    fill()
    writer.end(short)
    fill()
    first, second, _ = sorted(path.name for path in tmp_path.glob("*.seg"))
    await shipper.ship()
    assert (tmp_path / first).exists()
    assert not (tmp_path / second).exists()
    shipper.close()
    shipper = Shipper(db, tmp_path)
    await shipper.ship()
    assert set(shipper._segments[first].begun) == {long.request_id}
    writer.end(long)
    await shipper.ship()
    assert not (tmp_path / first).exists(), "though its writer lives"
    writer.close()
    await shipper.ship()
    async with db.read() as conn:
        assert {row["ending"] for row in await rows_since(conn, 0)} == {"success"}
    shipper.close()


async def test_a_segment_of_which_too_little_is_known_is_not_taken_for_one_in_which_nothing_is_open(tmp_path: Path) -> None:
    """The database is away while the first segment is looked at again."""
    path = tmp_path / "gateway.sqlite3"
    url = f"sqlite+aiosqlite:///{path}"
    await migrate(url)
    db = Database(url)
    writer, shipper = SegmentWriter(tmp_path / "ledger"), Shipper(db, tmp_path / "ledger")
    for number in range(2):
        record = UsageRecord(f"r{number}", 1.7e9, "chat", "k", "u", "m", 1)
        writer.begin(record, 1, 1)
    writer.end(record)
    await shipper.ship()
    shipper.close()
    shipper = Shipper(db, tmp_path / "ledger")

    @event.listens_for(db._reader.sync_engine, "begin")
    def _begin(_: Any) -> None:
        raise StoreUnavailable("away")

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await shipper.ship()
    event.remove(db._reader.sync_engine, "begin", _begin)
    writer.close()
    await shipper.ship()
    async with db.read() as conn:
        assert sorted(row["request_id"] for row in await rows_since(conn, 0)) == ["r0", "r1"]
    shipper.close()
    await db.close()
