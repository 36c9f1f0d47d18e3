"""The database: one place that opens connections and maps the faults of drivers.

SQLite runs in WAL mode with one writing connection whose transactions start with BEGIN IMMEDIATE: a plain BEGIN loses updates or fails
at once with "database is locked" as soon as two processes read before they write. PostgreSQL has two small pools, one of connections that
the server lets read only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.store.away import away
from gateway.store.errors import DatabaseUrlInvalid, StoreUnavailable
from gateway.store.schema import require_schema

_BUSY_TIMEOUT_MS = 5000
_CONNECT_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 60.0
_POOL_SIZE = 2
_USED = "used at"  # what a pool notes of a connection: time.monotonic()

Connection = AsyncConnection
"""One transaction's connection, for those above the store who only hand it on."""


class Database:
    """`write()` and `read()` are one transaction each; a block that raises leaves nothing behind.

    Used from one event loop. Raises `StoreUnavailable` where the database does not answer. `schema`: the only one that is written into;
    in any other, `SchemaForeign`. Empty: whatever it is, for those that look after databases.
    """

    def __init__(self, url: str, schema: str = "") -> None:
        self.dialect = dialect_of(url)
        self._schema = schema
        if self.dialect == "sqlite":
            self._writer = sqlite_engine(url, "BEGIN IMMEDIATE", pool_size=1)
            self._durable_writer = self._writer.execution_options(durable=True)
            self._reader = self._looker = sqlite_engine(url, "BEGIN", pool_size=_POOL_SIZE, read_only=True)
        else:
            self._writer = self._durable_writer = postgres_engine(url)
            self._reader = self._writer.execution_options(postgresql_readonly=True)
            self._looker = postgres_engine(url, read_only=True)

    @asynccontextmanager
    async def write(self, *, durable: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; committed when the block ends without an error.

        `durable`: it must have changed something, and that and all that was committed before outlives a power cut once the block has
        ended: for whoever removes next what it was made of. (PostgreSQL does so each time, SQLite with WAL when it empties its log.)
        """
        async with _transaction(self._durable_writer if durable else self._writer) as conn:
            if self._schema:
                await require_schema(conn, self._schema)
            yield conn

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees a consistent state and may not write. Keep it short: it holds one of few connections."""
        async with self._reading(self._reader) as conn:
            yield conn

    @asynccontextmanager
    async def look(self) -> AsyncIterator[AsyncConnection]:
        """As `read`, but on PostgreSQL each statement sees what is there then, as it does within a transaction of READ COMMITTED: there is
        none, which saves two of three round trips. Rows cannot be streamed.
        """
        async with self._reading(self._looker) as conn:
            yield conn

    @asynccontextmanager
    async def _reading(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with _transaction(engine) as conn:
                yield conn
        except DBAPIError:  # a table or a column that is not there: has the schema changed under us?
            await self.require_schema()
            raise

    async def require_schema(self) -> None:
        """Raises `SchemaForeign` where the database has not the one that this was opened for."""
        if self._schema:
            async with _transaction(self._reader) as conn:
                await require_schema(conn, self._schema)

    async def close(self) -> None:
        await self._writer.dispose()
        await asyncio.sleep(0)  # a connection that was given up in the middle of something is closed by the loop, in its next turn
        await self._looker.dispose()


def dialect_of(url: str) -> str:
    """sqlite or postgresql. Raises `DatabaseUrlInvalid`."""
    try:
        return make_url(url).get_backend_name()
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise DatabaseUrlInvalid from None


def sqlite_engine(url: str, begin: str, *, pool_size: int, read_only: bool = False, foreign_keys: bool = True) -> AsyncEngine:
    """An engine whose transactions start with `begin`. WAL does not work on network disks."""
    engine = create_async_engine(
        url,
        connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_MS / 1000},  # we say BEGIN, not the driver
        hide_parameters=True,  # an error's text reaches the log; digests and hashes must not
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT_S,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def _check(*_: Any) -> None:
        # SQLite would make an empty file; and aiosqlite's thread may outlive the loop, with a traceback, where opening fails.
        if not os.access(engine.url.database or "", os.R_OK | os.W_OK):
            raise FileNotFoundError

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine.pool, "checkout")
    def _same_file(_connection: Any, record: Any, _proxy: Any) -> None:
        # A file that was moved away or replaced stays readable for who has it open: a server would live on in the old one.
        file = _identity(engine.url.database)
        if record.info.setdefault("file", file) != file:
            raise DisconnectionError  # the pool opens another, which fails where there is no file

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: SyncConnection) -> None:
        _sync(connection, durable=connection.get_execution_options().get("durable", False))
        connection.exec_driver_sql(begin)

    return engine


def _sync(connection: SyncConnection, *, durable: bool) -> None:
    """Whether SQLite brings the next transaction onto the disk. Said between two of them, and only where they differ."""
    info = connection.connection.info
    if info.get("durable", False) != durable:
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        info["durable"] = durable


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file stands at `path`; None: none does."""
    try:
        found = Path(path or "").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def postgres_engine(url: str, *, pooled: bool = True, read_only: bool = False, trusted_s: float = 5.0) -> AsyncEngine:
    """`pooled=False`: for one long task (a migration): no pool and no limit on the time of a statement. `read_only`: no transactions.

    `trusted_s`: a connection that was in use so lately is not asked whether it is one still. SQLAlchemy's `pool_pre_ping` asks each time:
    three of the six round trips of a short transaction. What the server has closed is known without asking.
    """
    settings = {"application_name": "gateway", "idle_in_transaction_session_timeout": "60000"}
    if read_only:
        settings["default_transaction_read_only"] = "on"
    connect_args: dict[str, Any] = {"timeout": _CONNECT_TIMEOUT_S, "server_settings": settings}
    address = make_url(url)
    if "sslmode" in address.query:  # as libpq and hosting services write it; asyncpg's name is ssl, with the same words
        connect_args["ssl"] = address.query["sslmode"]
        address = address.difference_update_query(["sslmode"])
    if not pooled:
        return create_async_engine(address, connect_args=connect_args, poolclass=NullPool, hide_parameters=True)
    engine = create_async_engine(
        address,
        connect_args=connect_args | {"command_timeout": _COMMAND_TIMEOUT_S},
        hide_parameters=True,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT_S,
        pool_use_lifo=True,
        isolation_level="AUTOCOMMIT" if read_only else "READ COMMITTED",
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _check_alive(connection: Any, record: Any, _proxy: Any) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError  # the pool opens another in its place
        used_s = record.info.get(_USED)  # None: it is new
        if used_s is not None and time.monotonic() - used_s > trusted_s:
            try:
                connection.ping()
            except Exception:
                raise DisconnectionError from None

    @event.listens_for(engine.sync_engine, "checkin")
    def _note_use(_connection: Any, record: Any) -> None:
        record.info[_USED] = time.monotonic()

    return engine


@asynccontextmanager
async def _transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    connected = False
    try:
        async with engine.connect() as conn:
            connected = True
            async with conn.begin():
                yield conn
    except Exception as error:
        reason = away(error)
        if reason is None and connected:
            raise
        # Before there is a connection drivers raise classes of their own, all of which mean: not available.
        raise StoreUnavailable(reason or type(error).__name__) from None
