"""An OpenID provider as the gateway sees it: its metadata, its keys, and what it says about somebody who comes back with a code.

    ProviderAway     it cannot be reached, is slow, or answers nonsense: whoever asks may try again (503)
    LoginRefused     it did not vouch for this login, or what it says does not hold; `reason` for the log

Metadata and keys are kept for an hour. They are fetched when they are needed, by one request at a time; a key id that is not known makes
the keys be fetched again, at most every ten seconds. What is kept is a copy: every process of the gateway has its own.

Rules: OpenID Connect Core 1.0 section 3.1.3, RFC 7636 (PKCE), RFC 9207 (who answers), RFC 9700 (OAuth security).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode, urlsplit

from auth.claims import claim_at, role_of
from auth.errors import AuthError, CredentialInvalid, KeyUnknown
from auth.jwks import ALGORITHMS, LEEWAY_S, KeySet
from auth.oidc_config import OidcConfig, is_safe_url
from auth.principal import Role

KEPT_S = 3600.0
AGAIN_S = 10.0  # keys are not fetched more often than this for an unknown key id
REST_S = 2.0  # after a failure nobody asks for this long
AT_ONCE = 32  # logins that wait for the provider, per process
_MAX_AGE_S = 3600.0
_MAX_SUBJECT_CHARS = 255
_MAX_EMAIL_CHARS = 254
_MAX_NAME_CHARS = 200


class ProviderAway(AuthError):
    retry_after_s = 5.0


class LoginRefused(AuthError):
    """`reason`: denied, code, token, nonce, subject, issuer."""


class FetchFailed(Exception):
    """`reason`: one word for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """`content` is what the body says, of any JSON type; None where it is no JSON and the status is not 200."""

    status: int
    content: Any


