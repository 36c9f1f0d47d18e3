"""Who changes something, what they may, and the transaction that all changes share.

An admin may change everything. A manager may change the members, viewers and services of the team that they are of, and what is theirs;
whatever is of no concern to them does not exist for them (`NotFound`). Everybody else may change only what is their own.

A credential gives no more than it carries, and what it carries is read again inside the change, as what its user may is: a key that was
revoked, has run out or was narrowed meanwhile, and a login that has ended, change nothing any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from auth.address import parse_networks
from auth.principal import SCOPES, Role
from gateway.changes.bounds import REACH, bounds_of
from gateway.errors import Forbidden, NotFound
from gateway.store import changelog, keys, trail, users
from gateway.store.engine import Connection, Database
from gateway.store.generation import Generation
from gateway.store.keys import ApiKey
from gateway.store.users import User

MANAGEABLE = frozenset({Role.MEMBER, Role.VIEWER})
"""The roles that a manager gives and manages."""
_IN_FORCE_WAIT_S = 1.0
EXTERNAL = "ext_"
"""How the ids of those begin whom a trusted issuer vouches for: they have no row among the users."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and by which way.

    `via` api: `user_id` is given, and what they may is read from the database inside the change itself; `scopes`, if given, narrows
    it to what their credential carries, and only a `login` (a token, not a key) manages a team. `key_id`: the key that was used;
    `epoch`: the one that the login was begun under; both are looked at again too. `via` cli, file, init: whoever holds the machine, who
    may everything.
    """

    user_id: str | None
    via: Literal["cli", "api", "file", "init"]
    address: str | None = None
    scopes: frozenset[str] | None = None
    login: bool = False
    key_id: str | None = None
    epoch: int | None = None

    @property
    def label(self) -> str:
        """For the change log and as the author of a revision."""
        return self.user_id or self.via


@dataclass(frozen=True, slots=True)
class Rights:
    """What an actor may now. `team_id`: of the team that they manage; "": none. `key`: the one that they act with; None: with none."""

    holds: frozenset[str] = frozenset()
    team_id: str = ""
    key: ApiKey | None = None

    @property
    def by_admin(self) -> bool:
        return "admin" in self.holds

    def manages(self, user: User) -> bool:
        """May they change this user and the user's keys?"""
        return self.by_admin or (bool(self.team_id) and user.team_id == self.team_id and user.role in MANAGEABLE)

    @property
    def whole(self) -> bool:
        """Is no key in use, or one that is bound to no networks, models or end?"""
        return self.key is None or not set(REACH) & set(bounds_of(self.key))


