"""What requests are checked against: every live key and user, in process memory.

Loaded once; then the change log says which entries to read again. The database may be away: what is known stays in force.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from auth.ports import KeyRecord, UserRecord
from auth.principal import Budget, Principal, Role
from gateway.store import changelog, keys, users
from gateway.store.contact import STALE_S, Contact
from gateway.store.engine import Database
from gateway.store.spending import Spending

_Row = Any  # as `keys.digest_rows` says
_REVOKED, _DISABLED, _UNKNOWN = "revoked", "disabled", "unknown"


class LiveTables:
    """Implements `auth.ports.CredentialStore`. Look-ups are dict gets; records are replaced, never edited.

    `applied`: id of the last change that the tables hold. Compare it with `Generation.change` and call `catch_up` where they differ.
    """

    def __init__(self, stale_s: float = STALE_S) -> None:
        self.applied = 0
        self.contact = Contact(stale_s)
        self._by_digest: dict[bytes, KeyRecord] = {}
        self._refused: dict[bytes, str] = {}  # digests of revoked keys and of disabled owners' keys: for the log only
        self._digests: dict[str, tuple[bytes, ...]] = {}  # by key id
        self._keys_of: dict[str, set[str]] = {}  # by user id
        self._users: dict[str, UserRecord] = {}
        self._patterns: dict[tuple[str, ...], re.Pattern[str] | None] = {}
        self._turn = asyncio.Lock()  # two catch-ups at once could put an older entry over a newer one

    @classmethod
    async def load(cls, db: Database, stale_s: float = STALE_S) -> LiveTables:
        """Everything. Raises `StoreUnavailable`. `stale_s`: how long what is known stays in force while the database is away."""
        tables = cls(stale_s)
        await tables._reload(db)
        return tables

    async def catch_up(self, db: Database, spending: Spending | None = None) -> set[str]:
        """Read again what the change log names since last time; returns the kinds: key, user, revision, secret.

        An entry is put in place only when all of them could be read. Raises `StoreUnavailable`; the tables then stay as they were.
        `spending` is read first: a budget is not in force before it is known what it has left.
        """
        async with self._turn:
            with self.contact.made():
                async with db.read() as conn:
                    entries = await changelog.after(conn, self.applied)
                    if not entries:
                        behind = await changelog.latest(conn) < self.applied
                    else:
                        behind = False
                        user_ids = {e.entity_id for e in entries if e.kind == "user"}
                        key_ids = {e.entity_id for e in entries if e.kind == "key"}
                        people = {i: await users.by_id(conn, i) for i in user_ids}
                        key_rows = [(i, await _rows(conn, key_id=i)) for i in key_ids]
                        user_rows = [(i, await _rows(conn, user_id=i)) for i in user_ids]
                        if spending is not None:
                            known = [person for person in people.values() if person is not None]
                            await spending.read(conn, _budgets(row for _, rows in key_rows for row in rows) | _budgets_of(known))
            if behind:  # another database, or an older copy of it: nothing in the tables can be trusted
                await self._reload(db)
                return {"user", "key", "revision", "secret"}
            if not entries:
                return set()
            for user_id, person in people.items():
                self._set_user(user_id, person)
            for key_id, rows in key_rows:
                self._set_keys([key_id], rows)
            for user_id, rows in user_rows:  # a user's role and state are part of the records of their keys
                self._set_keys(self._keys_of.get(user_id, set()), rows)
            self.applied = entries[-1].id
            return {e.kind for e in entries}

    @property
    def away(self) -> bool:
        return self.contact.away

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        return None if self.contact.stale else self._by_digest.get(digest)

    def key_refusal(self, digest: bytes) -> str:
        return self._refused.get(digest, _UNKNOWN)

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return None if self.contact.stale else self._users.get(user_id)

    def records(self) -> Iterator[KeyRecord]:
        """Every live key; one that is being rotated comes once per valid text. Do not await while iterating."""
        return iter(self._by_digest.values())

    def people(self) -> Iterator[UserRecord]:
        """Every enabled user. Do not await while iterating."""
        return iter(self._users.values())

    async def _reload(self, db: Database) -> None:
        with _collector_paused():
            async with db.read() as conn:
                applied = await changelog.latest(conn)  # before the rest: what changes meanwhile is then read once more
                people = await users.all_enabled(conn)
                rows = await _rows(conn)
            for table in (self._by_digest, self._refused, self._digests, self._keys_of, self._users):
                table.clear()
            self._users.update((user.id, user_record(user)) for user in people)
            self._put(rows)
            self.applied = applied

    def _set_user(self, user_id: str, user: users.User | None) -> None:
        if user is None or not user.enabled:
            self._users.pop(user_id, None)
        else:
            self._users[user_id] = user_record(user)

    def _set_keys(self, key_ids: Iterable[str], rows: list[_Row]) -> None:
        """`rows` are all there is of these keys. New records go in before old ones go out: a live key is never missing."""
        old = [digest for key_id in key_ids for digest in self._digests.pop(key_id, ())]
        self._put(rows)
        new = {row[0] for row in rows}
        for digest in old:
            if digest not in new:
                self._by_digest.pop(digest, None)
                self._refused.pop(digest, None)

    def _put(self, rows: list[_Row]) -> None:
        for row in rows:
            digest, digest_end, role_name, disabled_at, key_id, user_id, _, models, scopes, *limits, _, expires_at, revoked_at = row
            if digest not in self._digests.get(key_id, ()):
                self._digests[key_id] = (*self._digests.get(key_id, ()), digest)
            self._keys_of.setdefault(user_id, set()).add(key_id)
            if revoked_at is not None or disabled_at is not None:
                self._by_digest.pop(digest, None)
                self._refused[digest] = _DISABLED if revoked_at is None else _REVOKED
                continue
            role = Role(role_name)
            principal = Principal(
                user_id=user_id,
                role=role,
                scopes=role.scopes.intersection(scopes),  # never more than its owner holds now
                key_id=key_id,
                models=models,
                limits=keys.limits_of(*limits),
                limit_id=key_id,
                _allows=self._pattern(models),
            )
            self._refused.pop(digest, None)
            self._by_digest[digest] = KeyRecord(key_id, digest, principal, _earlier(expires_at, digest_end))

    def _pattern(self, globs: tuple[str, ...]) -> re.Pattern[str] | None:
        if globs not in self._patterns:
            self._patterns[globs] = Principal.compile_globs(globs)
        return self._patterns[globs]


def user_record(user: users.User) -> UserRecord:
    """What a login token of this user stands for."""
    principal = Principal(
        user_id=user.id, role=user.role, scopes=user.role.scopes, limits=user.limits, limit_id=user.id, team_id=user.team_id
    )
    return UserRecord(user.id, user.email, user.role, principal, user.token_epoch)


def _budgets(rows: Iterable[_Row]) -> dict[str, Budget]:
    """Key id -> budget."""
    found = {row.id: keys.limits_of(row.rpm, row.tpm, row.concurrency, row.budget_pusd, row.budget_window).budget for row in rows}
    return {key_id: budget for key_id, budget in found.items() if budget is not None}


def _budgets_of(people: Iterable[users.User]) -> dict[str, Budget]:
    """User id -> budget, for what they do with login tokens."""
    return {user.id: user.limits.budget for user in people if user.limits.budget is not None}


async def _rows(conn: AsyncConnection, key_id: str | None = None, user_id: str | None = None) -> list[_Row]:
    return list((await conn.execute(keys.digest_rows(key_id, user_id))).all())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Hundreds of thousands of objects that all stay: the collector would look through them again and again, a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _earlier(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)