class Fetches(Protocol):
    """How the provider is asked: `auth.fetch.Fetcher`. Raises `FetchFailed`."""

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer: ...

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is at the provider. `email`: a verified one; `role`: what the provider's claim means here, None where nothing fits."""

    issuer: str
    subject: str
    email: str | None
    name: str | None
    role: Role | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the provider publishes about itself, as far as it is used."""

    authorization_url: str
    token_url: str
    keys_url: str
    userinfo_url: str | None
    algorithms: tuple[str, ...]
    secret_in_body: bool
    names_itself: bool  # it says who it is when it sends the browser back (RFC 9207)


class Provider:
    """One per process. `clock`: Unix seconds."""

    def __init__(self, config: OidcConfig, fetcher: Fetches, *, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self._fetcher = fetcher
        self._clock = clock
        self._metadata: Metadata | None = None
        self._keys: KeySet | None = None
        self._metadata_s = self._keys_s = self._failed_s = float("-inf")  # time.monotonic()
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def authorization_url(self, *, state: str, nonce: str, challenge: str) -> str:
        """Where the browser goes. Raises `ProviderAway`."""
        metadata = await self._known()
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self.config.client_id,
                "redirect_uri": self.config.redirect_url,
                "scope": " ".join(self.config.scopes),
                "state": state,
                "nonce": nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{metadata.authorization_url}{'&' if '?' in metadata.authorization_url else '?'}{query}"

    async def identity(self, *, code: str, verifier: str, nonce: str, said_issuer: str | None) -> Identity:
        """Who the provider says this is. `said_issuer`: `iss` of the answer that the browser brought.

        Raises `LoginRefused`, `ProviderAway`.
        """
        if self._waiting >= AT_ONCE:
            raise ProviderAway("busy")
        self._waiting += 1
        try:
            metadata = await self._known()
            if (said_issuer is not None or metadata.names_itself) and said_issuer != self.config.issuer:
                raise LoginRefused("issuer")
            tokens = await self._exchanged(metadata, code, verifier)
            claims = await self._verified(metadata, tokens["id_token"], nonce)
            return self._identity(claims, await self._more(metadata, claims, tokens))
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        await self._fetcher.close()

    # --- what it publishes ---

    async def _known(self) -> Metadata:
        if self._metadata is not None and time.monotonic() < self._metadata_s + KEPT_S:
            return self._metadata
        async with self._turn:
            if self._metadata is not None and time.monotonic() < self._metadata_s + KEPT_S:
                return self._metadata
            try:
                self._metadata = read_metadata(
                    await self._document(f"{self.config.issuer.rstrip('/')}/.well-known/openid-configuration"), self.config
                )
                self._metadata_s = time.monotonic()
            except ProviderAway:
                if self._metadata is None:  # else what was true an hour ago is the best guess
                    raise
            return self._metadata

    async def _key_set(self, metadata: Metadata, *, newer_than: KeySet | None = None) -> KeySet:
        """The keys; with `newer_than` ones fetched after those, unless that was tried a moment ago."""

        def usable() -> KeySet | None:
            if self._keys is None or time.monotonic() > self._keys_s + KEPT_S:
                return None
            return None if self._keys is newer_than and time.monotonic() > self._keys_s + AGAIN_S else self._keys

        found = usable()
        if found is not None:
            return found
        async with self._turn:
            found = usable()
            if found is not None:
                return found
            try:
                self._keys = KeySet.from_document(await self._document(metadata.keys_url))
            except ValueError:
                raise ProviderAway("garbage") from None
            self._keys_s = time.monotonic()
            return self._keys

    async def _document(self, url: str) -> dict[str, Any]:
        """A JSON object that it publishes. After a failure it is left in peace for a moment: each attempt may take seconds."""
        if time.monotonic() < self._failed_s + REST_S:
            raise ProviderAway("resting")
        try:
            answer = await self._fetcher.get(url)
        except FetchFailed as error:
            self._failed_s = time.monotonic()
            raise ProviderAway(error.reason) from None
        if answer.status != 200 or not isinstance(answer.content, dict):
            self._failed_s = time.monotonic()
            raise ProviderAway("status" if answer.status != 200 else "garbage")
        return answer.content

    # --- what it says about one login ---

    async def _exchanged(self, metadata: Metadata, code: str, verifier: str) -> dict[str, str]:
        """`id_token` and, maybe, `access_token` for the code."""
        config = self.config
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": config.redirect_url, "code_verifier": verifier}
        headers: dict[str, str] = {}
        if not config.client_secret or metadata.secret_in_body:
            form["client_id"] = config.client_id
            form |= {"client_secret": config.client_secret} if config.client_secret else {}
        else:  # RFC 6749 section 2.3.1: both parts are encoded as in a form first
            pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret)}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            answer = await self._fetcher.post(metadata.token_url, form, headers)
        except FetchFailed as error:
            raise ProviderAway(error.reason) from None
        content = answer.content if isinstance(answer.content, dict) else {}
        if answer.status != 200:
            if content.get("error") == "invalid_grant":  # unknown, used or expired code, another verifier
                raise LoginRefused("code")
            raise ProviderAway("client" if content.get("error") in ("invalid_client", "unauthorized_client") else "status")
        if not isinstance(content.get("id_token"), str):
            raise ProviderAway("garbage")
        return {name: content[name] for name in ("id_token", "access_token") if isinstance(content.get(name), str)}

    async def _verified(self, metadata: Metadata, id_token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token that is for us, for this login, and fresh."""
        keys = await self._key_set(metadata)
        try:
            try:
                claims = self._claims(keys, metadata, id_token)
            except KeyUnknown:
                claims = self._claims(await self._key_set(metadata, newer_than=keys), metadata, id_token)
        except CredentialInvalid:
            raise LoginRefused("token") from None
        said = claims.get("nonce")
        if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
            raise LoginRefused("nonce")
        return claims

    def _claims(self, keys: KeySet, metadata: Metadata, id_token: str) -> dict[str, Any]:
        """Raises `CredentialInvalid`."""
        config, now_s = self.config, self._clock()
        claims = keys.verify(id_token, config.issuer, config.client_id, metadata.algorithms, now_s)
        audience, party, issued_at = claims.get("aud"), claims.get("azp"), claims.get("iat")
        several = isinstance(audience, list) and len(audience) > 1
        if (several and party is None) or (party is not None and party != config.client_id):
            raise CredentialInvalid("signature")  # issued to somebody else, who may have passed it on
        if not isinstance(issued_at, int | float) or not -LEEWAY_S <= now_s - issued_at <= _MAX_AGE_S:
            raise CredentialInvalid("expired")
        return claims

    async def _more(self, metadata: Metadata, claims: Mapping[str, Any], tokens: Mapping[str, str]) -> Mapping[str, Any]:
        """What the user-info endpoint adds, where the ID token lacks what we look for: many providers keep it short."""
        role_claim = self.config.role_claim
        complete = "email" in claims and (not role_claim or claim_at(claims, role_claim) is not None)
        if complete or metadata.userinfo_url is None or "access_token" not in tokens:
            return {}
        try:
            answer = await self._fetcher.get(metadata.userinfo_url, {"authorization": f"Bearer {tokens['access_token']}"})
        except FetchFailed as error:
            raise ProviderAway(error.reason) from None
        if answer.status != 200 or not isinstance(answer.content, dict):
            raise ProviderAway("status" if answer.status != 200 else "garbage")
        if answer.content.get("sub") != claims["sub"]:  # Core 5.3.2: else it may be about somebody else
            raise LoginRefused("subject")
        return answer.content

    def _identity(self, claims: Mapping[str, Any], more: Mapping[str, Any]) -> Identity:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARS or not subject.isprintable():
            raise LoginRefused("subject")
        source = claims if "email" in claims else more  # an e-mail counts with the word on it of the same source
        email, verified = source.get("email"), source.get("email_verified")
        trusted = verified is True or verified == "true" or (verified is None and self.config.trust_email)
        if not isinstance(email, str) or not trusted or not 0 < len(email) <= _MAX_EMAIL_CHARS or not _is_plain(email):
            email = None
        name = claims.get("name", more.get("name"))
        shown = name.strip()[:_MAX_NAME_CHARS] if isinstance(name, str) and name.isprintable() else ""
        role = self._role({**more, **claims})
        return Identity(self.config.issuer, subject, email and email.strip().lower(), shown or None, role)

    def _role(self, claims: Mapping[str, Any]) -> Role | None:
        """The highest role that a value of the claim means; else the default."""
        return role_of(claims, self.config.role_claim, self.config.roles, self.config.default_role)


