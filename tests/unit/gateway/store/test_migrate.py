from __future__ import annotations

import asyncio
import re
import resource
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text

from auth.principal import Role
from gateway.store import requests, segments, users
from gateway.store.engine import Database
from gateway.store.errors import DatabaseTooNew, MigrationFailed, StoreUnavailable
from gateway.store.migrate import SCRIPTS, Migration, head, is_current, migrate
from gateway.store.rollups import USED
from gateway.store.tables import metadata, usage_by_day
from gateway.store.usage import Wanted, whole_report
from gateway.store.verify import days_to_verify, verify_day, verify_week, weeks_with

_NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{head}", None, None


def upgrade() -> None:
    with op.batch_alter_table("users") as batch:
        batch.add_column(sa.Column("nickname", sa.Text(), nullable=False, server_default="none"))
        batch.alter_column("password_hash", type_=sa.String(500), existing_type=sa.Text())
    {more}
"""


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The migrations of a later version of the gateway, whose last one rebuilds a table that others refer to."""
    return _scripts(tmp_path / "newer", "")


def _scripts(folder: Path, more: str) -> Path:
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "r9999_next.py").write_text(_NEXT.format(head=head(), more=more))
    return folder


async def _fill(url: str) -> str:
    db = Database(url)
    async with db.write() as conn:
        user = await users.create(conn, "a@localhost", Role.ADMIN, "hash", 1.0)
        values = {"id": "abc", "user_id": user.id, "name": "n", "models": ("*",), "scopes": ("inference",), "created_at": 1.0}
        await conn.execute(metadata.tables["api_keys"].insert().values(values))
    await db.close()
    return user.id


async def _emails(url: str) -> list[str]:
    db = Database(url)
    try:
        async with db.read() as conn:
            return [user.email for user in await users.page(conn)]
    finally:
        await db.close()


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(str(SCRIPTS)).get_heads()) == 1


@pytest.mark.filterwarnings("ignore:.*expression-based index:Warning")  # which cannot be read of SQLite: the test below does
async def test_an_empty_database_gets_the_schema_of_the_code(empty_url: str) -> None:
    assert not await is_current(empty_url)
    assert await migrate(empty_url) == Migration(None, head())
    assert await is_current(empty_url)
    assert await migrate(empty_url) == Migration(head(), head())

    def differences(conn: Connection) -> list[object]:
        assert set(metadata.tables) | {"alembic_version"} == set(inspect(conn).get_table_names())
        return list(compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata))

    db = Database(empty_url)
    async with db.read() as conn:
        assert await conn.run_sync(differences) == []
    await db.close()


async def test_indexes_hold_all_that_reports_read_of_keys_and_users(database_url: str, dialect: str) -> None:
    """Those of hours are by an expression, which autogenerate does not compare with SQLite."""
    texts = "SELECT sql FROM sqlite_master" if dialect == "sqlite" else "SELECT indexdef FROM pg_indexes"
    db = Database(database_url)
    async with db.read() as conn:
        found = [str(text) for text in (await conn.exec_driver_sql(texts)).scalars()]
    await db.close()
    for who in ("key_id", "user_id"):
        rest = [name for name in usage_by_day.c.keys() if name not in (who, "at")]  # noqa: SIM118  # no dict
        for table, columns in ("usage_by_day", [who, "at", *rest]), ("usage_by_hour", [who, "at", "model", "team_id", *USED]):
            (one,) = [text for text in found if f" ix_{table}_{who} " in text]
            assert one.endswith(f"{', '.join(columns)})")
    if dialect == "postgres":
        keys = [text for text in found if re.search(" pk_usage_(totals|of_each_day|of_each_week) ", text)]
        assert [key.partition(" INCLUDE ")[2] for key in keys] == [f"({', '.join(USED)})"] * 3


async def test_a_filled_database_survives_an_upgrade(database_url: str, newer: Path, dialect: str) -> None:
    user_id = await _fill(database_url)
    done = await migrate(database_url, newer)
    assert (done.before, done.after) == (head(), "9999")
    db = Database(database_url)
    async with db.read() as conn:
        assert tuple((await conn.exec_driver_sql("SELECT email, nickname FROM users")).one()) == ("a@localhost", "none")
        assert (await conn.execute(select(metadata.tables["api_keys"].c.user_id))).scalars().all() == [user_id]
    await db.close()
    assert (done.copy is not None) == (dialect == "sqlite")
    if done.copy is not None:
        assert stat.S_IMODE(done.copy.stat().st_mode) == 0o600
        assert await _emails(f"sqlite+aiosqlite:///{done.copy}") == ["a@localhost"]
        assert await is_current(f"sqlite+aiosqlite:///{done.copy}")


async def test_a_database_newer_than_the_code_is_left_alone(database_url: str, newer: Path) -> None:
    await migrate(database_url, newer)
    with pytest.raises(DatabaseTooNew, match="newer version"):
        await migrate(database_url)
    assert not await is_current(database_url)
    assert (await migrate(database_url, newer)).before == "9999"


async def test_a_migration_that_fails_changes_nothing(database_url: str, tmp_path: Path) -> None:
    await _fill(database_url)
    broken = _scripts(tmp_path / "broken", 'op.execute("SELECT * FROM no_such_table")')
    with pytest.raises(MigrationFailed):
        await migrate(database_url, broken)
    assert await is_current(database_url)
    assert await _emails(database_url) == ["a@localhost"]


async def test_a_migration_that_leaves_orphans_changes_nothing(dialect: str, database_url: str, tmp_path: Path) -> None:
    await _fill(database_url)
    broken = _scripts(tmp_path / "broken", 'op.execute("DELETE FROM users")')
    with pytest.raises(MigrationFailed):
        await migrate(database_url, broken)
    assert await _emails(database_url) == ["a@localhost"]


