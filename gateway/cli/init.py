"""`gateway init`: the home folder, the secret key, the database, the first admin. Each step is done once and left alone after."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.context import database_url
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, tell
from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from gateway.store.engine import Database
    from gateway.store.generation import Generation


@dataclass(frozen=True, slots=True)
class Installation:
    """What `initialise` found or made. `password` is set only where it was made here; it is stored nowhere."""

    home: Path
    admin_email: str
    admin_created: bool
    migrated: bool
    password: str | None


def init(as_json: Json = False) -> None:
    """Create GATEWAY_HOME, the database and the first admin. Running it again changes nothing."""
    settings = load_settings()
    made = asyncio.run(initialise(settings))
    announce(made)
    if as_json:
        show_json({"home": str(made.home), "admin": made.admin_email, "created": made.admin_created, "migrated": made.migrated})
    else:
        show(f"{made.home} is ready; the first admin is {made.admin_email}{'' if made.admin_created else ' (unchanged)'}")


def announce(made: Installation) -> None:
    """What the person should know, on stderr; a password that was made here is shown this once."""
    if made.password is not None:
        tell(f"The first admin is {made.admin_email}, with the password {made.password} (shown only now)")


async def initialise(settings: Settings) -> Installation:
    """Make what is missing. Safe to run from several processes, and next to a running server.

    Raises `CommandFailed` where the home cannot be written, and the errors of the store.
    """
    from gateway.changes import Actor, ensure_signing_key
    from gateway.store import meta
    from gateway.store.engine import Database
    from gateway.store.generation import Generation
    from gateway.store.own_key import keys_for, settle_keys
    from gateway.store.schema import newest
    from gateway.store.secrets import SecretBox

    url = database_url(settings)
    make_home(settings)
    await keys_for(url, settings.secret_key_sources())  # before anything is changed
    migrated = await bring_up_to_date(url)
    db, generation = Database(url, newest()), Generation(settings.run_dir / "generation")
    try:
        keys = await settle_keys(db, settings.secret_key_sources())
        async with db.read() as conn:
            replacing = await meta.secret_key_is_previous(conn, keys)
        if replacing:
            tell("GATEWAY_SECRET_KEY is a new one: once every server runs with it, `gateway secrets rotate` lets you forget the old one.")
        init, box = Actor(user_id=None, via="init"), SecretBox.of(keys)
        await ensure_signing_key(db, generation, init, box=box, algorithm=settings.jwt_algorithm)
        email, created, password = await _first_admin(db, generation, settings)
        return Installation(settings.home, email, created, migrated, password)
    finally:
        generation.close()
        await db.close()


async def bring_up_to_date(url: str) -> bool:
    """True: the database was made or changed. Says at once where the copy of the old one is: what follows may fail."""
    from gateway.store.migrate import migrate

    migration = await migrate(url)
    if migration.copy is not None:
        tell(f"The database was brought up to date; a copy of the old one is {migration.copy}")
    return migration.changed


async def _first_admin(db: Database, generation: Generation, settings: Settings) -> tuple[str, bool, str | None]:
    """(e-mail, created now, the password if it was made here)."""
    from gateway.changes import Actor, ensure_admin
    from gateway.cli.users import hashed
    from gateway.store import users

    async with db.read() as conn:
        first = await users.first_admin(conn)
    if first is not None:
        return first.email, False, None
    given = settings.admin_password.get_secret_value()
    password = given or secrets.token_urlsafe(15)
    actor = Actor(user_id=None, via="init")
    password_hash = await hashed(password, settings.admin_email, settings)
    made = await ensure_admin(db, generation, actor, email=settings.admin_email, password_hash=password_hash)
    return settings.admin_email, made is not None, None if given or made is None else password  # None: another process was first


def make_home(settings: Settings) -> None:
    """The folders, for their owner alone; `CommandFailed` where they cannot be made or written."""
    for folder in (settings.home, settings.run_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = folder / f".write-{secrets.token_hex(4)}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            fail(f"GATEWAY_HOME: {folder} cannot be written ({error.strerror}); give the user that runs the gateway the right to.")
