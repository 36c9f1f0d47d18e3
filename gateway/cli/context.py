"""What a command works with: settings, the database, the shared counters. The one place that opens them for a command.

Commands talk to the database directly, so they work with the server up or down; the counter in shared memory tells a running server at
once that something changed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.cli.output import fail
from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from gateway.changes import Actor
    from gateway.store.engine import Database
    from gateway.store.generation import Generation
    from gateway.store.secret_key import SecretKeys
    from gateway.store.secrets import SecretBox

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Context:
    """Open for as long as one command runs."""

    settings: Settings
    db: Database
    generation: Generation
    actor: Actor

    async def box(self) -> SecretBox:
        """The encryption of stored secrets. Raises `SecretKeyRefused`."""
        from gateway.store.secrets import SecretBox

        return SecretBox.of(await self.secret_keys())

    async def secret_keys(self) -> SecretKeys:
        """GATEWAY_SECRET_KEY and the one before it. Raises `SecretKeyRefused`, also where they are not this database's."""
        from gateway.store.own_key import check_keys

        return await check_keys(self.db, self.settings.secret_key_sources())


def in_context(work: Callable[[Context], Awaitable[_T]]) -> _T:
    """Run `work` with an open context, in an event loop of its own; `CommandFailed` where there is no gateway yet."""
    settings = load_settings()

    async def opened() -> _T:
        async with context(settings) as ctx:
            return await work(ctx)

    return asyncio.run(opened())


@asynccontextmanager
async def context(settings: Settings) -> AsyncIterator[Context]:
    """Open the database of these settings; `CommandFailed` unless it has exactly the schema of this version."""
    from gateway.changes import Actor
    from gateway.store.engine import Database
    from gateway.store.generation import Generation
    from gateway.store.schema import newest

    await require_current(settings)
    db = Database(settings.database, newest())
    try:
        generation = Generation(settings.run_dir / "generation")
        try:
            yield Context(settings, db, generation, Actor(user_id=None, via="cli", address=None))
        finally:
            generation.close()
    finally:
        await db.close()


async def require_current(settings: Settings) -> None:
    """`CommandFailed` unless the database has the schema of this version. Raises `DatabaseTooNew` and `StoreUnavailable`."""
    from gateway.store.migrate import head, known_revision

    revision = await known_revision(database_url(settings))
    if revision is None:
        fail(f"There is no gateway in {settings.home} yet: run `gateway init` or `gateway serve` first.")
    if revision != head():
        fail("The database is of an older version of the gateway: `gateway init` or `gateway serve` brings it up to date.")


def database_url(settings: Settings) -> str:
    """The URL of the database; `CommandFailed` where it is of a kind that cannot be used."""
    if not settings.database.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
        fail("GATEWAY_DATABASE_URL must begin with sqlite:/// or postgresql://.")
    return settings.database


def config_environment(settings: Settings) -> Mapping[str, str]:
    """What `${NAME}` in a configuration file may name: the environment, then the two `.env` files that settings are read from."""
    from dotenv import dotenv_values

    merged: dict[str, str] = {}
    for file in (settings.home / ".env", Path(".env")):
        merged.update({name: value for name, value in dotenv_values(file).items() if value is not None})
    return merged | dict(os.environ)