async def test_several_at_once_migrate_once(empty_url: str) -> None:
    done = await asyncio.gather(*(migrate(empty_url) for _ in range(4)))
    assert sorted(m.before or "" for m in done) == ["", head(), head(), head()]


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/home/gateway.sqlite3"
    await migrate(url)
    db = Database(url)
    async with db.write() as conn:
        await users.create(conn, "a@localhost", Role.ADMIN, None, 1.0)
        for file in (tmp_path / "home").glob("gateway.sqlite3*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await db.close()
    with closing(sqlite3.connect(tmp_path / "home" / "gateway.sqlite3")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_faults_are_plain_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MigrationFailed, match="cannot be opened or made"):
        await migrate(f"sqlite+aiosqlite:///{tmp_path}/file/gateway.sqlite3")
    with pytest.raises(MigrationFailed, match="memory"):
        await migrate("sqlite+aiosqlite://")
    (tmp_path / "text.sqlite3").write_text("this is not a database " * 100)
    with pytest.raises(StoreUnavailable) as away:
        await migrate(f"sqlite+aiosqlite:///{tmp_path}/text.sqlite3")
    assert away.value.reason == "SQLITE_NOTADB"
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql+asyncpg://nobody:secret@127.0.0.1:1/none")


def _folder(url: str) -> list[str]:
    folder = Path(url.partition(":///")[2]).parent
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".lock", "-wal", "-shm")))


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_failed_attempt_leaves_no_copy(database_url: str, tmp_path: Path) -> None:
    """Nothing was changed, so there is nothing to keep: however often it is tried."""
    failing = _scripts(tmp_path / "failing", "op.execute('SELECT no_such_column FROM users')")
    before = _folder(database_url)
    for _ in range(2):
        with pytest.raises(MigrationFailed):
            await migrate(database_url, failing)
    assert _folder(database_url) == before


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_copy_that_cannot_be_made_stops_the_migration(database_url: str, newer: Path) -> None:
    await _fill(database_url)
    before = _folder(database_url)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(MigrationFailed, match=r"could not be copied aside .* needs room for a second gateway\.sqlite3"):
            await migrate(database_url, newer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _folder(database_url) == before
    assert await is_current(database_url)
    assert (await migrate(database_url, newer)).copy is not None


async def test_rows_of_usage_move_to_their_days_and_the_books_agree(empty_url: str, tmp_path: Path) -> None:
    """From 0005 on; with the digests, roll-ups and prices that `ledger verify` asks for."""
    old = tmp_path / "old"
    shutil.copytree(SCRIPTS, old, ignore=shutil.ignore_patterns("__pycache__", "r0006_*", "r0007_*", "r0008_*", "r0009_*", "r001*"))
    await migrate(empty_url, old)
    rows = [
        {
            "request_id": f"req-{number:05d}", "started_at": 1_772_366_400 + number * 97, "key_id": ("k1", None)[number % 2],
            "user_id": f"usr_{number % 3}", "model": "chat", "backend": ("b", None)[number % 2], "revision": 1 + number % 2,
            "operation": "chat", "attempts": 1, "status": 200, "ending": "success", "prompt_tokens": 10, "completion_tokens": 5,
            "token_source": "backend", "cost_pusd": 7 + number, "duration_ms": 1.5, "ttft_ms": None, "queue_ms": 0, "connect_ms": None,
            "experiment": "summer" if number % 5 == 0 else None, "arm": "a" if number % 5 == 0 else None, "client_request_id": None,
        }
        for number in range(4500)
    ]  # fmt: skip
    db = Database(empty_url)
    columns = list(rows[0])
    statement = text(f"INSERT INTO usage ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})")
    async with db.write() as conn:
        await conn.execute(statement, rows)
        await conn.execute(text("INSERT INTO teams (id, name, created_at) VALUES ('t1', 'one', 1)"))
        named = "INSERT INTO users (id, email, role, token_epoch, created_at, team_id) VALUES ('usr_1', 'a@localhost', 'admin', 0, 1, 't1')"
        await conn.execute(text(named))
        offsets = [{"name": f"7-ab-00000{number}.seg"} for number in (3,)]
        await conn.execute(text('INSERT INTO ledger_segments (name, "offset", updated_at) VALUES (:name, 100, 5)'), offsets)
    await db.close()

    await migrate(empty_url)
    db = Database(empty_url)
    there, faults = await days_to_verify(db)
    assert (len(there), faults) == (6, [])
    found = [await verify_day(db, day) for day in there]
    weeks = [await verify_week(db, week) for week in weeks_with(there)]
    assert [one.faults for one in found + weeks] == [[]] * (6 + len(weeks))
    assert sum(one.rows for one in found) == 4500
    async with db.read() as conn:
        assert {line.group: line.requests for line in await whole_report(conn, "team", Wanted())} == {"": 3000, "t1": 1500}
        assert [(line.experiment, line.group, line.requests) for line in await whole_report(conn, "arm", Wanted())] == [
            ("summer", "a", 900)
        ]
        (total,) = await whole_report(conn, "model", Wanted())
        assert total.cost_pusd == sum(one["cost_pusd"] for one in rows)
        moved = await requests.usage_row(conn, "req-00001")
        assert moved is not None
        assert {name: moved[name] for name in columns} == rows[1]
        assert (moved["team_id"], moved["cached_tokens"], moved["price"]) == ("t1", 0, None)
        assert [(s.number, s.finished) for s in await segments.all_known(conn)] == [(0, True), (1, True), (2, True), (3, False)]
    await db.close()
