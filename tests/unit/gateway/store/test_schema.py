"""A process never writes into a database whose schema is not the one that it was made for."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.app import Services
from gateway.settings import Settings
from gateway.store import changelog
from gateway.store.engine import Database
from gateway.store.errors import SchemaForeign, StoreUnavailable
from gateway.store.migrate import head, migrate
from gateway.store.schema import newest, require_schema


async def set_version(url: str, version: str) -> None:
    other = Database(url)
    async with other.write() as conn:
        await conn.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    await other.close()


def test_the_newest_is_what_the_scripts_lead_to() -> None:
    assert newest() == head()


@pytest.mark.parametrize(("version", "says"), [("9999", "a newer version"), ("0001", "another version")])
async def test_writes_are_refused_beside_another_version(database_url: str, version: str, says: str) -> None:
    db = Database(database_url, newest())
    async with db.write() as conn:
        await changelog.append(conn, "key", "a", "cli")
    await set_version(database_url, version)
    with pytest.raises(SchemaForeign, match=says) as refused:
        async with db.write() as conn:
            await changelog.append(conn, "key", "b", "cli")
    assert refused.value.status == 503
    assert refused.value.body()["error"]["message"] == StoreUnavailable("").message, "who runs what version is not for every client"
    assert version in refused.value.reason
    async with db.read() as conn:  # what can be read still is
        assert await changelog.latest(conn) == 1
    with pytest.raises(SchemaForeign):
        async with db.read() as conn:
            await conn.execute(text("SELECT nothing_of_the_kind FROM users"))
    await db.close()


class Failing:
    """A connection whose statements fail as the disk does."""

    def __init__(self, name: str) -> None:
        self._fault = sqlite3.OperationalError("disk I/O error")
        self._fault.sqlite_errorname = name

    async def execute(self, _: object) -> None:
        raise OperationalError("SELECT", {}, self._fault)


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_BUSY", "SQLITE_FULL"])
async def test_a_disk_that_fails_is_no_other_version(name: str) -> None:
    with pytest.raises(OperationalError):
        await require_schema(cast("AsyncConnection", Failing(name)), newest())


@pytest.mark.parametrize("dialect", ["postgres"])  # SQLite knows no time limit of a statement
async def test_a_database_that_is_too_slow_is_no_other_version(database_url: str) -> None:
    db, other = Database(database_url), Database(database_url)
    try:
        with pytest.raises(StoreUnavailable) as refused:
            async with other.write() as held, db.write() as conn:
                await held.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
                await conn.execute(text("SET LOCAL statement_timeout = 50"))
                await require_schema(conn, newest())
        assert not isinstance(refused.value, SchemaForeign)
        assert "57014" in refused.value.reason
    finally:
        await db.close()
        await other.close()


async def test_no_server_starts_beside_another_version(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    await migrate(settings.database)
    await set_version(settings.database, "9999")
    with pytest.raises(SchemaForeign):
        await Services.open(settings)


async def test_no_keeper_starts_beside_another_version(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    await migrate(settings.database)
    await set_version(settings.database, "9999")
    keeper = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.keeper", env={"GATEWAY_HOME": str(settings.home)}, cwd=tmp_path, stderr=-1, stdout=-1
    )
    out, err = await asyncio.wait_for(keeper.communicate(), 30)
    assert keeper.returncode == 1
    assert b"a newer version than this process" in out + err
    assert b"Traceback" not in out + err
