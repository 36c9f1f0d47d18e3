"""Is GATEWAY_SECRET_KEY the one that this database was set up with? The one place that compares, for servers, keeper and commands.

The database remembers the key's fingerprint. Nothing is sealed or opened with another key, and none is made where one is remembered, except
to succeed the one that it is remembered of (`secret.key.previous`). All raise `SecretKeyRefused`.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select

from gateway.store import meta
from gateway.store.engine import Database
from gateway.store.errors import SecretKeyRefused
from gateway.store.peek import peek
from gateway.store.secret_key import FILE_NAME, SecretKeys, fingerprint, load_previous, load_secret_keys
from gateway.store.tables import meta as table

Sources = tuple[Path, str, Path | None, str]
"""The arguments of `load_secret_keys`."""

_LOST = "If it is lost for good, `gateway secrets forget` goes on with a new one."


async def check_keys(db: Database, sources: Sources) -> SecretKeys:
    """The keys, if they are this database's. Makes and remembers nothing."""
    async with db.read() as conn:
        known = await meta.secret_key_fingerprint(conn)
    if known is None:
        raise SecretKeyRefused("This database was not set up yet: run `gateway init` first.")
    return _fitting(known, sources, starting=False)


async def settle_keys(db: Database, sources: Sources) -> SecretKeys:
    """The same for whoever starts a gateway: where no key is remembered, this one is from now on; where there is none, it is made."""
    async with db.read() as conn:
        known = await meta.secret_key_fingerprint(conn)
    keys = _fitting(known, sources, starting=True)
    if known is None:
        async with db.write() as conn:
            await meta.put_if_absent(conn, meta.KEY_FINGERPRINT, fingerprint(keys.current))
        return await check_keys(db, sources)  # another process may have been first, with another key
    return keys


async def successor_keys(db: Database, sources: Sources) -> SecretKeys:
    """A key to go on with after this database's was lost: the configured one, else that of the file, which is made where there is none."""
    async with db.read() as conn:
        known = await meta.secret_key_fingerprint(conn)
    home, configured, file, previous = sources
    if known is None or known not in map(fingerprint, load_previous(home, previous)):
        keys = load_secret_keys(*sources, create=not configured and file is None)
        if known != fingerprint(keys.current):
            return SecretKeys(keys.current)
    raise SecretKeyRefused("The secret key of this database is here, so nothing is lost: `gateway secrets rotate` replaces a key.")


async def keys_for(url: str, sources: Sources) -> SecretKeys:
    """As `settle_keys`, of a database that may have an older schema, or not be there yet, and is left as it is."""
    return _fitting(await peek(url, _remembered), sources, starting=True)


def _remembered(conn: Connection) -> str | None:
    if not inspect(conn).has_table(table.name):
        return None
    return conn.execute(select(table.c.value).where(table.c.name == meta.KEY_FINGERPRINT)).scalar()


def _fitting(known: str | None, sources: Sources, *, starting: bool) -> SecretKeys:
    home, configured, file, previous = sources
    missing = not configured and file is None and not (home / FILE_NAME).exists()
    succeeding = known is not None and known in map(fingerprint, load_previous(home, previous))
    if missing and known is not None and not (starting and succeeding):
        raise SecretKeyRefused(
            f"{home / FILE_NAME} is missing, and this database was set up with a secret key: put the file back from your copy, "
            f"or set GATEWAY_SECRET_KEY to what was in it. {_LOST}"
        )
    keys = load_secret_keys(*sources, create=missing)
    if known is not None and not succeeding and fingerprint(keys.current) != known:
        source = "GATEWAY_SECRET_KEY" if configured else f"The key in {file or home / FILE_NAME}"
        raise SecretKeyRefused(
            f"{source} is not the one that this database was set up with: its stored secrets cannot be read. Give it that one. {_LOST}"
        )
    return keys
