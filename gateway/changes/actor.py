"""Who changes something, what they may, and the transaction that all changes share.

An admin may change everything. A manager may change the members, viewers and services of the team that they are of, and what is theirs;
whatever is of no concern to them does not exist for them (`NotFound`). Everybody else may change only what is their own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from auth.principal import SCOPES, Role
from gateway.errors import Forbidden, NotFound
from gateway.store import changelog, trail, users
from gateway.store.engine import Connection, Database
from gateway.store.generation import Generation
from gateway.store.users import User

MANAGEABLE = frozenset({Role.MEMBER, Role.VIEWER})
"""The roles that a manager gives and manages."""
EXTERNAL = "ext_"
"""How the ids of those begin whom a trusted issuer vouches for: they have no row among the users."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and by which way.

    `via` api: `user_id` is given, and what they may is read from the database inside the change itself; `scopes`, if given, narrows
    it to what their credential carries, and only a `login` (a token, not a key) manages a team. `via` cli, file, init: whoever holds
    the machine, who may everything.
    """

    user_id: str | None
    via: Literal["cli", "api", "file", "init"]
    address: str | None = None
    scopes: frozenset[str] | None = None
    login: bool = False

    @property
    def label(self) -> str:
        """For the change log and as the author of a revision."""
        return self.user_id or self.via


class Change:
    """One change under way. `conn`: its transaction; `now_s`: its time, Unix seconds; `holds`: the actor's scopes now.

    `team_id`: the team that the actor manages; "": none.
    """

    def __init__(self, conn: Connection, actor: Actor, holds: frozenset[str], team_id: str = "") -> None:
        self.conn = conn
        self.actor = actor
        self.holds = holds
        self.team_id = team_id
        self.now_s = time.time()
        self.last_id = 0

    @property
    def by_admin(self) -> bool:
        return "admin" in self.holds

    def sees(self, user: User) -> bool:
        """Does this user exist, as far as the actor is concerned?"""
        return self.by_admin or self.is_self(user.id) or (bool(self.team_id) and user.team_id == self.team_id)

    def manages(self, user: User) -> bool:
        """May the actor change this user and the user's keys?"""
        return self.by_admin or (bool(self.team_id) and user.team_id == self.team_id and user.role in MANAGEABLE)

    def is_self(self, user_id: str) -> bool:
        return bool(self.holds) and self.actor.user_id == user_id

    def require_admin(self) -> None:
        if not self.by_admin:
            raise Forbidden("Only an admin may do this.")

    def require_manager(self) -> None:
        """An admin, or the manager of a team."""
        if not self.by_admin and not self.team_id:
            raise Forbidden("Only an admin or the manager of a team may do this.")

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
        )
        if log:
            self.last_id = await changelog.append(self.conn, entity, entity_id, self.actor.label, self.now_s)


@asynccontextmanager
async def change(db: Database, generation: Generation, actor: Actor) -> AsyncIterator[Change]:
    """The transaction of one change. Changes wait for each other, so what one has checked holds until it commits."""
    async with db.write() as conn:
        await changelog.lock(conn)
        step = Change(conn, actor, *await _rights(conn, actor))
        yield step
    if step.last_id:
        generation.set_change(step.last_id)


async def _rights(conn: Connection, actor: Actor) -> tuple[frozenset[str], str]:
    """(the scopes that the actor holds now, the team that they manage)."""
    if actor.via != "api":
        return SCOPES, ""
    if actor.user_id is None:
        return frozenset(), ""
    if actor.user_id.startswith(EXTERNAL):  # no row can be read: the token, verified for this very request, is all there is
        return (actor.scopes or frozenset()) if actor.login else frozenset(), ""
    user = await users.by_id(conn, actor.user_id)
    if user is None or not user.enabled:
        return frozenset(), ""
    manages = user.role == Role.MANAGER and actor.login and not user.is_service
    holds = user.role.scopes if actor.scopes is None else user.role.scopes & actor.scopes
    return holds, (user.team_id or "") if manages else ""
