"""Login tokens (JWT), and the only module that imports jose.

jose accepts forged tokens when it may choose: how to check, with what, or what is in the token. So nothing is left to it but one signature
at a time: a `VerifyingKey` is built once, for one algorithm; the `kid` in a token's header picks it, and its algorithm must be the key's;
claims are then checked here, each one that must be there by name. A token must carry exp, iat, sub, aud, iss and jti.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jose import jwk, jws
from jose.backends.base import Key
from jose.exceptions import JOSEError

from auth.errors import CredentialInvalid, SigningAway
from auth.ports import UserRecord
from auth.signing import PublicKey, SigningKey, public_jwk

ACCESS_LIFETIME_S = 900
ACTIVATION_S = 5.0  # a new key signs only when every process on every host has had the time to read it; until then the one before it does
_HOSTS_DIFFER_S = 60.0  # the clocks of two hosts of one gateway, for `iat` alone: `exp` is exact
MAX_TOKEN_CHARS = 16_384  # of another issuer: with the groups of a large directory in it
_MAX_TOKEN_CHARS = 4096
# Strict: jose's base64 skips characters that do not belong there, and would raise errors of other kinds than its own over text.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid access token says. Times are Unix seconds. Role and scopes are not in it: they are looked up, live."""

    user_id: str
    token_epoch: int
    token_id: str
    issued_at: int
    expires_at: int


