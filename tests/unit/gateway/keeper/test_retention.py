"""The keeper forgets single requests when their time is over, and only then."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pytest

from gateway.keeper.duties import Keeper
from gateway.metering.record import UsageRecord
from gateway.settings import Settings
from gateway.store import booking, days
from gateway.store.engine import Database
from gateway.store.usage import Wanted, whole_report


@pytest.mark.parametrize(("kept_days", "left"), [(0, 4), (30, 3), (5, 2)])
async def test_rows_are_kept_as_long_as_was_asked_for(db: Database, database_url: str, tmp_path: Path, kept_days: int, left: int) -> None:
    now_s = time.time()
    records = [UsageRecord(f"r{ago}", now_s - ago * days.DAY_S, "chat", "k", "u", "m", 1) for ago in (0, 4, 29, 45)]
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(record) for record in records], "a.seg", 1)
    keeper = Keeper(Settings(home=tmp_path / "home", database_url=database_url, usage_kept_days=kept_days), "")
    await keeper._tidy()
    await keeper._tidy()
    async with db.read() as conn:
        assert len(await days.existing(conn)) == left
        (total,) = await whole_report(conn, "model", Wanted())
    assert total.requests == 4
    await keeper._http.aclose()
    await keeper._prober.close()
    await keeper._models.close()
    keeper._shipper.close()
    keeper._generation.close()
    await keeper._db.close()
