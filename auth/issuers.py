"""Tokens of issuers that the gateway's operator trusts: who they are for, what they may do here, and the keys that they are checked with.

Nothing of a token is kept: each one is verified each time, by the keys of the issuer that it names and by no others. Keys are fetched
beside the requests, never by one: when the process starts, every five minutes, and soon after a key id came that is not known.
While an issuer cannot be reached its last keys stay good for a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from auth.errors import CredentialInvalid, KeyUnknown, StoreAway
from auth.jwks import KeySet
from auth.oidc_config import is_safe_url
from auth.principal import Limited, Principal
from auth.provider import Answer, FetchFailed
from auth.tokens import MAX_TOKEN_CHARS, head_of, unverified_issuer
from auth.trusted import TrustedIssuer

PERIOD_S = 300.0
AGAIN_S = 10.0  # nobody makes us ask an issuer more often than this
STALE_S = 86_400.0
USER_PREFIX = "ext_"
_MAX_SUBJECT_CHARS = 255
# RFC 8725, 3.11: tokens of an issuer that mean something else (a log-out, a security event) say so here.
_TYPES = frozenset(("jwt", "at+jwt", "application/at+jwt"))


class Gets(Protocol):
    """`auth.fetch.Fetcher`."""

    async def get(self, url: str) -> Answer: ...


class IssuerKeys:
    """The keys of one issuer, as they were last seen. `monotonic`: seconds."""

    def __init__(self, trusted: TrustedIssuer, fetcher: Gets, monotonic: Callable[[], float]) -> None:
        self.trusted = trusted
        self._fetcher = fetcher
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._fetched_s = 0.0
        self._wanted = asyncio.Event()

    @property
    def keys(self) -> KeySet | None:
        """None: they have never been seen, or too long ago."""
        return self._keys if self._keys is not None and self._monotonic() < self._fetched_s + STALE_S else None

    def want(self) -> None:
        """Somebody came with a key that is not among them."""
        self._wanted.set()

    async def fetch(self) -> None:
        """Raises `FetchFailed` (the word for the log), and the keys stay as they are."""
        trusted = self.trusted
        url = trusted.jwks_url or self._published(await self._document(trusted.discovery_url))
        try:
            self._keys = KeySet.from_document(await self._document(url))
        except ValueError:
            raise FetchFailed("keys") from None
        self._fetched_s = self._monotonic()

    async def follow(self, failed: Callable[[str, str], None], again_s: float) -> None:
        """Keep them up to date. Runs until cancelled. `failed` is told (issuer, word) of what went wrong."""
        while True:
            fine = await self.try_fetch(failed)
            await asyncio.sleep(again_s)
            if fine:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(PERIOD_S - again_s, 0)):
                        await self._wanted.wait()
            self._wanted.clear()

    async def try_fetch(self, failed: Callable[[str, str], None]) -> bool:
        try:
            await self.fetch()
        except FetchFailed as error:
            failed(self.trusted.issuer, error.reason)
            return False
        return True

    def _published(self, metadata: Mapping[str, Any]) -> str:
        """Where its metadata (OpenID Connect Discovery 1.0) says that its keys are."""
        if metadata.get("issuer") != self.trusted.issuer:
            raise FetchFailed("issuer")
        url = metadata.get("jwks_uri")
        if not isinstance(url, str) or not is_safe_url(url, plain_allowed=self.trusted.issuer.startswith("http:")):
            raise FetchFailed("garbage")
        return url

    async def _document(self, url: str) -> Mapping[str, Any]:
        answer = await self._fetcher.get(url)
        if answer.status != 200:
            raise FetchFailed("status")
        if not isinstance(answer.content, dict):
            raise FetchFailed("garbage")
        return answer.content


class TrustedIssuers:
    """Implements `auth.ports.TokensOfOthers`. `failed` is told (issuer, word) where keys could not be fetched."""

    def __init__(
        self,
        trusted: Sequence[TrustedIssuer],
        fetcher: Gets,
        failed: Callable[[str, str], None],
        *,
        again_s: float = AGAIN_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = {each.issuer: IssuerKeys(each, fetcher, monotonic) for each in trusted}
        self._failed = failed
        self._again_s = again_s

    def principal(self, token: str, now_s: float) -> Principal:
        """Who a token stands for. Raises `CredentialInvalid`; `StoreAway` while the keys of its issuer are not known."""
        head = head_of(token, MAX_TOKEN_CHARS)
        kind = head.get("typ", "jwt")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise CredentialInvalid("malformed")
        issuer = self._issuers.get(unverified_issuer(token))  # which keys may verify it; they then say whether it is true
        if issuer is None:
            raise CredentialInvalid("signature")
        keys, trusted = issuer.keys, issuer.trusted
        if keys is None:
            raise StoreAway
        try:
            claims = keys.verify(token, trusted.issuer, trusted.audiences, trusted.algorithms, now_s)
        except KeyUnknown:
            issuer.want()
            raise
        return _principal(trusted, claims)

    async def start(self, within_s: float) -> None:
        """Fetch all keys once, for as long as `within_s`: what is not there by then is fetched by `follow`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(issuer.try_fetch(self._failed) for issuer in self._issuers.values()))

    async def follow(self) -> None:
        """Keep the keys of all up to date. Runs until cancelled."""
        await asyncio.gather(*(issuer.follow(self._failed, self._again_s) for issuer in self._issuers.values()))


def user_id(issuer: str, subject: str) -> str:
    """How somebody of another issuer is called here, in records and limits."""
    return USER_PREFIX + hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:32]


def _principal(trusted: TrustedIssuer, claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if len(subject) > _MAX_SUBJECT_CHARS or not subject.isprintable():
        raise CredentialInvalid("malformed")
    role = trusted.role_of(claims)
    if role is None:
        raise CredentialInvalid("role")
    name = user_id(trusted.issuer, subject)
    return Principal(
        user_id=name,
        role=role,
        scopes=role.scopes,
        models=trusted.models,
        limits=trusted.limits,
        limit_id=name,
        callers=(Limited(f"user:{name}", trusted.limits),) if trusted.limits.limited else (),
        _allows=trusted.allows,
    )