class VerifyingKey:
    """One key and the one algorithm that it verifies with. `material`: a secret, or a public key."""

    __slots__ = ("_key", "algorithm")

    def __init__(self, material: bytes | PublicKey, algorithm: str) -> None:
        self.algorithm = algorithm
        self._key = _prepared(material, algorithm)

    def claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that this key has signed. Raises `CredentialInvalid`: signature, malformed. No claim is checked."""
        try:
            claims = json.loads(jws.verify(token, self._key, algorithms=[self.algorithm]))
        except JOSEError:
            raise CredentialInvalid("signature") from None
        except (ValueError, RecursionError):
            raise CredentialInvalid("malformed") from None
        if not isinstance(claims, dict):
            raise CredentialInvalid("malformed")
        return claims


def head_of(token: str, max_chars: int = _MAX_TOKEN_CHARS) -> dict[str, Any]:
    """The header of a token, which nobody vouches for. Raises `CredentialInvalid`: malformed."""
    if len(token) > max_chars or not _SHAPE.fullmatch(token):
        raise CredentialInvalid("malformed")
    try:
        head = jws.get_unverified_header(token)
    except (JOSEError, RecursionError):
        raise CredentialInvalid("malformed") from None
    if "crit" in head:  # RFC 7515, 4.1.11: what it names must be understood, and we understand none
        raise CredentialInvalid("malformed")
    return head


def unverified_issuer(token: str) -> str:
    """Who a token says it is from, which nobody vouches for: to choose whose keys may verify it. Raises `CredentialInvalid`: malformed."""
    try:
        claims = json.loads(jws.get_unverified_claims(token))
    except (JOSEError, ValueError, RecursionError):
        raise CredentialInvalid("malformed") from None
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    if not isinstance(issuer, str):
        raise CredentialInvalid("malformed")
    return issuer


def check_claims(
    claims: Mapping[str, Any], issuer: str, audiences: Collection[str], now_s: float, leeway_s: float = 0.0
) -> tuple[float, float]:
    """(iat, exp) of claims that are from `issuer`, for one of `audiences`, of some subject, and in force.

    Raises `CredentialInvalid`: signature (issuer, audience), malformed (also: one is missing), expired. `leeway_s`: how much the clocks of
    the issuer may differ from ours.
    """
    named = claims.get("aud")
    named = [named] if isinstance(named, str) else named
    if claims.get("iss") != issuer or not isinstance(named, list) or not any(isinstance(a, str) and a in audiences for a in named):
        raise CredentialInvalid("signature")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise CredentialInvalid("malformed")
    issued_at, expires_at = _moment(claims.get("iat")), _moment(claims.get("exp"))
    begins_at = _moment(claims["nbf"]) if "nbf" in claims else issued_at
    if expires_at + leeway_s <= now_s:
        raise CredentialInvalid("expired")
    if max(begins_at, issued_at) - leeway_s > now_s:
        raise CredentialInvalid("early")
    return issued_at, expires_at


class AccessTokens:
    """Issues and verifies access tokens.

    `keys`: the signing keys, oldest first; bytes: one HS256 secret that is never replaced, for where there is no database.
    `replace` puts others in force at once.
    """

    def __init__(
        self, keys: Collection[SigningKey] | bytes, issuer: str = "gateway", audience: str = "gateway", lifetime_s: int = ACCESS_LIFETIME_S
    ) -> None:
        self.issuer, self.audience, self.lifetime_s = issuer, audience, lifetime_s
        self._keys: tuple[SigningKey, ...] = ()
        self._withheld = False
        self._signers: dict[str, Key] = {}
        self._verifiers: dict[str, tuple[VerifyingKey, float]] = {}  # and until when, Unix seconds
        self.replace((SigningKey(_kid(keys), "HS256", keys),) if isinstance(keys, bytes) else keys)

    def replace(self, keys: Collection[SigningKey]) -> None:
        """From now on these, oldest first, and no others. None: as after `withhold`."""
        signers = {key.kid: _prepared(key.material, key.algorithm) for key in keys}
        verifiers = {key.kid: (VerifyingKey(key.verifier, key.algorithm), _end(key)) for key in keys}
        self._keys, self._signers, self._verifiers = tuple(keys), signers, verifiers
        self._withheld = not keys

    def withhold(self) -> None:
        """The key that ought to sign now cannot be opened: until `replace` none is issued, and an unknown token may be its."""
        self._withheld = True

    def require(self) -> None:
        """Raises `SigningAway` while no token can be issued."""
        if self._withheld:
            raise SigningAway

    def knows(self, kid: object) -> bool:
        """Is this the id of one of our own keys?"""
        return isinstance(kid, str) and kid in self._verifiers

    def issued(self, token: str) -> bool:
        """Does a token name one of our own keys? Raises `CredentialInvalid`: malformed."""
        return self.knows(head_of(token, MAX_TOKEN_CHARS).get("kid"))

    def public_keys(self, now_s: float | None = None) -> list[dict[str, str]]:
        """The public keys in force, as JSON web keys. A secret has none."""
        now_s = time.time() if now_s is None else now_s
        return [dict(shown) for key in self._keys if _end(key) > now_s and (shown := public_jwk(key)) is not None]

    def issue(self, user: UserRecord, now_s: float | None = None) -> str:
        """Raises `SigningAway`."""
        self.require()
        now_s = time.time() if now_s is None else now_s
        issued_at = int(now_s)
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": user.user_id,
            "iat": issued_at,
            "exp": issued_at + self.lifetime_s,
            "jti": uuid.uuid4().hex,
            "epoch": user.token_epoch,
        }
        key = self._signing(now_s)
        return str(jws.sign(claims, self._signers[key.kid], headers={"kid": key.kid}, algorithm=key.algorithm))

    def verify(self, token: str, now_s: float | None = None) -> Claims:
        """Raises `CredentialInvalid`: malformed, signature (also: unknown kid, wrong issuer or audience), expired, early. `SigningAway`."""
        now_s = time.time() if now_s is None else now_s
        head = head_of(token)
        kid = head.get("kid")
        key, end = self._verifiers.get(kid, (None, 0.0)) if isinstance(kid, str) else (None, 0.0)
        if key is None and self._withheld:
            raise SigningAway
        if key is None or end <= now_s or head.get("alg") != key.algorithm:
            raise CredentialInvalid("signature")
        claims = key.claims(token)
        expires_at, issued_at, epoch, token_id = claims.get("exp"), claims.get("iat"), claims.get("epoch"), claims.get("jti")
        if type(expires_at) is not int or type(issued_at) is not int or type(epoch) is not int or not isinstance(token_id, str):
            raise CredentialInvalid("malformed")
        check_claims(claims, self.issuer, (self.audience,), now_s, _HOSTS_DIFFER_S)
        if expires_at <= now_s:
            raise CredentialInvalid("expired")
        return Claims(claims["sub"], epoch, token_id, issued_at, expires_at)

    def _signing(self, now_s: float) -> SigningKey:
        """The newest key that every process knows by now; where there is none (the first one was made a moment ago), the oldest."""
        lasting = [key for key in self._keys if _end(key) > now_s + self.lifetime_s]
        known = [key for key in lasting if key.created_at + ACTIVATION_S <= now_s]
        return known[-1] if known else (lasting or self._keys)[0]


def _prepared(material: Any, algorithm: str) -> Key:
    """Built once: jose would parse a private key for every signature. That it takes the objects of `cryptography` its stubs do not say."""
    return jwk.construct(material, algorithm)


def _end(key: SigningKey) -> float:
    return math.inf if key.expires_at is None else key.expires_at


def _moment(value: object) -> float:
    """Unix seconds; a number (RFC 7519, 2), which neither True nor an infinity is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CredentialInvalid("malformed")
    try:
        moment = float(value)
    except OverflowError:
        raise CredentialInvalid("malformed") from None
    if not math.isfinite(moment):
        raise CredentialInvalid("malformed")
    return moment


def _kid(secret: bytes) -> str:
    return hashlib.sha256(b"kid:" + secret).hexdigest()[:16]
