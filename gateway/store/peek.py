"""A look into a database whose schema is not known yet: one short transaction that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.away import away
from gateway.store.engine import dialect_of, postgres_engine, sqlite_engine
from gateway.store.errors import StoreUnavailable

_T = TypeVar("_T")


async def peek(url: str, work: Callable[[Connection], _T]) -> _T | None:
    """What `work` finds; None where there is no SQLite file yet. Raises `StoreUnavailable`, and what `work` raises."""
    sqlite = dialect_of(url) == "sqlite"
    if sqlite and not _there(url):
        return None
    engine = sqlite_engine(url, "BEGIN", pool_size=1, read_only=True) if sqlite else postgres_engine(url, pooled=False)
    try:
        async with engine.connect() as conn, conn.begin():
            return await conn.run_sync(work)
    except (SQLAlchemyError, OSError) as error:
        raise StoreUnavailable(away(error) or type(error).__name__) from None
    finally:
        await engine.dispose()


def _there(url: str) -> bool:
    return Path(make_url(url).database or "").exists()
