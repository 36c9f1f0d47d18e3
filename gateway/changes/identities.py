"""Changes that a login through an OpenID provider makes: a new user, an identity of a user, a role that the provider changed.

A role is taken from the provider when a user is made, and again when what the provider says has changed since the last login: what admins
set here in between stays. Being linked changes no role, nor does the first role that the provider gives who was linked without.
"""

from __future__ import annotations

import time
from typing import Any

from auth.principal import Role
from auth.provider import Identity
from gateway.changes.actor import MANAGEABLE, Actor, Change, change
from gateway.changes.users import new_user
from gateway.errors import Forbidden, InvalidRequest
from gateway.store import identities, login_codes, tokens, users
from gateway.store.engine import Connection, Database
from gateway.store.generation import Generation
from gateway.store.identities import KnownIdentity
from gateway.store.login_codes import LoginCode
from gateway.store.users import User

_DISABLED = "This account is disabled."
_NO_ROLE = "The provider gives you no role here: ask whoever runs this gateway."
_NO_EMAIL = "The provider does not vouch for an e-mail address of yours."
_TAKEN = "There is another account with your e-mail address: ask whoever runs this gateway."


async def admit_identity(db: Database, generation: Generation, actor: Actor, identity: Identity, *, link_by_email: bool) -> User:
    """The enabled user that this identity stands for, made or linked if need be. Raises `Forbidden` with a reason for the person.

    The provider has proven who it is: the actor needs no rights.
    """
    async with db.read() as conn:  # the usual login changes nothing: it need not wait for other changes
        known = await identities.find(conn, identity.issuer, identity.subject)
        if known is not None and known.role == identity.role:
            return await _enabled(conn, known.user_id)
    async with change(db, generation, actor) as step:
        known = await identities.find(step.conn, identity.issuer, identity.subject)
        if known is not None:
            refused, user = await _carried_over(step, known, identity)
        else:
            refused, user = "", await _newcomer(step, identity, link_by_email=link_by_email)
    if refused:  # after the block: raising inside would take back what was recorded
        raise Forbidden(refused)
    return user


async def issue_login_code(db: Database, code: LoginCode, lifetime_s: float) -> str:
    """The text of a code that whoever knows the verifier of its challenge can exchange, once."""
    now_s = time.time()
    async with db.write() as conn:
        return await login_codes.add(conn, code, now_s, now_s + lifetime_s)


async def take_login_code(db: Database, text: str) -> LoginCode | None:
    """Use it up, whatever becomes of it."""
    async with db.read() as conn:  # anybody may try: only a code that exists is worth a writing transaction
        if not await login_codes.exists(conn, text):
            return None
    async with db.write() as conn:
        return await login_codes.take(conn, text, time.time())


async def _carried_over(step: Change, known: KnownIdentity, identity: Identity) -> tuple[str, User]:
    """(why the login is refused nevertheless, the user). A role that the provider has changed is changed here."""
    user = await _enabled(step.conn, known.user_id)
    if identity.role == known.role:
        return "", user
    if identity.role is None:  # all that gave a role is gone there
        await _end_logins(step, user)
        await step.record("refuse_identity", "user", user.id, _shown(user), _shown(user))
        return _NO_ROLE, user
    await identities.set_role(step.conn, identity.issuer, identity.subject, identity.role)
    last = user.role == Role.ADMIN and await users.count_admins(step.conn) == 1  # without an admin nobody could make one
    if known.role is None or identity.role == user.role or last:
        return "", user
    await users.set_role(step.conn, user.id, identity.role)
    await _end_logins(step, user)
    if user.role in MANAGEABLE and identity.role not in MANAGEABLE:  # as in changes.users: a manager may know it
        await users.forget_password(step.conn, user.id)
    changed = await _enabled(step.conn, user.id)
    await step.record("set_role", "user", user.id, _shown(user), _shown(changed) | {"issuer": identity.issuer})
    return "", changed


async def _end_logins(step: Change, user: User) -> None:
    """Those so far: who could have begun them was judged by what the provider said then."""
    await users.end_logins(step.conn, user.id)
    await tokens.revoke_user(step.conn, user.id)


async def _newcomer(step: Change, identity: Identity, *, link_by_email: bool) -> User:
    if identity.email is None:
        raise Forbidden(_NO_EMAIL)
    user = await users.by_email(step.conn, identity.email)
    if user is not None:
        # An address that was given to somebody else meanwhile must not open the account of who had it before.
        if not link_by_email or user.is_service or await identities.has_one(step.conn, identity.issuer, user.id):
            raise Forbidden(_TAKEN)
        if not user.enabled:
            raise Forbidden(_DISABLED)
    elif identity.role is None:
        raise Forbidden(_NO_ROLE)
    else:
        try:
            user = await new_user(step, identity.email, identity.role, name=identity.name)
        except InvalidRequest:  # no e-mail address, or that of a service account
            raise Forbidden(_NO_EMAIL) from None
    await identities.add(step.conn, identity.issuer, identity.subject, user.id, identity.role, step.now_s)
    after = {"email": user.email, "issuer": identity.issuer, "subject": identity.subject}
    await step.record("link_identity", "user", user.id, None, after, log=False)
    return user


async def _enabled(conn: Connection, user_id: str) -> User:
    user = await users.by_id(conn, user_id)
    if user is None or not user.enabled or user.is_service:
        raise Forbidden(_DISABLED)
    return user


def _shown(user: User) -> dict[str, Any]:
    return {"email": user.email, "role": user.role.value, "enabled": user.enabled}
