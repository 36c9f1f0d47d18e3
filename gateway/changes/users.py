"""Changes of users. Admins change everybody; a manager the members, viewers and services of their own team, as `Change.managed` says.

A manager never chooses a password for somebody: who is a member today may be an admin tomorrow, with the password that the manager knows.
For the same reason whoever is raised to manager or admin has to log in again. Managers issue links (see passwords.py).

What an admin has set (`User.held`), a manager only narrows; whom an admin has disabled, only an admin enables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from auth.principal import Limits, Role
from gateway.changes.actor import MANAGEABLE, Actor, Change, change, rights_of
from gateway.changes.bounds import DISABLED, bounds_of, held_after, wider
from gateway.changes.limits import FIELDS as _LIMITS
from gateway.changes.limits import check_limits, edited, set_back, shown_limits
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.store import teams, tokens, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.users import SERVICE_DOMAIN, Kind, User

FIELDS = frozenset({"name", "role", "team", "disabled"}) | _LIMITS
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,128}@[^@\s\x00-\x1f\x7f]{1,125}")
_SERVICE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_MAX_NAME_CHARS = 200
_ENTITY = "user"


async def create_user(
    db: Database,
    generation: Generation,
    actor: Actor,
    *,
    email: str,
    role: Role | str,
    password_hash: str | None = None,
    name: str | None = None,
    team: str | None = None,
    limits: Limits | None = None,
) -> User:
    """A person. `password_hash`: of `auth.passwords.Passwords.hash`; None: they cannot log in with a password. Only an admin gives one.

    `team`: id or name; None: of no team, or of the team of the manager who acts. `limits`: of all that they do.
    """
    async with change(db, generation, actor) as step:
        wanted = _grantable(step, role)
        step.require_whole()
        if password_hash is not None:
            _require_password_right(step)
        team_id = await _team_for(step, team)
        return await new_user(step, email, wanted, password_hash=password_hash, name=name, team_id=team_id, limits=limits)


async def create_service(
    db: Database,
    generation: Generation,
    actor: Actor,
    *,
    name: str,
    role: Role | str = Role.MEMBER,
    team: str | None = None,
    limits: Limits | None = None,
) -> User:
    """A service account, which holds keys and never logs in. Its address is `name`@service. `limits`: of all its keys together."""
    async with change(db, generation, actor) as step:
        wanted = _grantable(step, role)
        _check_service_role(wanted)
        name = name.strip().lower()
        if _SERVICE.fullmatch(name) is None:
            raise InvalidRequest("A service's name is 1 to 64 letters, digits, dots, dashes and underscores.", param="name")
        limits = limits or Limits()
        check_limits(limits)
        team_id = await _team_for(step, team)
        return await _insert(step, f"{name}@{SERVICE_DOMAIN}", wanted, None, Kind.SERVICE, None, team_id, limits, "name")


async def ensure_admin(db: Database, generation: Generation, actor: Actor, *, email: str, password_hash: str) -> User | None:
    """The first admin; None if there is one already, who is never changed. Of several at once one creates."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        if await users.count_admins(step.conn):
            return None
        return await new_user(step, email, Role.ADMIN, password_hash=password_hash)


async def update_user(db: Database, generation: Generation, actor: Actor, user_id: str, fields: Mapping[str, Any]) -> User:
    """Change a user, all of it or nothing.

    `fields`: any of name, role, team (id or name), disabled, rpm, tpm, rpd, tpd, concurrency, budget (a `Budget`), token_budget (a
    `TokenBudget`), soft; None takes the name, the team or a limit away. What was spent of a budget stays spent. The last enabled admin
    stays one. Only an admin moves users between teams. A user who is disabled is refused with keys and login tokens from then on; enabled
    again, their keys work again, and login tokens from before do not.
    """
    if not fields.keys() <= FIELDS:
        raise InvalidRequest(f"There is no field {sorted(fields.keys() - FIELDS)[0]!r} of a user to change.")
    async with change(db, generation, actor) as step:
        user = await step.managed(user_id)
        if "name" in fields or _LIMITS & fields.keys():
            user = await _describe(step, user, fields)
        if "role" in fields:
            user = await _set_role(step, user, fields["role"])
        if "team" in fields:
            user = await _set_team(step, user, fields["team"])
        if "disabled" in fields:
            user = await _set_disabled(step, user, bool(fields["disabled"]))
        return user


