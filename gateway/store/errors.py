"""Faults of the store.

Unavailable (gateway.errors)
└── StoreUnavailable        503 store_unavailable   the database does not answer, is locked, full or not writable
    └── SchemaForeign       503 schema_foreign      another version of the gateway has brought it up to date, or has yet to
StoreFault                  one plain sentence for whoever runs the gateway; never for a client
├── DatabaseUrlInvalid      GATEWAY_DATABASE_URL is no URL
├── DatabaseTooNew          a newer version of the gateway has migrated this database
├── MigrationFailed         the database could not be brought up to date
├── SecretKeyRefused        GATEWAY_SECRET_KEY is short, a sample, or readable by others
├── SecretUnreadable        a stored secret does not open with this GATEWAY_SECRET_KEY
└── AuditHeadMissing        the record of where the audit log ends is gone: nothing can be changed any more
"""

from __future__ import annotations

from gateway.errors import Unavailable


class StoreUnavailable(Unavailable):
    """`reason` is for the log: the class and short text of the driver's error, never a URL or a password."""

    code = "store_unavailable"

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__("The gateway's database does not answer at the moment. Try again shortly.", retry_after_s=retry_after_s)
        self.reason = reason


class SchemaForeign(StoreUnavailable):
    """`found`: the schema that the database has; `wanted`: the one that this code works with.

    `str()` is for whoever runs the gateway; clients, whoever they are, read what they read of any database that cannot be used.
    """

    code = "schema_foreign"

    def __init__(self, found: str | None, wanted: str) -> None:
        super().__init__(f"its schema is {found or 'unknown'}, and this process works with {wanted}")
        newer = found is not None and found > wanted
        sentence = (
            f"The gateway's database was brought up to date by {'a newer' if newer else 'another'} version than this process is of: "
            "stop every server, install one version everywhere, then start them."
        )
        self.args = (sentence,)


class StoreFault(Exception):
    """Base. `str()` is one plain sentence that says what to do."""


class DatabaseUrlInvalid(StoreFault):
    def __init__(self) -> None:
        super().__init__("GATEWAY_DATABASE_URL cannot be read: write postgresql://user:password@host:5432/name or sqlite:////path/to/file.")


class DatabaseTooNew(StoreFault):
    def __init__(self, revision: str) -> None:
        super().__init__(
            f"The database was written by a newer version of the gateway (its schema is {revision}, unknown here): "
            "install that version, or restore the copy that was made before the upgrade."
        )


class MigrationFailed(StoreFault):
    pass


class SecretKeyRefused(StoreFault):
    pass


class SecretUnreadable(StoreFault):
    def __init__(self, name: str) -> None:
        super().__init__(f"The secret {name!r} cannot be opened: GATEWAY_SECRET_KEY is not the one it was stored with.")
        self.name = name


class AuditHeadMissing(StoreFault):
    def __init__(self) -> None:
        super().__init__(
            "The record of where the audit log ends is missing: somebody has changed the database. "
            "`gateway audit verify` says what else is wrong; restore a copy of the database."
        )
