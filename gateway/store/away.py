"""Which faults of drivers mean that the database cannot be used at the moment."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# The rest of SQLite's result codes are faults of a statement, that is, bugs: they are not mapped.
_SQLITE_AWAY = (
    "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN",
    "SQLITE_READONLY", "SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_PROTOCOL", "SQLITE_NOMEM",
)  # fmt: skip
# SQLSTATE classes: 08 connection, 53 resources, 57 operator intervention (shutdown, statement timeout), 28 login, 3D no such database;
# 55P03 lock not available, 25006 read-only transaction (a standby).
_POSTGRES_AWAY = ("08", "53", "57", "28", "3D", "55P03", "25006")


def away(error: BaseException) -> str | None:
    """Why the database cannot be used, in a few words without its address; None if `error` is not of that kind."""
    if isinstance(error, PoolTimeout):
        return "no free connection"
    if isinstance(error, ConnectionError | TimeoutError):  # asyncpg's time-out of a command comes as it is
        return type(error).__name__
    if isinstance(error, sqlite3.Error):  # of a statement that went past SQLAlchemy
        return _sqlite_away(error)
    if not isinstance(error, DBAPIError):
        return None
    cause: Any = getattr(error.orig, "__cause__", None) or error.orig
    sqlite_name = _sqlite_away(error.orig) or _sqlite_away(cause)
    if sqlite_name is not None:
        return sqlite_name
    sqlstate = str(getattr(error.orig, "sqlstate", None) or getattr(cause, "sqlstate", None) or "")
    if sqlstate.startswith(_POSTGRES_AWAY):
        return f"{type(cause).__name__} {sqlstate}"
    if error.connection_invalidated or isinstance(cause, OSError | TimeoutError):
        return type(cause).__name__
    return None


def _sqlite_away(error: Any) -> str | None:
    name = str(getattr(error, "sqlite_errorname", None) or "")
    return name if name.startswith(_SQLITE_AWAY) else None