async def reset_user_budget(db: Database, generation: Generation, actor: Actor, user_id: str) -> User:
    """What the user has spent so far counts against their budgets no more; those of their keys and team stay as they are. Admins only."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        user = await step.seen(user_id)
        await users.set_limits(step.conn, user.id, set_back(user.limits, step.now_s), user.held)
        return await _recorded(step, "reset_budget", user)


async def set_role(db: Database, generation: Generation, actor: Actor, user_id: str, role: Role | str) -> User:
    return await update_user(db, generation, actor, user_id, {"role": role})


async def set_team(db: Database, generation: Generation, actor: Actor, user_id: str, team: str | None) -> User:
    """`team`: id or name; None: of no team."""
    return await update_user(db, generation, actor, user_id, {"team": team})


async def disable_user(db: Database, generation: Generation, actor: Actor, user_id: str) -> User:
    return await update_user(db, generation, actor, user_id, {"disabled": True})


async def enable_user(db: Database, generation: Generation, actor: Actor, user_id: str) -> User:
    return await update_user(db, generation, actor, user_id, {"disabled": False})


async def may_give_password(db: Database, actor: Actor, user_id: str | None = None) -> User | None:
    """Ask this before a password is hashed, which costs more than a refusal. The user with this id; None: a new one is to have it.

    Raises what `create_user` with a password, or `reset_password`, would, as far as it is up to who asks for whom. They look again.
    """
    async with db.read() as conn:
        now_s = time.time()
        step = Change(conn, actor, await rights_of(conn, actor, now_s), now_s)
        _require_password_right(step, user_id)
        return None if user_id is None else await _with_password(step, user_id)


async def reset_password(db: Database, generation: Generation, actor: Actor, user_id: str, *, password_hash: str) -> User:
    """A new password; every login of this user ends. By an admin, or by users themselves: to ask for their old one is the caller's part."""
    async with change(db, generation, actor) as step:
        _require_password_right(step, user_id)
        user = await _with_password(step, user_id)
        await users.set_password(step.conn, user_id, password_hash)
        await tokens.revoke_user(step.conn, user_id)
        return await _recorded(step, "reset_password", user)


async def new_user(
    step: Change,
    email: str,
    role: Role,
    *,
    password_hash: str | None = None,
    name: str | None = None,
    team_id: str | None = None,
    limits: Limits | None = None,
) -> User:
    """A person, within a change that has checked that its actor may. Raises `InvalidRequest`, `Conflict`."""
    email, limits = users.normalise_email(email), limits or Limits()
    if not email.isascii():
        raise InvalidRequest(
            "An e-mail address consists of ASCII characters here: others could be taken for those of another.", param="email"
        )
    if _EMAIL.fullmatch(email) is None:
        raise InvalidRequest("This is not an e-mail address.", param="email")
    if email.endswith(f"@{SERVICE_DOMAIN}"):
        raise InvalidRequest("Addresses at 'service' are those of service accounts.", param="email")
    check_limits(limits)
    return await _insert(step, email, role, password_hash, Kind.PERSON, _name(name), team_id, limits, "email")


async def _insert(
    step: Change,
    email: str,
    role: Role,
    password_hash: str | None,
    kind: Kind,
    name: str | None,
    team_id: str | None,
    limits: Limits,
    param: str,
) -> User:
    if await users.by_email(step.conn, email) is not None:
        what = "service account with this name" if kind == Kind.SERVICE else "user with this e-mail address"
        raise Conflict(f"There is a {what} already.", param=param)
    held = bounds_of(User("", email, role, 0, step.now_s, limits=limits)) if step.by_admin else ()
    user = await users.create(
        step.conn, email, role, password_hash, step.now_s, kind=kind, name=name, team_id=team_id, limits=limits, held=held
    )
    await step.record("create", _ENTITY, user.id, None, _shown(user))
    return user


async def _describe(step: Change, user: User, fields: Mapping[str, Any]) -> User:
    limits = edited(user.limits, fields)
    after = replace(user, name=_name(fields["name"]) if "name" in fields else user.name, limits=limits)
    if step.by_admin:
        after = replace(after, held=held_after(after, fields.keys() & _LIMITS))
    elif further := wider(_held_limits(user), user, after):
        raise Forbidden(f"An admin has set this: you may narrow it, not widen it ({further}).")
    if after == user:
        return user
    await users.set_name(step.conn, user.id, after.name)
    await users.set_limits(step.conn, user.id, limits, after.held)
    return await _recorded(step, "update", user)


