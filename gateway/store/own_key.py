"""Is GATEWAY_SECRET_KEY the one that this database was set up with? The one place that compares, for servers, keeper and commands.

The database remembers the key's fingerprint. Nothing is sealed or opened with another key, and none is made where one is remembered, except
to succeed the one that it is remembered of (`secret.key.previous`). All raise `SecretKeyRefused`.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select

from gateway.store import changelog, meta
from gateway.store.engine import Database
from gateway.store.errors import SecretKeyRefused
from gateway.store.peek import peek
from gateway.store.secret_key import FILE_NAME, SecretKeys, fingerprint, load_previous, load_secret_keys
from gateway.store.tables import meta as table

Sources = tuple[Path, str, Path | None, str]
"""The arguments of `load_secret_keys`."""

_THIRD = (
    "The secret key of this database is being replaced by another new key than this host's: copy that one to every host "
    "(GATEWAY_SECRET_KEY, or secret.key). To begin again with another, give all the old key alone and run `gateway secrets rotate`."
)
_LOST = "If it is lost for good, `gateway secrets forget` goes on with a new one."


async def check_keys(db: Database, sources: Sources) -> SecretKeys:
    """The keys, if they are this database's. Makes and remembers nothing."""
    async with db.read() as conn:
        known, successor = await meta.secret_key_fingerprint(conn), await meta.get(conn, meta.KEY_SUCCESSOR)
    if known is None:
        raise SecretKeyRefused("This database was not set up yet: run `gateway init` first.")
    return _fitting(known, successor, sources, starting=False)


async def settle_keys(db: Database, sources: Sources) -> SecretKeys:
    """The same for whoever starts a gateway: where no key is remembered, this one is from now on; where there is none, it is made.

    The same holds for the key that replaces the one that is remembered.
    """
    async with db.read() as conn:
        known, successor = await meta.secret_key_fingerprint(conn), await meta.get(conn, meta.KEY_SUCCESSOR)
    keys = _fitting(known, successor, sources, starting=True)
    current = fingerprint(keys.current)
    if current in (known, successor):
        return keys
    async with db.write() as conn:
        await changelog.lock(conn)  # a rotation that ends now must not leave this one's successor behind
        if known is None:
            await meta.put_if_absent(conn, meta.KEY_FINGERPRINT, current)
        else:
            await meta.admit_secret_key(conn, current, [fingerprint(key) for key in keys.previous])
    return await check_keys(db, sources)  # another process may have been first, with another key


async def successor_keys(db: Database, sources: Sources) -> SecretKeys:
    """A key to go on with after this database's was lost: the configured one, else that of the file, which is made where there is none."""
    async with db.read() as conn:
        known = await meta.secret_key_fingerprint(conn)
    _require_lost(known, sources)
    _, configured, file, _ = sources
    keys = load_secret_keys(*sources, create=not configured and file is None)
    return SecretKeys(keys.current)


async def require_lost(url: str, sources: Sources) -> None:
    """Refuses where `successor_keys` would, of a database that may have an older schema and is left as it is."""
    known, _ = await peek(url, _remembered) or (None, None)
    _require_lost(known, sources)


async def keys_for(url: str, sources: Sources) -> SecretKeys:
    """As `settle_keys`, of a database that may have an older schema, or not be there yet, and is left as it is."""
    known, successor = await peek(url, _remembered) or (None, None)
    return _fitting(known, successor, sources, starting=True)


def _remembered(conn: Connection) -> tuple[str | None, str | None]:
    """The fingerprints of the key that everything is encrypted with, and of the one that replaces it."""
    if not inspect(conn).has_table(table.name):
        return None, None
    names = (meta.KEY_FINGERPRINT, meta.KEY_SUCCESSOR)
    rows = conn.execute(select(table.c.name, table.c.value).where(table.c.name.in_(names)))
    found: dict[str, str] = {name: value for name, value in rows.all()}  # noqa: C416  # a Row is no tuple to the type checker
    return found.get(meta.KEY_FINGERPRINT), found.get(meta.KEY_SUCCESSOR)


def _require_lost(known: str | None, sources: Sources) -> None:
    home, configured, file, previous = sources
    here = list(load_previous(home, previous))
    if configured or file is not None or (home / FILE_NAME).exists():
        here.append(load_secret_keys(*sources).current)
    if known is not None and known in map(fingerprint, here):
        raise SecretKeyRefused(
            "The secret key of this database is here, so nothing is lost: `gateway secrets rotate` replaces a key. If something does not "
            "open with it, `gateway doctor` names it: `gateway secrets set NAME` stores a secret again, and "
            "`gateway secrets rotate --signing --at-once` replaces a signing key."
        )


def _fitting(known: str | None, successor: str | None, sources: Sources, *, starting: bool) -> SecretKeys:
    home, configured, file, previous = sources
    missing = not configured and file is None and not (home / FILE_NAME).exists()
    succeeding = known is not None and known in map(fingerprint, load_previous(home, previous))
    if missing and succeeding and starting and successor is not None:  # a key that is made here would be no other host's
        raise SecretKeyRefused(_THIRD)
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
    if known is not None and successor is not None and fingerprint(keys.current) not in (known, successor):
        raise SecretKeyRefused(_THIRD)
    return keys
