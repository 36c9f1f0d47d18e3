from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import Unavailable
from gateway.store.engine import Database, postgres_engine
from gateway.store.errors import StoreUnavailable
from gateway.store.migrate import migrate
from gateway.store.tables import meta
from tests.databases import Postgres


async def _count(db: Database) -> int:
    async with db.read() as conn:
        own = meta.c.name.in_(("a", "b", "old", "x"))
        return int((await conn.execute(select(func.count()).select_from(meta).where(own))).scalar_one())


async def test_a_block_that_raises_leaves_nothing_behind(db: Database) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        async with db.write() as conn:
            await conn.execute(meta.insert().values(name="a", value="1"))
            raise RuntimeError("on purpose")
    assert await _count(db) == 0


async def test_a_cancelled_block_leaves_nothing_behind(db: Database) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with db.write() as conn:
            await conn.execute(meta.insert().values(name="a", value="1"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _count(db) == 0
    async with db.write() as conn:  # the connection is free again
        await conn.execute(meta.insert().values(name="b", value="1"))
    assert await _count(db) == 1


async def test_readers_do_not_wait_for_a_writer_and_see_what_was_committed(db: Database) -> None:
    async with db.write() as conn:
        await conn.execute(meta.insert().values(name="a", value="1"))
        assert await _count(db) == 0
    assert await _count(db) == 1


async def test_a_durable_transaction_is_synced_and_of_sqlite_no_other(db: Database) -> None:
    asked, expected = "PRAGMA synchronous", [1, 2, 2, 1]  # 1: NORMAL, 2: FULL
    if db.dialect == "postgresql":
        asked, expected = "SELECT setting FROM pg_settings WHERE name = 'synchronous_commit'", ["on"] * 4
    found = []
    for number, durable in enumerate((False, True, True, False)):
        async with db.write(durable=durable) as conn:
            await conn.execute(meta.insert().values(name=f"n{number}", value="1"))
            found.append((await conn.exec_driver_sql(asked)).scalar_one())
    assert found == expected


async def test_faults_of_statements_are_not_dressed_up_as_an_absent_database(db: Database) -> None:
    for statement in ("SELECT * FROM no_such_table", "INSERT INTO meta (name) VALUES ('x')"):
        with pytest.raises(DBAPIError):
            async with db.write() as conn:
                await conn.execute(text(statement))


async def test_foreign_keys_are_enforced(db: Database) -> None:
    with pytest.raises(DBAPIError):
        async with db.write() as conn:
            await conn.execute(text("INSERT INTO live_revision (id, revision_id, changed_at) VALUES (1, 99, 0)"))


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://gateway:hidden-word@127.0.0.1:1/x", "sqlite+aiosqlite:////proc/no/such/folder/gateway.sqlite3"]
)
async def test_no_database_is_one_error_without_its_address(url: str) -> None:
    db = Database(url)
    with pytest.raises(StoreUnavailable) as away:
        async with db.read():
            pass
    assert isinstance(away.value, Unavailable)
    assert away.value.status == 503
    for secret in ("hidden-word", "127.0.0.1", "/proc"):
        assert secret not in repr(away.value) + away.value.reason + away.value.message
    await db.close()


async def test_a_database_that_does_not_exist_or_refuses_the_login(postgres: Postgres) -> None:
    db = Database(postgres.sqlalchemy_url("no_such_database"))
    with pytest.raises(StoreUnavailable):
        async with db.read():
            pass
    await db.close()


async def test_a_lost_connection_is_mapped_and_heals(postgres: Postgres) -> None:
    name = await postgres.create_migrated()
    db = Database(postgres.sqlalchemy_url(name))

    async def kill_others() -> None:
        connection = await asyncpg.connect(postgres.url())
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await connection.close()

    with pytest.raises(StoreUnavailable):
        async with db.write() as conn:
            await conn.execute(meta.insert().values(name="a", value="1"))
            await kill_others()
            await conn.execute(meta.insert().values(name="b", value="1"))
    assert await _count(db) == 0
    for attempt in (db.read, db.look):
        async with attempt() as conn:
            ended = await _when_ended(conn)
        await kill_others()
        await ended.wait()
        async with attempt() as conn:  # it was idle in the pool: noticed before use
            assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    await db.close()
    await postgres.drop(name)


async def _when_ended(conn: AsyncConnection) -> asyncio.Event:
    ended = asyncio.Event()
    driver: Any = (await conn.get_raw_connection()).driver_connection
    driver.add_termination_listener(lambda _: ended.set())
    return ended


async def test_a_connection_that_was_idle_for_long_is_asked_before_use(postgres: Postgres) -> None:
    """A firewall forgets idle connections and tells nobody: the next thing sent is answered with a reset."""
    name = await postgres.create()
    address = urlsplit(postgres.url(name))
    forgotten = False

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known, (server, to_server) = not forgotten, await asyncio.open_connection(address.hostname, address.port)
        back = asyncio.create_task(_copied(server, writer))
        while data := await reader.read(65536):
            if known and forgotten:
                writer.transport.abort()
                break
            to_server.write(data)
        to_server.close()
        await back

    between = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = between.sockets[0].getsockname()[1]
    url = postgres.sqlalchemy_url(name).replace(f":{address.port}/", f":{port}/")
    careful, trusting = postgres_engine(url, trusted_s=0.0), postgres_engine(url, trusted_s=3600.0)
    for engine in (careful, trusting):
        async with engine.connect() as conn:
            await conn.execute(text("SELECT 1"))
    forgotten = True
    async with careful.connect() as conn:
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    async with trusting.connect() as conn:
        with pytest.raises(DBAPIError):
            await conn.execute(text("SELECT 1"))
    await careful.dispose()
    await trusting.dispose()
    between.close()
    await postgres.drop(name)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_what_only_looks_cannot_write(db: Database) -> None:
    with pytest.raises(StoreUnavailable):
        async with db.look() as conn:
            await conn.execute(meta.insert().values(name="a", value="1"))
    assert await _count(db) == 0


async def test_a_pool_that_is_used_up_is_unavailable_not_a_hang(tmp_path: Path, database_url: str) -> None:
    db = Database(database_url)
    async with db.write():
        started = asyncio.get_running_loop().time()
        second = Database(database_url) if db.dialect == "sqlite" else db
        with pytest.raises(StoreUnavailable):
            async with second.write(), db.write():
                pass
        assert asyncio.get_running_loop().time() - started < 15
        if second is not db:
            await second.close()
    await db.close()


async def test_sslmode_as_hosting_services_write_it(postgres: Postgres) -> None:
    """asyncpg calls it ssl; handed on as it is it would be a TypeError."""
    url = postgres.sqlalchemy_url(await postgres.create())
    mark = "&" if "?" in url else "?"
    db = Database(f"{url}{mark}sslmode=prefer")
    async with db.read() as conn:
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    await db.close()


async def test_a_sqlite_file_that_is_moved_away_is_missed_and_one_put_in_its_place_is_read(tmp_path: Path, migrated_file: Path) -> None:
    """Who has a file open goes on reading it, moved or not: a server would never see the copy that was put back."""
    file, aside = tmp_path / "gateway.sqlite3", tmp_path / "aside.sqlite3"
    file.write_bytes(migrated_file.read_bytes())
    db = Database(f"sqlite+aiosqlite:///{file}")
    fresh = await _count(db)
    async with db.write() as conn:
        await conn.execute(meta.insert().values(name="old", value="1"))
    assert await _count(db) == fresh + 1
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").rename(f"{aside}{suffix}")
    for attempt in (db.read, db.write):
        with pytest.raises(StoreUnavailable):
            async with attempt():
                pass
    file.write_bytes(migrated_file.read_bytes())
    assert await _count(db) == fresh
    await db.close()


@pytest.fixture
async def migrated_file(tmp_path: Path) -> Path:
    path = tmp_path / "schema" / "empty.sqlite3"
    await migrate(f"sqlite+aiosqlite:///{path}")
    return path
