"""Users: people, and services that only hold keys. E-mails are compared and stored in lower case, without spaces around them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Limits, Role
from gateway.store.limits import NAMES as _LIMITS
from gateway.store.limits import limit_values, limits_of
from gateway.store.search import holds
from gateway.store.tables import users

_U = users.c
_COLUMNS = (
    _U.id, _U.email, _U.role, _U.token_epoch, _U.created_at, _U.disabled_at, _U.kind, _U.name, _U.team_id, _U.last_login_at, _U.held,
    *(_U[name] for name in _LIMITS),
)  # fmt: skip
_ID = "usr_"  # no key id holds an underscore
SERVICE_DOMAIN = "service"
"""A service's address is NAME@service: nobody can receive mail there, and no person can have it."""


class Kind(StrEnum):
    """What a user is. A service never logs in."""

    PERSON = "person"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class User:
    """One person or service. Times are Unix seconds. The password's hash is never part of it.

    `limits`: of all that they do, with any key and login; keys have their own besides. `team_id` None: of no team. `held`: what of it
    an admin has set: names of limits, and "disabled".
    """

    id: str
    email: str
    role: Role
    token_epoch: int
    created_at: float
    disabled_at: float | None = None
    kind: Kind = Kind.PERSON
    name: str | None = None
    team_id: str | None = None
    last_login_at: float | None = None
    limits: Limits = field(default_factory=Limits)
    held: tuple[str, ...] = ()

    @property
    def enabled(self) -> bool:
        return self.disabled_at is None

    @property
    def is_service(self) -> bool:
        return self.kind == Kind.SERVICE


def is_user_id(text: str) -> bool:
    """Is this the id of a user, and not of a key?"""
    return text.startswith(_ID)


def normalise_email(email: str) -> str:
    """Only what is ASCII is lowered and stripped. Of the rest two different addresses could become one: the Kelvin sign is a "k" then."""
    email = email.strip(" \t\r\n")
    return email.lower() if email.isascii() else email


async def create(
    conn: AsyncConnection,
    email: str,
    role: Role,
    password_hash: str | None,
    now_s: float,
    *,
    kind: Kind = Kind.PERSON,
    name: str | None = None,
    team_id: str | None = None,
    limits: Limits | None = None,
    held: tuple[str, ...] = (),
) -> User:
    """The caller has checked that the e-mail is free."""
    user_id, limits = f"{_ID}{secrets.token_hex(8)}", limits or Limits()
    user = User(user_id, normalise_email(email), role, 0, now_s, kind=kind, name=name, team_id=team_id, limits=limits, held=held)
    values: dict[str, Any] = {"id": user.id, "email": user.email, "role": role.value, "token_epoch": 0, "created_at": now_s}
    values |= {"kind": kind.value, "name": name, "team_id": team_id, "password_hash": password_hash, "disabled_at": None, "held": held}
    await conn.execute(insert(users).values(values | limit_values(limits)))
    return user


async def by_id(conn: AsyncConnection, user_id: str) -> User | None:
    return _user((await conn.execute(select(*_COLUMNS).where(_U.id == user_id))).one_or_none())


async def by_email(conn: AsyncConnection, email: str) -> User | None:
    return _user((await conn.execute(select(*_COLUMNS).where(_U.email == normalise_email(email)))).one_or_none())


async def by_typed_email(conn: AsyncConnection, email: str) -> User | None:
    """Whom somebody means who types this: a user to log in as, or to look up. Never to link an account by, nor to see whether it is free.

    Earlier versions stored every letter in lower case. What is ASCII once lowered is somebody else's address.
    """
    found, lowered = await by_email(conn, email), normalise_email(email).lower()
    if found is None and not lowered.isascii():
        found = await by_email(conn, lowered)
    return found


async def all_enabled(conn: AsyncConnection) -> list[User]:
    rows = (await conn.execute(select(*_COLUMNS).where(_U.disabled_at.is_(None)))).all()
    return [_made(row) for row in rows]


