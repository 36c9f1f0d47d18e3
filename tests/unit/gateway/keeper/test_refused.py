"""A line that the database refuses is set aside; all others are booked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.keeper.refused import REFUSED_FILE, refused_lines
from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import FIELDS, UsageRecord
from gateway.store import requests
from gateway.store.engine import Database

NOON = 1_772_366_400.0


def record(number: int, **more: Any) -> UsageRecord:
    made = UsageRecord(f"req-{number:06d}", NOON + number, "chat", f"k{number % 7}", "u", "m", 1, None, "b", 1, 200, "success", 10, 5)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def write(writer: SegmentWriter, *records: UsageRecord) -> None:
    for one in records:
        writer.end(one, writer.begin(one, 1, 1))


async def booked(db: Database) -> set[str]:
    async with db.read() as conn:
        return {row["request_id"] for row in await requests.rows_since(conn, 0, limit=1000)}


def refused(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / REFUSED_FILE).read_bytes().splitlines()]


BAD = [{"cost_pusd": 2**63}, {"user_id": None}, {"started_at": 8e18}, {"prompt_tokens": None}]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: next(iter(bad)))
async def test_one_bad_row_does_not_stop_the_others(db: Database, tmp_path: Path, bad: dict[str, Any]) -> None:
    folder = tmp_path / "ledger"
    writer, shipper = SegmentWriter(folder), Shipper(db, folder)
    values = {name: getattr(record(30), name) for name in FIELDS} | bad
    spoiled = orjson.dumps(["E", *values.values()]) + b"\n"
    write(writer, *map(record, range(30)))
    writer._memory.write(spoiled)
    writer._at += len(spoiled)
    write(writer, *map(record, range(31, 60)))
    assert await shipper.ship() == 59
    assert await booked(db) == {f"req-{number:06d}" for number in range(60) if number != 30}
    assert [(line["request_id"], line["segment"]) for line in refused(folder)] == [("req-000030", next(folder.glob("*.seg")).name)]
    write(writer, record(60))
    assert await shipper.ship() == 1
    writer.close()
    await shipper.ship()
    assert not list(folder.glob("*.seg"))
    assert refused_lines(folder) == 1
    shipper.close()


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
async def test_a_character_that_no_text_of_the_database_may_have(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    writer, shipper = SegmentWriter(folder), Shipper(db, folder)
    write(writer, record(1), record(2, client_request_id="a\0b"), record(3))
    assert await shipper.ship() == 2
    assert [line["request_id"] for line in refused(folder)] == ["req-000002"]
    writer.close()
    shipper.close()


async def test_a_fault_of_the_database_sets_nothing_aside(db: Database, tmp_path: Path) -> None:
    """A table that is gone is no fault of a row; and the segments of others go on."""
    folder = tmp_path / "ledger"
    shipper = Shipper(db, folder)
    broken, sound = SegmentWriter(folder), SegmentWriter(folder)
    write(broken, record(1))
    async with db.write() as conn:
        await conn.exec_driver_sql("ALTER TABLE usage_totals RENAME TO elsewhere")
    assert await shipper.ship() == 0
    broken.close()
    assert await shipper.ship() == 0
    assert refused_lines(folder) == 0
    write(sound, record(2))
    async with db.write() as conn:
        await conn.exec_driver_sql("ALTER TABLE elsewhere RENAME TO usage_totals")
    assert await shipper.ship() == 2
    assert await booked(db) == {"req-000001", "req-000002"}
    assert len(list(folder.glob("*.seg"))) == 1
    sound.close()
    shipper.close()


async def test_a_beginning_that_cannot_be_settled_does_not_stop_others(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    shipper, writer = Shipper(db, folder), SegmentWriter(folder)
    writer.begin(record(1), 1, 1)
    line = orjson.dumps(["B", "req-000002", NOON, "chat", None, "u", "m", 1, None, 1, 1, "x", "y", None, None, None]) + b"\n"
    writer._memory.write(line)
    writer._at += len(line)
    writer.begin(record(3), 1, 1)
    writer.close()
    await shipper.ship()
    assert await booked(db) == {"req-000001", "req-000003"}
    assert ["req-000002" in line["begin"] for line in refused(folder)] == [True]
    assert not list(folder.glob("*.seg"))
    shipper.close()
