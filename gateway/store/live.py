"""What requests are checked against: every live key and user, in process memory.

Loaded once; then the change log says which entries to read again. The database may be away: what is known stays in force.

Nothing here holds the loop for long, however much there is to read: rows come in steps of `STEP`. A user's role, team and state are part
of the records of all their keys. Where those are many, the change is in force at once all the same, because look-ups see that the owner
has moved on (`_present`); the records follow, some with each `catch_up`, and revocations need not wait for them.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from auth.address import Networks, parse_networks
from auth.ports import KeyRecord, UserRecord
from auth.principal import Limited, Limits, Principal, Role
from gateway.store import changelog, keys, teams, users
from gateway.store.contact import STALE_S, Contact
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.limits import limits_of
from gateway.store.spending import Spending

_Row = Any  # as `keys.digest_rows` says
_REVOKED, _DISABLED, _UNKNOWN = "revoked", "disabled", "unknown"
_LIMITS_AT = 13  # the first column of the limits in a row
STEP = 400  # keys (or entries of the log) at a time: a few ms of the loop
_EVERYTHING = frozenset(("user", "key", "team", "revision", "secret", "signing_key"))


@dataclass(frozen=True, slots=True)
class _News:
    """Entries of the change log, and what they name, as it is now. `key_ids`: those whose `rows` were read."""

    entries: list[changelog.ChangeEntry]
    people: dict[str, users.User | None]
    teams: dict[str, Limits | None]  # None: it is there no more
    key_ids: set[str]
    rows: list[_Row]
    moving: list[str]  # users with more keys than are read at once


class LiveTables:
    """Implements `auth.ports.CredentialStore`. Look-ups are dict gets; records are replaced, never edited.

    `applied`: id of the last change that the tables hold. Compare it with `Generation.change` and call `catch_up` where they differ, and
    as long as `unfinished`.
    """

    def __init__(self, stale_s: float = STALE_S, generation: Generation | None = None) -> None:
        self.applied = 0
        self._generation = generation
        self.contact = Contact(stale_s)
        self._by_digest: dict[bytes, KeyRecord] = {}
        self._refused: dict[bytes, str] = {}  # digests of revoked keys and of disabled owners' keys: for the log only
        self._digests: dict[str, tuple[bytes, ...]] = {}  # by key id
        self._keys_of: dict[str, set[str]] = {}  # by user id
        self._users: dict[str, UserRecord] = {}
        self._moving: dict[str, list[str]] = {}  # user id -> their keys whose records are older than the user's
        self._limited: dict[str, Limited] = {}  # by limit id: whoever is counted under it refers to this one
        # What several keys have is there once, and goes with the last of them.
        self._patterns: WeakValueDictionary[tuple[str, ...], re.Pattern[str]] = WeakValueDictionary()
        self._networks: WeakValueDictionary[tuple[str, ...], Networks] = WeakValueDictionary()
        self._kinds: set[str] = set()  # of what was applied and nobody was told of: a catch-up that fails halfway leaves them to the next
        self._turn = asyncio.Lock()  # two catch-ups at once could put an older entry over a newer one

    @classmethod
    async def load(cls, db: Database, stale_s: float = STALE_S, generation: Generation | None = None) -> LiveTables:
        """Everything. Raises `StoreUnavailable`. `stale_s`: how long what is known stays in force while the database is away. `generation`:
        tells that there is more to read."""
        tables = cls(stale_s, generation)
        with _collector_paused():
            await tables._reload(db)
        return tables

    async def catch_up(self, db: Database, spending: Spending | None = None) -> set[str]:
        """Read again what the change log names since last time; returns the kinds: key, user, team, revision, secret, signing_key.

        An entry is put in place only when all of its step could be read. Raises `StoreUnavailable`; the tables then stay as they were.
        `spending` is read first: a budget is not in force before it is known what it has left.
        """
        async with self._turn:
            more = True
            while more:
                with self.contact.made():
                    async with db.look() as conn:
                        news = await self._news(conn, spending)
                if news is None:  # another database, or an older copy of it: nothing in the tables can be trusted
                    with _collector_paused():
                        await self._reload(db)
                        gc.freeze()  # or its next look at what is new, all of this, would hold the loop for 50 ms
                    return set(_EVERYTHING)
                self._apply(news)
                self._kinds.update(entry.kind for entry in news.entries)
                more = len(news.entries) == STEP
            if self._moving:
                await self._move(db, spending)
            kinds, self._kinds = self._kinds, set()
        return kinds

    @property
    def unfinished(self) -> bool:
        """Are there records still to be read again? What changed is in force all the same."""
        return bool(self._moving)

    @property
    def shared(self) -> int:
        """How many lists of models and of networks are held, however many keys have them."""
        return len(self._patterns) + len(self._networks)

    @property
    def away(self) -> bool:
        return self.contact.away

    @property
    def behind(self) -> bool:
        return self._generation is not None and self._generation.change > self.applied

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        if self.contact.stale:
            return None
        record = self._by_digest.get(digest)
        return self._present(record) if self._moving and record is not None else record

    def key_refusal(self, digest: bytes) -> str:
        known = digest in self._by_digest and not self.contact.stale  # stale: what it is now is not known
        return self._refused.get(digest, _DISABLED if known else _UNKNOWN)

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return None if self.contact.stale else self._users.get(user_id)

    def limits(self, limit_id: str) -> Limits | None:
        """Those in force for this key ("ID"), user ("user:ID") or team ("team:ID"); None: it never had any, or is no more."""
        known = self._limited.get(limit_id)
        return None if known is None else known.limits

    def limited(self) -> Iterator[Limited]:
        """Everyone that has limits. Do not await while iterating."""
        return iter(self._limited.values())

    def records(self) -> Iterator[KeyRecord]:
        """Every live key; one that is being rotated comes once per valid text. Do not await while iterating."""
        return iter(self._by_digest.values())

    def people(self) -> Iterator[UserRecord]:
        """Every enabled user. Do not await while iterating."""
        return iter(self._users.values())

    def _present(self, record: KeyRecord) -> KeyRecord | None:
        """The record as far as its owner has changed since it was made. Until it is read again it has rather too little than too much."""
        principal = record.principal
        if principal.user_id not in self._moving:
            return record
        owner = self._users.get(principal.user_id)
        if owner is None:
            return None
        scopes, team_id = owner.role.key_scopes & principal.scopes, owner.principal.team_id
        callers = (*[one for one in principal.callers if one.limit_id == principal.key_id], *owner.principal.callers)
        if (owner.role, team_id, callers) == (principal.role, principal.team_id, principal.callers):
            return record
        return replace(record, principal=replace(principal, role=owner.role, scopes=scopes, team_id=team_id, callers=callers))

    async def _news(self, conn: AsyncConnection, spending: Spending | None) -> _News | None:
        """The next entries and what they name; None where the log is not the one that these tables were made from."""
        entries = await changelog.after(conn, self.applied, STEP)
        if not entries:
            behind = await changelog.latest(conn) < self.applied
            return None if behind else _News([], {}, {}, set(), [], [])
        key_ids = {entry.entity_id for entry in entries if entry.kind == "key"}
        user_ids = {entry.entity_id for entry in entries if entry.kind == "user"}
        people = {user_id: await users.by_id(conn, user_id) for user_id in user_ids}
        groups = {entry.entity_id: await teams.limits(conn, entry.entity_id) for entry in entries if entry.kind == "team"}
        named, moving = len(key_ids), []
        for user_id in user_ids:  # a user's role, team and state are part of the records of their keys
            theirs = self._keys_of.get(user_id, set())
            if len(key_ids) + len(theirs) <= named + STEP:
                key_ids |= theirs
            else:
                moving.append(user_id)
        rows = await _rows(conn, key_ids) if key_ids else []
        if spending is not None:
            of_teams = {f"team:{team_id}": limits for team_id, limits in groups.items() if limits is not None}
            await spending.read(conn, _limits_in(rows) | _limits_of_people(people.values()) | of_teams)
        return _News(entries, people, groups, key_ids, rows, moving)

    def _apply(self, news: _News) -> None:
        for team_id, limits in news.teams.items():
            self._set_team(team_id, limits)
        for user_id, person in news.people.items():
            self._set_user(user_id, person)
        for user_id in news.moving:
            self._moving[user_id] = list(self._keys_of[user_id])
        self._set_keys(news.key_ids, news.rows)
        if news.entries:
            self.applied = news.entries[-1].id

    async def _move(self, db: Database, spending: Spending | None) -> None:
        """One step of the records whose owner has changed."""
        user_id, waiting = next(iter(self._moving.items()))
        step = waiting[-STEP:]
        with self.contact.made():
            async with db.look() as conn:
                rows = await _rows(conn, step)
                if spending is not None:
                    await spending.read(conn, _limits_in(rows))
        self._set_keys(step, rows)
        del waiting[-STEP:]
        if not waiting:
            del self._moving[user_id]

    async def _reload(self, db: Database) -> None:
        """Beside what is in force, which stays so until all is read."""
        fresh = LiveTables()
        with self.contact.made():
            async with db.read() as conn:
                fresh.applied = await changelog.latest(conn)  # before the rest: what changes meanwhile is then read once more
                for team_id, limits in (await teams.all_limits(conn)).items():
                    fresh._set_team(team_id, limits)
                for user in await users.all_enabled(conn):
                    fresh._set_user(user.id, user)  # before their keys, which are counted under them too
                async for rows in (await conn.stream(keys.digest_rows())).partitions(STEP):
                    fresh._put(list(rows))
        old = (self._by_digest, self._refused, self._digests, self._keys_of, self._users, self._moving, self._limited)
        self._by_digest, self._refused, self._digests = fresh._by_digest, fresh._refused, fresh._digests
        self._keys_of, self._users, self._moving = fresh._keys_of, fresh._users, {}
        self._patterns, self._networks, self._limited = fresh._patterns, fresh._networks, fresh._limited
        self.applied = fresh.applied
        await _let_go(old)

    def _set_user(self, user_id: str, user: users.User | None) -> None:
        if user is None or not user.enabled:
            self._users.pop(user_id, None)
            self._limited.pop(f"user:{user_id}", None)
        else:
            record = user_record(user)
            callers = self._callers(f"user:{user_id}", user.limits)
            if user.team_id is not None:
                callers = (*callers, self._team(user.team_id))
            self._users[user_id] = replace(record, principal=replace(record.principal, callers=callers))

    def _set_team(self, team_id: str, limits: Limits | None) -> None:
        """In force for all of the team at once."""
        if limits is None:
            self._limited.pop(f"team:{team_id}", None)
        else:
            self._team(team_id).limits = limits

    def _team(self, team_id: str) -> Limited:
        """Every user of a team refers to it, be it limited or not: the records of all of them need not be made again for its limits."""
        return self._limited.setdefault(f"team:{team_id}", Limited(f"team:{team_id}", Limits()))

    def _callers(self, limit_id: str, limits: Limits) -> tuple[Limited, ...]:
        """Under whom it is counted by itself: () if it never had limits. One that had some is counted on, for they may be put back."""
        known = self._limited.get(limit_id)
        if known is not None:
            if known.limits != limits:
                known.limits = limits
        elif limits.limited:
            known = self._limited[limit_id] = Limited(limit_id, limits)
        return () if known is None else (known,)

    def _set_keys(self, key_ids: Collection[str], rows: list[_Row]) -> None:
        """`rows` are all there is of these keys. New records go in before old ones go out: a live key is never missing."""
        old = [digest for key_id in key_ids for digest in self._digests.pop(key_id, ())]
        self._put(rows)
        for gone in set(key_ids).difference(row.id for row in rows):
            self._limited.pop(gone, None)
        new = {row[0] for row in rows}
        for digest in old:
            if digest not in new:
                self._by_digest.pop(digest, None)
                self._refused.pop(digest, None)

    def _put(self, rows: Iterable[_Row]) -> None:
        for row in rows:
            (
                digest, digest_end, role_name, disabled_at, team_id, key_id, user_id, models, scopes, networks, expires_at, revoked_at,
                content_log, *limits,
            ) = row  # fmt: skip
            if digest not in self._digests.get(key_id, ()):
                self._digests[key_id] = (*self._digests.get(key_id, ()), digest)
            self._keys_of.setdefault(user_id, set()).add(key_id)
            if revoked_at is not None or disabled_at is not None:
                self._by_digest.pop(digest, None)
                self._refused[digest] = _DISABLED if revoked_at is None else _REVOKED
                self._limited.pop(key_id, None)
                continue
            role, owner, own_limits = Role(role_name), self._users.get(user_id), limits_of(*limits)
            principal = Principal(
                user_id=user_id,
                role=role,
                scopes=role.key_scopes.intersection(scopes),  # never more than its owner holds now
                key_id=key_id,
                models=models,
                limits=own_limits,
                limit_id=key_id,
                _allows=self._pattern(models),
                team_id=team_id,
                networks=self._network(networks),
                callers=self._callers(key_id, own_limits) + (() if owner is None else owner.principal.callers),
                content_log=content_log,
            )
            self._refused.pop(digest, None)
            self._by_digest[digest] = KeyRecord(key_id, digest, principal, _earlier(expires_at, digest_end))

    def _pattern(self, globs: tuple[str, ...]) -> re.Pattern[str] | None:
        pattern = self._patterns.get(globs)
        if pattern is None:
            pattern = Principal.compile_globs(globs)
            if pattern is not None:
                self._patterns[globs] = pattern
        return pattern

    def _network(self, texts: tuple[str, ...]) -> Networks | None:
        if not texts:
            return None
        networks = self._networks.get(texts)
        if networks is None:
            try:
                networks = parse_networks(texts)
            except ValueError:  # no change writes such a thing: whoever did meant to restrict it
                networks = Networks()
            self._networks[texts] = networks
        return networks


def user_record(user: users.User) -> UserRecord:
    """What a login token of this user stands for."""
    principal = Principal(
        user_id=user.id,
        role=user.role,
        scopes=user.role.scopes,
        limits=user.limits,
        limit_id=user.id,
        team_id=user.team_id,
        token_epoch=user.token_epoch,
    )
    return UserRecord(user.id, user.email, user.role, principal, user.token_epoch)


def _limits_in(rows: Iterable[_Row]) -> dict[str, Limits]:
    """By limit id."""
    return {row.id: limits_of(*row[_LIMITS_AT:]) for row in rows}


def _limits_of_people(people: Iterable[users.User | None]) -> dict[str, Limits]:
    return {f"user:{user.id}": user.limits for user in people if user is not None}


async def _rows(conn: AsyncConnection, key_ids: Collection[str]) -> list[_Row]:
    return list((await conn.execute(keys.digest_rows(key_ids))).all())


async def _let_go(tables: Iterable[dict[Any, Any]]) -> None:
    """Empty tables that nobody uses any more, some at a time: to free a hundred thousand records at once takes a while."""
    for table in tables:
        while table:
            for _ in range(min(len(table), 5 * STEP)):
                table.popitem()
            await asyncio.sleep(0)


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