async def page(
    conn: AsyncConnection, *, after: str = "", limit: int = 50, search: str = "", team_id: str | None = None, kind: Kind | None = None
) -> list[User]:
    """Users by e-mail, those after the e-mail `after`. `search`: a part of the e-mail or the name, in any case (no wildcards).

    `team_id`: only this team's ("" is no team's); None: all.
    """
    query = select(*_COLUMNS).where(_U.email > after).order_by(_U.email).limit(limit)
    if search.strip():
        query = query.where(or_(*holding(conn, search)))
    if team_id is not None:
        query = query.where(_U.team_id == team_id)
    if kind is not None:
        query = query.where(_U.kind == kind.value)
    return [_made(row) for row in (await conn.execute(query)).all()]


async def password_hash(conn: AsyncConnection, user_id: str) -> str | None:
    return (await conn.execute(select(_U.password_hash).where(_U.id == user_id))).scalar()


async def replace_hash(conn: AsyncConnection, user_id: str, old_hash: str, new_hash: str) -> None:
    """Only if it is still `old_hash`: a password changed meanwhile stays changed."""
    await conn.execute(update(users).where(_U.id == user_id, _U.password_hash == old_hash).values(password_hash=new_hash))


async def set_role(conn: AsyncConnection, user_id: str, role: Role) -> None:
    await _update(conn, user_id, role=role.value)


async def set_team(conn: AsyncConnection, user_id: str, team_id: str | None) -> None:
    await _update(conn, user_id, team_id=team_id)


async def set_name(conn: AsyncConnection, user_id: str, name: str | None) -> None:
    await _update(conn, user_id, name=name)


async def set_limits(conn: AsyncConnection, user_id: str, limits: Limits, held: tuple[str, ...]) -> None:
    await _update(conn, user_id, **limit_values(limits), held=held)


async def set_password(conn: AsyncConnection, user_id: str, new_hash: str) -> None:
    """Login tokens issued so far stop working."""
    await _update(conn, user_id, password_hash=new_hash, token_epoch=_U.token_epoch + 1)


async def forget_password(conn: AsyncConnection, user_id: str) -> None:
    """Nobody logs in with it any more."""
    await _update(conn, user_id, password_hash=None)


async def end_logins(conn: AsyncConnection, user_id: str) -> None:
    """Login tokens issued so far stop working."""
    await _update(conn, user_id, token_epoch=_U.token_epoch + 1)


async def set_disabled(conn: AsyncConnection, user_id: str, disabled_at: float | None, held: tuple[str, ...]) -> None:
    """Login tokens issued so far stop working, also after the user is enabled again."""
    await _update(conn, user_id, disabled_at=disabled_at, held=held, token_epoch=_U.token_epoch + 1)


async def set_last_login(conn: AsyncConnection, user_id: str, now_s: float) -> None:
    await _update(conn, user_id, last_login_at=now_s)


async def count_admins(conn: AsyncConnection) -> int:
    """Enabled admins that are people: a service cannot log in."""
    return int((await conn.execute(_admins(select(func.count()).select_from(users)))).scalar_one())


async def first_admin(conn: AsyncConnection) -> User | None:
    """The enabled admin that was created first, a person."""
    query = _admins(select(*_COLUMNS)).order_by(_U.created_at, _U.id).limit(1)
    return _user((await conn.execute(query)).one_or_none())


def holding(conn: AsyncConnection, search: str) -> tuple[ColumnElement[bool], ...]:
    """Any of these: the words are in the e-mail or the name. Databases may lower ASCII alone: other letters are found as written."""
    words, lowered = search.strip(), search.strip().lower()
    return holds(conn, _U.email, lowered), holds(conn, func.lower(_U.name), lowered), holds(conn, _U.name, words)


def of_team(team_id: str) -> Select[Any]:
    """The ids of a team's users, to be used inside another query."""
    return select(_U.id).where(_U.team_id == team_id)


def _admins(query: Select[Any]) -> Select[Any]:
    return query.where(_U.role == Role.ADMIN.value, _U.disabled_at.is_(None), _U.kind == Kind.PERSON.value)


async def _update(conn: AsyncConnection, user_id: str, **values: Any) -> None:
    await conn.execute(update(users).where(_U.id == user_id).values(values))


def _user(row: Any) -> User | None:
    return None if row is None else _made(row)


def _made(row: Any) -> User:
    user_id, email, role, epoch, created_at, disabled_at, kind, name, team_id, last_login_at, held, *limits = row
    return User(
        user_id, email, Role(role), epoch, created_at, disabled_at, Kind(kind), name, team_id, last_login_at, limits_of(*limits), held
    )
