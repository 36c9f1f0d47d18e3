"""Bring a database up to date: Alembic, in this process, under a lock, in one transaction.

Several processes may call it at once; one works, the others wait and find nothing to do.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from gateway.store.away import away
from gateway.store.engine import dialect_of, postgres_engine, sqlite_engine
from gateway.store.errors import DatabaseTooNew, MigrationFailed, StoreUnavailable
from gateway.store.peek import peek

SCRIPTS = Path(migrations.__file__).parent
_LOCK = 0x6777_6D67  # "gwmg", PostgreSQL advisory lock
_LOCK_POLL_S = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Migration:
    """What was done. `before` None: the database was empty; `copy`: where the SQLite file was copied to before it was changed."""

    before: str | None
    after: str
    copy: Path | None = None

    @property
    def changed(self) -> bool:
        return self.before != self.after


async def migrate(url: str, scripts: Path = SCRIPTS) -> Migration:
    """Create or upgrade the schema of the database at `url`.

    Raises `DatabaseTooNew`, `MigrationFailed` (nothing was changed then) and `StoreUnavailable`.
    """
    if dialect_of(url) == "sqlite":
        return await _migrate_sqlite(url, scripts)
    engine = postgres_engine(url, pooled=False)
    try:
        return await _in_transaction(engine, lambda conn: _upgrade_postgres(conn, scripts))
    finally:
        await engine.dispose()


def head(scripts: Path = SCRIPTS) -> str:
    """The newest schema that this code knows."""
    revision = ScriptDirectory.from_config(_config(scripts)).get_current_head()
    assert revision is not None
    return revision


async def is_current(url: str) -> bool:
    """Has the database exactly the schema of this code? Changes nothing. Raises `StoreUnavailable`."""
    return await peek(url, lambda conn: MigrationContext.configure(conn).get_current_revision()) == head()


async def known_revision(url: str) -> str | None:
    """The schema that the database has, None if it has none (or is not there). Changes nothing.

    Raises `DatabaseTooNew` and `StoreUnavailable`.
    """
    return await peek(url, lambda conn: _known_revision(conn, SCRIPTS))


async def _migrate_sqlite(url: str, scripts: Path) -> Migration:
    path = _sqlite_path(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with _file_lock(path.with_name(path.name + ".lock")):
            _create_private(path)
            # foreign_keys off: a batch migration rebuilds tables, and dropping the old one must not touch the rows that refer to it
            engine = sqlite_engine(url, "BEGIN IMMEDIATE", pool_size=1, foreign_keys=False)
            try:
                return await _in_transaction(engine, lambda conn: _upgrade_sqlite(conn, path, scripts))
            finally:
                await engine.dispose()
                _draft(path).unlink(missing_ok=True)  # of an attempt that changed nothing
    except OSError as error:
        raise MigrationFailed(f"The database {path} cannot be opened or made: {error.strerror or type(error).__name__}.") from None


def _upgrade_sqlite(conn: Connection, path: Path, scripts: Path) -> Migration:
    before = _known_revision(conn, scripts)
    copying = before is not None and before != head(scripts)
    if copying:
        _copy_aside(path)
    after = _upgrade(conn, scripts)
    if conn.execute(text("PRAGMA foreign_key_check")).first() is not None:
        raise MigrationFailed("The migration would have left rows that refer to nothing; the database is as it was.")
    return Migration(before, after, _keep_copy(path, str(before)) if copying else None)


def _upgrade_postgres(conn: Connection, scripts: Path) -> Migration:
    conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    before = _known_revision(conn, scripts)
    return Migration(before, _upgrade(conn, scripts))


def _upgrade(conn: Connection, scripts: Path) -> str:
    config = _config(scripts)
    config.attributes["connection"] = conn
    alembic.command.upgrade(config, "head")
    return head(scripts)


def _known_revision(conn: Connection, scripts: Path) -> str | None:
    """The revision of the database, None if it is empty. Raises `DatabaseTooNew` for one that this code does not know."""
    current = MigrationContext.configure(conn).get_current_revision()
    if current is not None and current not in {s.revision for s in ScriptDirectory.from_config(_config(scripts)).walk_revisions()}:
        raise DatabaseTooNew(current)
    return current


def _config(scripts: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return config


async def _in_transaction(engine: AsyncEngine, work: Callable[[Connection], _T]) -> _T:
    try:
        async with engine.begin() as conn:
            return await conn.run_sync(work)
    except (SQLAlchemyError, OSError) as error:
        reason = away(error) or (type(error).__name__ if isinstance(error, OSError) else None)
        if reason is not None:
            raise StoreUnavailable(reason) from None
        raise MigrationFailed(f"The database could not be brought up to date ({type(error).__name__}); it is as it was.") from error


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # polled, so that a caller who gives up can be cancelled
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _sqlite_path(url: str) -> Path:
    name = make_url(url).database
    if not name or name == ":memory:":
        raise MigrationFailed("A database in memory cannot be shared by the gateway's processes: give SQLite a file.")
    return Path(name)


def _create_private(path: Path) -> None:
    """An empty file for the owner alone; SQLite's side files take over its mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _draft(path: Path) -> Path:
    """Where the copy lies until the migration has succeeded; one that is left there by a killed process is written over."""
    return path.with_name(f"{path.name}.copy.part")


def _copy_aside(path: Path) -> None:
    """A whole copy, the write-ahead log included, next to the file. Raises `MigrationFailed`."""
    draft = _draft(path)
    try:
        draft.unlink(missing_ok=True)
        _create_private(draft)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(draft)) as target:
            source.backup(target)
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MigrationFailed(
            f"The database could not be copied aside before it is brought up to date ({reason}): it is as it was. "
            f"{path.parent} needs room for a second {path.name}."
        ) from None


def _keep_copy(path: Path, revision: str) -> Path:
    copy = path.with_name(f"{path.name}.{revision}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.copy")
    return _draft(path).rename(copy)
