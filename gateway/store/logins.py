"""The store's side of a login: implements AccountStore and RefreshTokenStore of auth.ports.

Logins, logouts and refresh tokens that come a second time stand in the audit trail; wrong passwords do not: a stranger could fill it.
"""

from __future__ import annotations

import secrets

from sqlalchemy.ext.asyncio import AsyncConnection

from auth.errors import CredentialInvalid
from auth.ports import Account, RefreshGrant
from auth.throttle import customer
from gateway.store import changelog, login_addresses, tokens, trail, users
from gateway.store.engine import Database
from gateway.store.live import user_record


class Accounts:
    """Enabled people, read from the database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def account_by_email(self, email: str, address: str = "") -> Account | None:
        async with self._db.read() as conn:
            return await _account(conn, await users.by_typed_email(conn, email), address)

    async def logged_in_since(self, at: float) -> list[tuple[str, str]]:
        async with self._db.read() as conn:
            return await login_addresses.since(conn, at)

    async def account_by_id(self, user_id: str) -> Account | None:
        async with self._db.read() as conn:
            return await _account(conn, await users.by_id(conn, user_id))

    async def save_rehash(self, user_id: str, old_hash: str, new_hash: str) -> None:
        async with self._db.write() as conn:
            await users.replace_hash(conn, user_id, old_hash, new_hash)


class RefreshTokens:
    """Refresh tokens; every call is one transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, digest: bytes, grant: RefreshGrant, now_s: float, expires_at: float, address: str = "") -> None:
        async with self._db.write() as conn:
            await changelog.lock(conn)  # before any row: changes take it first too, and then never wait for us while we wait for them
            await _add(conn, digest, secrets.token_hex(16), grant, began_at=now_s, expires_at=expires_at)
            await users.set_last_login(conn, grant.user_id, now_s)
            if address:
                await login_addresses.put(conn, grant.user_id, customer(address), now_s)
            await _record(conn, "login", grant.user_id, address, now_s)

    async def rotate(
        self, old: bytes, new: bytes, now_s: float, expires_at: float, address: str = "", *, login_lifetime_s: float
    ) -> RefreshGrant:
        async with self._db.read() as conn:  # anybody may try: only a token that exists is worth a writing transaction
            if await tokens.find(conn, old) is None:
                raise CredentialInvalid("unknown")
        async with self._db.write() as conn:
            await changelog.lock(conn)
            row = await tokens.find(conn, old)
            if row is None:
                raise CredentialInvalid("unknown")
            ends_at = row.began_at + login_lifetime_s
            if min(row.expires_at, ends_at) <= now_s:
                raise CredentialInvalid("expired")
            if await tokens.use(conn, old, now_s):
                grant = RefreshGrant(row.user_id, row.token_epoch)
                await _add(conn, new, row.family, grant, began_at=row.began_at, expires_at=min(expires_at, ends_at))
                return grant
            await tokens.revoke_family(conn, row.family)
            await _record(conn, "refresh_reused", row.user_id, address, now_s)
        raise CredentialInvalid("reused")  # after the block: raising inside would take the revocation back

    async def revoke(self, digest: bytes) -> None:
        await self._end(digest)

    async def end(self, digest: bytes, now_s: float, address: str = "") -> None:
        await self._end(digest, (now_s, address))

    async def _end(self, digest: bytes, logout: tuple[float, str] | None = None) -> None:
        """`logout`: when and from where, recorded if the login was going on: one entry for a login, however often its tokens come."""
        async with self._db.read() as conn:
            if await tokens.find(conn, digest) is None:
                return
        async with self._db.write() as conn:
            await changelog.lock(conn)  # a refresh under way puts its successor in place before or after this, not beside it
            row = await tokens.find(conn, digest)
            if row is None:
                return
            if logout is not None and await tokens.is_live(conn, row.family, logout[0]):
                await _record(conn, "logout", row.user_id, logout[1], logout[0])
            await tokens.revoke_family(conn, row.family)


async def _add(conn: AsyncConnection, digest: bytes, family: str, grant: RefreshGrant, *, began_at: float, expires_at: float) -> None:
    await tokens.add(
        conn, digest, family=family, user_id=grant.user_id, token_epoch=grant.token_epoch, began_at=began_at, expires_at=expires_at
    )


async def _account(conn: AsyncConnection, user: users.User | None, address: str = "") -> Account | None:
    """Asks as many questions for somebody who does not exist: how long it takes says nothing."""
    user_id = user.id if user is not None else ""
    known = await login_addresses.has(conn, user_id, address)
    stored = await users.password_hash(conn, user_id)
    if user is None or not user.enabled or user.is_service:
        return None
    return Account(user_record(user), stored, known)


async def _record(conn: AsyncConnection, action: str, user_id: str, address: str, now_s: float) -> None:
    await trail.append(
        conn, at=now_s, actor_user_id=user_id, via="api", address=address or None, action=action, entity="user", entity_id=user_id
    )
