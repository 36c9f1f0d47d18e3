"""Which faults mean that the database is away, also those that come past SQLAlchemy."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.store.away import away
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from tests.databases import Postgres


def test_faults_that_come_as_they_are() -> None:
    assert away(TimeoutError()) == "TimeoutError"
    assert away(ConnectionResetError("x")) == "ConnectionResetError"
    assert away(sqlite3.OperationalError("no such table: x")) is None
    assert away(ValueError("x")) is None


async def test_a_full_disk_told_by_the_driver_itself(tmp_path: Path, migrated: Path) -> None:
    """As where rows are booked: on SQLite they go past SQLAlchemy."""
    path = tmp_path / "gateway.sqlite3"
    shutil.copy(migrated, path)
    with closing(sqlite3.connect(path)) as file:
        (pages,) = file.execute("PRAGMA page_count").fetchone()
    db = Database(f"sqlite+aiosqlite:///{path}")
    with pytest.raises(StoreUnavailable) as full:
        async with db.write() as conn:
            driver: Any = (await conn.get_raw_connection()).driver_connection
            await driver.execute(f"PRAGMA max_page_count={pages}")
            await driver.execute("CREATE TABLE large AS SELECT zeroblob(1000000) AS content")
    assert full.value.reason == "SQLITE_FULL"
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        async with db.write() as conn:
            driver = (await conn.get_raw_connection()).driver_connection
            await driver.execute("SELECT * FROM missing")
    await db.close()


async def test_a_command_that_takes_too_long(postgres: Postgres) -> None:
    db = Database(postgres.url().replace("postgresql://", "postgresql+asyncpg://"))
    with pytest.raises(StoreUnavailable) as late:
        async with db.write() as conn:
            driver: Any = (await conn.get_raw_connection()).driver_connection
            await driver.execute("SELECT pg_sleep(20)", timeout=0.05)
    assert late.value.reason == "TimeoutError"
    await db.close()
