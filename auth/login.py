"""Logging in with a password, and staying logged in with refresh tokens.

A refresh token is 256 random bits, stored as its SHA-256, good for one use: each use puts a new one in its place. One that is used
a second time was copied, so all that descend from the same login are revoked. However often it is renewed, a login ends
`login_lifetime_s` after it began: who has a token that the owner never misses does not keep it for ever.

Wrong passwords make the next ones wait (`auth.throttle`), and what is worth a look goes in two queues (`auth.turns`): an address from which
this user has logged in before goes ahead of strangers, and waits for none of them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from auth.errors import CredentialInvalid, HasherBusy, LoginFailed
from auth.known import Known
from auth.passwords import Passwords
from auth.ports import Account, AccountStore, RefreshGrant, RefreshTokenStore, UserRecord
from auth.throttle import Attempt, Throttle, customer
from auth.tokens import AccessTokens

REFRESH_LIFETIME_S = 30 * 86_400  # of one that is not used
LOGIN_LIFETIME_S = 90 * 86_400  # of all that descend from one login
_MAX_EMAIL_CHARS = 254
_MAX_ASKING = 4  # more would keep others from the database's few connections


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The answer to a login or a refresh. Neither text is ever shown in a repr."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in_s: int
    user: UserRecord


class Login:
    """`clock`: Unix seconds."""

    def __init__(
        self,
        accounts: AccountStore,
        refresh_tokens: RefreshTokenStore,
        passwords: Passwords,
        tokens: AccessTokens,
        throttle: Throttle | None = None,
        *,
        refresh_lifetime_s: float = REFRESH_LIFETIME_S,
        login_lifetime_s: float = LOGIN_LIFETIME_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._accounts = accounts
        self._refresh_tokens = refresh_tokens
        self._passwords = passwords
        self._tokens = tokens
        self._throttle = throttle or Throttle(clock=clock)
        self._known = Known(accounts, clock)
        self._asking = 0  # strangers about whom the database is being asked
        self._refresh_lifetime_s = min(refresh_lifetime_s, login_lifetime_s)
        self._login_lifetime_s = login_lifetime_s
        self._clock = clock

    async def login(self, email: str, password: str, address: str = "") -> TokenPair:
        """`address`: of the client, in its normal form; "": not known.

        Raises `LoginFailed` (unknown, disabled or wrong password: as long, and not told apart), `LoginDelayed` and `HasherBusy`.
        """
        self._tokens.require()
        account = await self.prove(email, password, address)
        return await self.open(account.user, address)

    async def prove(self, email: str, password: str, address: str = "") -> Account:
        """Whose e-mail and password these are; a hash with old parameters is replaced. Raises as `login` does."""
        name, where = email.strip().lower()[:_MAX_EMAIL_CHARS], customer(address)
        self._throttle.refuse_early(name, where)
        await self._known.follow()
        account, attempt = await self._admit(email, name, where)
        stored = account.password_hash if account else None
        try:
            matches, newer = await self._passwords.verify(password, stored, ahead=attempt.known)
        except BaseException:  # also a client that has gone
            self._throttle.withdrawn(attempt)
            raise
        if account is None or stored is None or not matches:
            raise LoginFailed("unknown" if account is None else "password")
        self._throttle.succeeded(attempt)
        if newer is not None:
            await self._accounts.save_rehash(account.user.user_id, stored, newer)
        return account

    async def _admit(self, email: str, name: str, where: str) -> tuple[Account | None, Attempt]:
        """The account, and an attempt that counts. Strangers are judged before the database is asked: a flood of them must cost little."""
        attempt = None
        if (name, where) not in self._known:
            if self._asking >= _MAX_ASKING:
                raise HasherBusy
            self._passwords.require_room()
            attempt = self._throttle.enter(name, where, known=False)
        self._asking += attempt is not None
        try:
            account = await self._accounts.account_by_email(email, where) if len(email) <= _MAX_EMAIL_CHARS else None
        except BaseException:
            if attempt is not None:
                self._throttle.withdrawn(attempt)
            raise
        finally:
            self._asking -= attempt is not None
        known = account is not None and account.known
        if attempt is None or known != attempt.known:
            if attempt is not None:  # known after all, from a login that had not come round to here
                self._throttle.withdrawn(attempt)
            attempt = self._throttle.enter(name, where, known=known)
        return account, attempt

    async def knows(self, email: str, address: str) -> bool:
        """Has the user with this e-mail logged in from this address before?"""
        await self._known.follow()
        where = customer(address)
        if (email.strip().lower(), where) not in self._known:
            return False
        account = await self._accounts.account_by_email(email, where)
        return account is not None and account.known

    async def open(self, user: UserRecord, address: str = "") -> TokenPair:
        """A new login of somebody who has proven who they are. The address counts as known from now on. Raises `SigningAway`."""
        self._tokens.require()
        now_s, text = self._clock(), _mint()
        grant = RefreshGrant(user.user_id, user.token_epoch)
        await self._refresh_tokens.add(_digest(text), grant, now_s, now_s + self._refresh_lifetime_s, address)
        if address:  # one that is not known is everybody's
            self._known.add(user.email, customer(address))
        return self._pair(user, text, now_s)

    async def refresh(self, refresh_token: str, address: str = "") -> TokenPair:
        """Exchange a refresh token for a new pair. Raises `SigningAway`, `CredentialInvalid`: unknown, expired, reused, disabled."""
        self._tokens.require()  # first: the old token must stay good where no new one can be issued
        now_s, text = self._clock(), _mint()
        expires_at = now_s + self._refresh_lifetime_s
        grant = await self._refresh_tokens.rotate(
            _digest(refresh_token), _digest(text), now_s, expires_at, address, login_lifetime_s=self._login_lifetime_s
        )
        account = await self._accounts.account_by_id(grant.user_id)
        if account is None or account.user.token_epoch != grant.token_epoch:
            await self._refresh_tokens.revoke(_digest(text))
            raise CredentialInvalid("disabled" if account is None else "revoked")
        return self._pair(account.user, text, now_s)

    async def logout(self, refresh_token: str, address: str = "") -> None:
        """Revoke the refresh token and all that descend from the same login. An access token runs out by itself."""
        await self._refresh_tokens.end(_digest(refresh_token), self._clock(), address)

    def _pair(self, user: UserRecord, refresh_token: str, now_s: float) -> TokenPair:
        return TokenPair(self._tokens.issue(user, now_s), refresh_token, self._tokens.lifetime_s, user)


def _mint() -> str:
    return secrets.token_urlsafe(32)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