def _is_plain(email: str) -> bool:
    """Printable ASCII. Lowered, other letters may become somebody else's: the Kelvin sign is a "k" then."""
    return email.isascii() and email.isprintable()


def read_metadata(document: Mapping[str, Any], config: OidcConfig) -> Metadata:
    """Raises `ProviderAway`: it is of another issuer, or lacks what we need."""
    if document.get("issuer") != config.issuer:
        raise ProviderAway("issuer")
    url = functools.partial(_url, document, plain_allowed=urlsplit(config.issuer).scheme == "http")
    offered = document.get("id_token_signing_alg_values_supported")
    offered = offered if isinstance(offered, list) else ["RS256"]
    methods = document.get("token_endpoint_auth_methods_supported")
    return Metadata(
        authorization_url=url("authorization_endpoint"),
        token_url=url("token_endpoint"),
        keys_url=url("jwks_uri"),
        userinfo_url=url("userinfo_endpoint") if "userinfo_endpoint" in document else None,
        algorithms=tuple(algorithm for algorithm in ALGORITHMS if algorithm in offered),
        secret_in_body=isinstance(methods, list) and "client_secret_basic" not in methods and "client_secret_post" in methods,
        names_itself=document.get("authorization_response_iss_parameter_supported") is True,
    )


def _url(document: Mapping[str, Any], name: str, *, plain_allowed: bool) -> str:
    found = document.get(name)
    if not isinstance(found, str) or not is_safe_url(found, plain_allowed=plain_allowed) or "#" in found:
        raise ProviderAway("garbage")
    return found
