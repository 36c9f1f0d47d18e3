"""What auth offers the gateway, and what it needs from storage: the gateway's store implements it; auth never sees SQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from auth.credential import Shown
from auth.principal import Principal, Role


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One live API key. Times are Unix seconds; None = never. `principal` is prebuilt: look-ups construct nothing."""

    key_id: str
    digest: bytes  # SHA-256 of the whole key text, 32 bytes
    principal: Principal
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One enabled user. `principal` is what a login token of this user stands for."""

    user_id: str
    email: str
    role: Role
    principal: Principal
    token_epoch: int = 0  # a login token issued under an older epoch is refused (password reset, disabled and back)


@dataclass(frozen=True, slots=True)
class Account:
    """What a login needs to know of an enabled person. `password_hash` None: no password is set.

    `known`: this user has logged in before from the address that was asked about.
    """

    user: UserRecord
    password_hash: str | None
    known: bool = False


@dataclass(frozen=True, slots=True)
class RefreshGrant:
    """Whom a refresh token was issued to, and under which epoch."""

    user_id: str
    token_epoch: int


class Authenticates(Protocol):
    """The seam of authentication: `auth.authenticator.Authenticator`, or a benchmark's open door."""

    def authenticate(self, credential: bytes, now_s: float, shown: Shown | None = None) -> Principal:
        """Who this credential is. `shown`: what the same connection showed before. `AuthError` where nobody is known by it."""


class TokensOfOthers(Protocol):
    """Tokens that trusted issuers have signed: `auth.issuers.TrustedIssuers`."""

    def principal(self, token: str, now_s: float) -> Principal:
        """Who it stands for. `AuthError` where it is not valid, or nobody can say."""


class CredentialStore(Protocol):
    """Synchronous look-ups in process tables. They answer from memory; a change replaces records, it never edits them."""

    @property
    def away(self) -> bool:
        """Is what the tables are made from out of reach? Whom they do not know may then be new. Asked about the unknown alone."""

    @property
    def behind(self) -> bool:
        """Is there a change that the tables do not hold yet? Over within 50 ms. Asked about the unknown alone."""

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        """The key with this SHA-256, if it is not revoked and its owner is enabled. Expiry is the caller's to check."""

    def key_refusal(self, digest: bytes) -> str:
        """Why `key_by_digest` has none, for the log: revoked, disabled (its owner), unknown."""

    def user_by_id(self, user_id: str) -> UserRecord | None:
        """The user, if enabled."""


class AccountStore(Protocol):
    """People as a login sees them (services never log in): read from the database, not from process tables."""

    async def account_by_email(self, email: str, address: str = "") -> Account | None:
        """The enabled person with this e-mail (any case, spaces around it ignored). `address`: as `auth.throttle.customer` has it."""

    async def logged_in_since(self, at: float) -> Iterable[tuple[str, str]]:
        """(e-mail in lower case, address as above) of each login since `at`, Unix seconds, as far as it is remembered."""

    async def account_by_id(self, user_id: str) -> Account | None:
        """The person, if enabled."""

    async def save_rehash(self, user_id: str, old_hash: str, new_hash: str) -> None:
        """Replace a hash by one of the same password with newer parameters, unless the password was changed meanwhile."""


class RefreshTokenStore(Protocol):
    """Refresh tokens by their SHA-256. Each call is one transaction. Times are Unix seconds."""

    async def add(self, digest: bytes, grant: RefreshGrant, now_s: float, expires_at: float, address: str = "") -> None:
        """The first token of a new family: a login, from `address` (in full), whose customer is known from now on; "": not known whence."""

    async def rotate(
        self, old: bytes, new: bytes, now_s: float, expires_at: float, address: str = "", *, login_lifetime_s: float
    ) -> RefreshGrant:
        """Use up `old` and put `new` in its place; none lives longer than `login_lifetime_s` after the login, whatever `expires_at` says.

        Raises `CredentialInvalid`: unknown, expired, or reused - then the family is revoked.
        """

    async def revoke(self, digest: bytes) -> None:
        """Revoke the family of this token; nothing if it is unknown."""

    async def end(self, digest: bytes, now_s: float, address: str = "") -> None:
        """The same, by whom the login is: a logout from `address`. Kept on record where a login ended by it that was going on."""
