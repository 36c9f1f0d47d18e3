"""One-time links for passwords: whoever may change a user issues one, the user sets a password with it. Nobody else ever knows it.

A link is good once, for a day, and only while the user is what they were when it was issued: a role, a team, a password or an end of all
logins that came after makes it void. Else the manager who made a link for a member could use it on the admin that the member has become.
Nor does it outlive the right of who issued it: they are judged again when it is used, as if they issued it then, with the same credential.
The end of all their logins, or a rotation of the key that they used, ends it too: it may have been somebody else who had that credential.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field

from auth.throttle import customer
from gateway.changes.actor import EXTERNAL, Actor, Change, change, rights_of
from gateway.errors import Conflict, InvalidRequest
from gateway.store import keys, login_addresses, password_links, tokens, users
from gateway.store.engine import Connection, Database
from gateway.store.generation import Generation
from gateway.store.password_links import Issuer
from gateway.store.users import User

LIFETIME_S = 86_400.0
_ENTITY = "user"
_VOID = "This link is not valid any more: ask for a new one."


@dataclass(frozen=True, slots=True)
class PasswordLink:
    """A link just issued. `token` is shown once and stored nowhere; `expires_at`: Unix seconds."""

    user: User
    token: str = field(repr=False)
    expires_at: float


async def issue_password_link(db: Database, generation: Generation, actor: Actor, user_id: str) -> PasswordLink:
    """A new link for this user; the one before it is void. The present password goes on until the link is used."""
    async with change(db, generation, actor) as step:
        user = await step.managed(user_id)
        step.require_whole()
        if user.is_service:
            raise Conflict("A service has no password: give it a key.")
        if not user.enabled:
            raise Conflict("This user is disabled: enable them first.")
        issuer, expires_at = await _issuer(step)
        link = PasswordLink(user, f"{user.id}.{secrets.token_urlsafe(32)}", expires_at)
        await password_links.put(step.conn, _digest(user, link.token), user.id, step.now_s, link.expires_at, issuer)
        await step.record("password_link", _ENTITY, user.id, None, {"expires_at": link.expires_at}, log=False)
        return link


async def password_link_user(db: Database, token: str) -> User:
    """Whose link this is. Raises `InvalidRequest` for one that is void, unknown or used."""
    async with db.read() as conn:
        return await _user(conn, token, time.time())


async def use_password_link(db: Database, generation: Generation, *, token: str, password_hash: str, address: str | None = None) -> User:
    """Set the password and use the link up; every login of this user ends. The address is known from now on.

    Of several at once one succeeds. Raises `InvalidRequest` as `password_link_user` does.
    """
    actor = Actor(token.partition(".")[0], "api", address)
    async with change(db, generation, actor) as step:
        user = await _user(step.conn, token, step.now_s)
        await password_links.delete_of(step.conn, user.id)
        await users.set_password(step.conn, user.id, password_hash)
        await tokens.revoke_user(step.conn, user.id)
        if address:
            await login_addresses.put(step.conn, user.id, customer(address), step.now_s)
        await step.record("use_password_link", _ENTITY, user.id)
        return user


async def _user(conn: Connection, token: str, now_s: float) -> User:
    user = await users.by_id(conn, token.partition(".")[0])
    if user is None or not user.enabled or user.is_service:
        raise InvalidRequest(_VOID, param="token")
    issuer = await password_links.issuer_of(conn, _digest(user, token), user.id, now_s)
    if issuer is None or not await _stands(conn, issuer, user, now_s):
        raise InvalidRequest(_VOID, param="token")
    return user


async def _issuer(step: Change) -> tuple[Issuer, float]:
    """(Who issues a link now, when it ends at the latest.)

    A key that is being rotated has an older text, which may be the one that somebody found: nobody knows which was used.
    """
    user_id, key_id, expires_at = step.actor.user_id, step.actor.key_id, step.now_s + LIFETIME_S
    user = None if user_id is None else await users.by_id(step.conn, user_id)
    if key_id is not None:
        expires_at = min(expires_at, await keys.grace_end(step.conn, key_id, step.now_s) or expires_at)
    return Issuer(user_id, key_id, None if user is None else user.token_epoch), expires_at


async def _stands(conn: Connection, issuer: Issuer, user: User, now_s: float) -> bool:
    """May who issued the link still do so?"""
    if issuer.user_id is None:  # whoever holds the machine
        return True
    if issuer.user_id.startswith(EXTERNAL):  # they have no row here: what their token said then is all that is known
        return True
    actor = Actor(issuer.user_id, "api", login=issuer.key_id is None, key_id=issuer.key_id, epoch=issuer.epoch)
    rights = await rights_of(conn, actor, now_s)
    return rights.whole and rights.manages(user)


def _digest(user: User, token: str) -> bytes:
    """What is stored: of the secret (256 random bits) and of what the user is now."""
    state = "\n".join((token, user.id, user.role.value, user.team_id or "", str(user.token_epoch)))
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).digest()