class Change:
    """One change under way. `conn`: its transaction; `now_s`: its time, Unix seconds; `rights`: the actor's now."""

    def __init__(self, conn: Connection, actor: Actor, rights: Rights, now_s: float) -> None:
        self.conn = conn
        self.actor = actor
        self.rights = rights
        self.now_s = now_s
        self.last_id = 0

    @property
    def by_admin(self) -> bool:
        return self.rights.by_admin

    @property
    def holds(self) -> frozenset[str]:
        return self.rights.holds

    @property
    def team_id(self) -> str:
        return self.rights.team_id

    def sees(self, user: User) -> bool:
        """Does this user exist, as far as the actor is concerned?"""
        return self.by_admin or self.is_self(user.id) or (bool(self.team_id) and user.team_id == self.team_id)

    def manages(self, user: User) -> bool:
        """May the actor change this user and the user's keys?"""
        return self.rights.manages(user)

    def is_self(self, user_id: str) -> bool:
        return bool(self.holds) and self.actor.user_id == user_id

    def require_admin(self) -> None:
        if not self.by_admin:
            raise Forbidden("Only an admin may do this.")

    def require_manager(self) -> None:
        """An admin, or the manager of a team."""
        if not self.by_admin and not self.team_id:
            raise Forbidden("Only an admin or the manager of a team may do this.")

    def require_whole(self) -> None:
        """Where somebody gets a login, or a higher role: a login is bound to nothing that a key can be bound to.

        Whoever is made or enabled gets one: they may log in elsewhere, or still know a password.
        """
        if not self.rights.whole:
            raise Forbidden(
                "A key that is bound to networks, models or an expiry makes and enables no people, sets no passwords "
                "and makes nobody admin or manager."
            )

    def require_self_or_admin(self, user_id: str) -> None:
        if not self.by_admin and not self.is_self(user_id):
            raise Forbidden("You may change only what is your own.")

    async def seen(self, user_id: str) -> User:
        """The user with this id. Raises `NotFound`, also for one whom the actor does not see."""
        user = await users.by_id(self.conn, user_id)
        if user is None or not self.sees(user):
            raise NotFound("There is no such user.")
        return user

    async def managed(self, user_id: str) -> User:
        """The user with this id, whom the actor may change. Raises `NotFound`, `Forbidden`."""
        self.require_manager()  # before looking: who exists is not for everyone to know
        user = await self.seen(user_id)
        if not self.manages(user):
            raise Forbidden("A manager may change only the members, the viewers and the services of their team.")
        return user

    async def record(self, action: str, entity: str, entity_id: str, before: Any = None, after: Any = None, *, log: bool = True) -> None:
        """The audit entry, and the change log's (`log`) where processes hold something that must be read again."""
        await trail.append(
            self.conn,
            at=self.now_s,
            actor_user_id=self.actor.user_id,
            via=self.actor.via,
            address=self.actor.address,
            action=action,
            entity=entity,
            entity_id=entity_id,
            before=before,
            after=after,
            actor_key_id=self.actor.key_id,
        )
        if log:
            self.last_id = await changelog.append(self.conn, entity, entity_id, self.actor.label, self.now_s)


@asynccontextmanager
async def change(db: Database, generation: Generation, actor: Actor) -> AsyncIterator[Change]:
    """The transaction of one change. Changes wait for each other, so what one has checked holds until it commits.

    It ends when the change is in force in every process of this host, so that whoever is answered can use what they made; or after
    a second, where one of them is held up.
    """
    async with db.write() as conn:
        await changelog.lock(conn)
        now_s = time.time()
        step = Change(conn, actor, await rights_of(conn, actor, now_s), now_s)
        yield step
    if step.last_id:
        generation.set_change(step.last_id)
        end_s = time.monotonic() + _IN_FORCE_WAIT_S
        while not generation.in_force(step.last_id) and time.monotonic() < end_s:  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.002)


async def rights_of(conn: Connection, actor: Actor, now_s: float) -> Rights:
    """What this actor may now, of all that the database says."""
    if actor.via != "api":
        return Rights(SCOPES)
    if actor.user_id is None:
        return Rights()
    if actor.user_id.startswith(EXTERNAL):  # no row can be read: the token, verified for this very request, is all there is
        return Rights((actor.scopes or frozenset()) if actor.login else frozenset())
    user = await users.by_id(conn, actor.user_id)
    if user is None or not user.enabled or actor.epoch not in (None, user.token_epoch):
        return Rights()
    manages = user.role == Role.MANAGER and actor.login and not user.is_service
    allowed = user.role.scopes if actor.key_id is None else user.role.key_scopes
    holds = allowed if actor.scopes is None else allowed & actor.scopes
    if actor.key_id is None:
        return Rights(holds, (user.team_id or "") if manages else "")
    key = await keys.by_id(conn, actor.key_id)
    if key is None or not _in_force(key, actor, now_s):
        return Rights()
    return Rights(holds.intersection(key.scopes), key=key)


def _in_force(key: ApiKey, actor: Actor, now_s: float) -> bool:
    """May this actor use the key now, from where they are?"""
    if key.user_id != actor.user_id or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now_s):
        return False
    try:
        return not key.networks or (actor.address or "") in parse_networks(key.networks)
    except ValueError:  # no change writes such a thing
        return False