def _require_password_right(step: Change, user_id: str | None = None) -> None:
    """`user_id`: whose password it is to be; None: a new user's."""
    if user_id is None or not (step.is_self(user_id) and step.actor.login):  # with a key nobody sets their own: who finds it could log in
        step.require_admin()
        step.require_whole()


async def _with_password(step: Change, user_id: str) -> User:
    user = await step.seen(user_id)
    if user.is_service:
        raise Conflict("A service account never logs in: it has keys.")
    return user


def _held_limits(user: User) -> list[str]:
    return [name for name in user.held if name in _LIMITS]


async def _set_role(step: Change, user: User, role: Role | str) -> User:
    wanted = _grantable(step, role)
    if user.role == wanted:
        return user
    if user.is_service:
        _check_service_role(wanted)
    await _keep_an_admin(step, user)
    await users.set_role(step.conn, user.id, wanted)
    if wanted not in MANAGEABLE and user.role != Role.ADMIN:  # raised
        await users.end_logins(step.conn, user.id)
        await tokens.revoke_user(step.conn, user.id)
        if user.role in MANAGEABLE:  # their manager may have set their password, with a link that was meant for them
            await users.forget_password(step.conn, user.id)
    return await _recorded(step, "set_role", user)


async def _set_team(step: Change, user: User, team: str | None) -> User:
    step.require_admin()
    team_id = None if team is None else await _team_for(step, team)
    if user.team_id == team_id:
        return user
    await users.set_team(step.conn, user.id, team_id)
    return await _recorded(step, "set_team", user)


async def _set_disabled(step: Change, user: User, disabled: bool) -> User:
    was_held = DISABLED in user.held
    held = disabled and (step.by_admin or was_held)
    if (user.enabled, was_held) == (not disabled, held):
        return user
    if was_held and not step.by_admin:
        raise Forbidden("An admin has disabled this user: only an admin enables them again.")
    if disabled:
        await _keep_an_admin(step, user)
        await tokens.revoke_user(step.conn, user.id)
    elif not user.is_service:
        step.require_whole()
    names = {*user.held, DISABLED} if held else {*user.held} - {DISABLED}
    await users.set_disabled(step.conn, user.id, (user.disabled_at or step.now_s) if disabled else None, tuple(sorted(names)))
    return await _recorded(step, "disable" if disabled else "enable", user)


async def _recorded(step: Change, action: str, before: User) -> User:
    after = await users.by_id(step.conn, before.id)
    assert after is not None
    await step.record(action, _ENTITY, before.id, _shown(before), _shown(after))
    return after


async def _keep_an_admin(step: Change, user: User) -> None:
    """Refuse to take away the last enabled admin. A service is none that anybody could log in as."""
    if user.role == Role.ADMIN and user.enabled and not user.is_service and await users.count_admins(step.conn) == 1:
        raise Conflict("This is the last enabled admin: make another one first.")


def _grantable(step: Change, role: Role | str) -> Role:
    """The role, if the actor may give it. Raises `Forbidden`, `InvalidRequest`."""
    step.require_manager()
    try:
        wanted = Role(role)
    except ValueError:
        raise InvalidRequest(f"A role is one of {', '.join(Role)}.", param="role") from None
    if not step.by_admin and wanted not in MANAGEABLE:
        raise Forbidden(f"A manager may give the roles {' and '.join(sorted(MANAGEABLE))} only.")
    if wanted not in MANAGEABLE:
        step.require_whole()
    return wanted


async def _team_for(step: Change, team: str | None) -> str | None:
    """The id of the team with this id or name. A manager has one team, and knows of no other."""
    if team is None:
        return step.team_id or None
    found = await teams.by_id(step.conn, team) or await teams.by_name(step.conn, team)
    if found is None or not (step.by_admin or found.id == step.team_id):
        raise NotFound("There is no such team.", param="team")
    return found.id


def _check_service_role(role: Role) -> None:
    if role == Role.MANAGER:
        raise InvalidRequest("A service account cannot be a manager: teams are managed with a login, never with a key.", param="role")


def _name(name: str | None) -> str | None:
    name = (name or "").strip()
    if len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest(f"A name has at most {_MAX_NAME_CHARS} printable characters.", param="name")
    return name or None


def _shown(user: User) -> dict[str, Any]:
    """What is not set is left out."""
    more = {"kind": user.kind.value if user.is_service else None, "name": user.name, "team": user.team_id}
    shown = {"email": user.email, "role": user.role.value, "enabled": user.enabled}
    held = {"held": list(user.held)} if user.held else {}
    return shown | {name: value for name, value in more.items() if value is not None} | shown_limits(user.limits) | held
