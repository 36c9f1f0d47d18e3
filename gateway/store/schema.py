"""Which schema this code works with, and the refusal of every other: a process never writes into a database that another version has
brought up to date beside it, nor into one that waits to be.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

import migrations
from gateway.store.away import away
from gateway.store.errors import SchemaForeign

_VERSIONS = Path(migrations.__file__).parent / "versions"


@cache
def newest() -> str:
    """The newest schema that this code knows, from the names of the scripts (r0005_... is 0005): Alembic is slow to import."""
    return max(path.stem[1:].partition("_")[0] for path in _VERSIONS.glob("r*.py"))


async def require_schema(conn: AsyncConnection, wanted: str) -> None:
    """Raises `SchemaForeign` where the database has another one."""
    try:
        found = (await conn.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    except DBAPIError as error:
        if away(error) is not None:  # says nothing of the schema
            raise
        found = None
    if found != wanted:
        raise SchemaForeign(found, wanted)
