"""Whoever waits for the books waits for the requests of the dead too, and not for those that run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.keeper.settle import settle
from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.store.engine import Database
from gateway.store.requests import rows_since


@pytest.fixture
def keeper(db: Database, tmp_path: Path) -> Iterator[Shipper]:
    """A keeper that lives, and ships when it is told to."""
    shipper = Shipper(db, tmp_path / "ledger")
    assert shipper.acquire()
    yield shipper
    shipper.close()


def _writer(tmp_path: Path) -> SegmentWriter:
    return SegmentWriter(tmp_path / "ledger", segment_bytes=8192)


def _begin(writer: SegmentWriter, count: int = 1) -> None:
    for number in range(count):
        writer.begin(UsageRecord(f"req-{number}", 1.7e9 + number, "chat", "k", "u", "m", 1), 1, 1)


async def test_what_a_killed_process_ran_is_waited_for(db: Database, keeper: Shipper, tmp_path: Path) -> None:
    killed = _writer(tmp_path)
    _begin(killed)
    await keeper.ship()
    killed.close()  # as the kernel does: no ENDs
    assert not await settle(db, tmp_path, within_s=0.12)
    waiting = asyncio.create_task(settle(db, tmp_path, within_s=10))
    await keeper.ship()
    assert await waiting
    async with db.read() as conn:
        assert [row["ending"] for row in await rows_since(conn, 0)] == ["interrupted"]


async def test_what_runs_is_not_waited_for(db: Database, keeper: Shipper, tmp_path: Path) -> None:
    """Also where its process has left segments behind."""
    writer = _writer(tmp_path)
    _begin(writer, 8)
    assert len(list((tmp_path / "ledger").glob("*.seg"))) > 1
    assert await settle(db, tmp_path, within_s=0)
    writer.close()


async def test_without_a_keeper_it_is_booked_at_once(db: Database, tmp_path: Path) -> None:
    killed = _writer(tmp_path)
    _begin(killed)
    killed.close()
    assert await settle(db, tmp_path, within_s=0)
    async with db.read() as conn:
        assert len(await rows_since(conn, 0)) == 1


async def test_what_cannot_be_shipped_is_not_called_complete(db: Database, tmp_path: Path) -> None:
    killed = _writer(tmp_path)
    _begin(killed)
    killed.close()
    await _rename(db, "usage_totals", "elsewhere")
    assert not await settle(db, tmp_path, within_s=0)
    await _rename(db, "elsewhere", "usage_totals")
    assert await settle(db, tmp_path, within_s=0)


async def _rename(db: Database, table: str, name: str) -> None:
    async with db.write() as conn:
        await conn.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")
