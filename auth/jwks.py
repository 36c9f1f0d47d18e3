"""The public keys of somebody who signs tokens (a JSON web key set, RFC 7517), and the verification of such a token.

A set that holds several kinds of keys is no reason to try them all: the token's `kid` and `alg` together pick one, and each key verifies
with the one algorithm that it was published for. Symmetric keys in a set are never used: whoever can read the set could sign with them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from auth.errors import CredentialInvalid, KeyUnknown
from auth.signing import PublicKey
from auth.tokens import MAX_TOKEN_CHARS, VerifyingKey, check_claims, head_of

ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
LEEWAY_S = 30.0  # how much the issuer's clock may differ from ours
_MAX_KEYS = 100
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_RSA = ("RS256", "RS384", "RS512")
_CURVES = {"P-256": (SECP256R1(), "ES256"), "P-384": (SECP384R1(), "ES384"), "P-521": (SECP521R1(), "ES512")}


class KeySet:
    """Keys by (kid, algorithm). Immutable: a set that was fetched anew is another object."""

    def __init__(self, keys: Mapping[tuple[str | None, str], VerifyingKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> KeySet:
        """The usable keys of a set as it was published; others in it are passed over.

        Raises `ValueError`, one plain sentence, where it is no set, has too many keys or none that verifies signatures.
        """
        listed = document.get("keys") if isinstance(document, Mapping) else None
        if not isinstance(listed, list):
            raise ValueError("The document is no JSON web key set: it has no list `keys`.")
        if len(listed) > _MAX_KEYS:
            raise ValueError(f"The key set has more than {_MAX_KEYS} keys.")
        keys: dict[tuple[str | None, str], VerifyingKey] = {}
        doubled: set[tuple[str | None, str]] = set()
        for value in listed:
            read = _key(value) if isinstance(value, Mapping) else None
            if read is None:
                continue
            place, key = read
            if place in keys:
                doubled.add(place)
            keys[place] = key
        for place in doubled:  # which of them would be meant?
            del keys[place]
        if not keys:
            raise ValueError("The key set has no key that signatures can be verified with (RSA of 2048 bits or more, or EC).")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: str, issuer: str, audience: str | Collection[str], algorithms: Collection[str], now_s: float) -> dict[str, Any]:
        """The claims of a token that a key of this set has signed, from `issuer`, for `audience` (one of them), in force at `now_s`.

        `algorithms`: those that this issuer may use, of `ALGORITHMS`. exp, iat, iss, aud and sub are required, nbf is kept.
        Raises `CredentialInvalid`: malformed, signature (also: issuer, audience, algorithm), expired, early; `KeyUnknown` where the set
        may only be out of date.
        """
        head = head_of(token, MAX_TOKEN_CHARS)
        algorithm, kid = head.get("alg"), head.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or algorithm not in algorithms:
            raise CredentialInvalid("signature")
        claims = self._picked(kid, algorithm).claims(token)
        check_claims(claims, issuer, (audience,) if isinstance(audience, str) else audience, now_s, LEEWAY_S)
        return claims

    def _picked(self, kid: object, algorithm: str) -> VerifyingKey:
        """The key that a header names. One without `kid` is understood where only one key comes into question."""
        if isinstance(kid, str):
            key = self._keys.get((kid, algorithm))
            if key is None:
                raise KeyUnknown
            return key
        if kid is not None:
            raise CredentialInvalid("malformed")
        fitting = [key for (_, known), key in self._keys.items() if known == algorithm]
        if len(fitting) != 1:
            raise CredentialInvalid("signature")
        return fitting[0]


def _key(jwk: Mapping[str, Any]) -> tuple[tuple[str | None, str], VerifyingKey] | None:
    """((kid, algorithm), key), or None for one that is not for us: another kind, another use, or broken."""
    kid, use, operations = jwk.get("kid"), jwk.get("use"), jwk.get("key_ops")
    if not (kid is None or isinstance(kid, str)) or use not in (None, "sig"):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    try:
        read = _rsa(jwk) if jwk.get("kty") == "RSA" else _ec(jwk) if jwk.get("kty") == "EC" else None
    except (ValueError, UnsupportedAlgorithm):  # not numbers, not on the curve
        return None
    if read is None:
        return None
    material, algorithm = read
    return (kid, algorithm), VerifyingKey(material, algorithm)


def _rsa(jwk: Mapping[str, Any]) -> tuple[PublicKey, str] | None:
    algorithm = jwk.get("alg", "RS256")  # what all providers that leave it out mean
    modulus, exponent = _number(jwk.get("n")), _number(jwk.get("e"))
    if algorithm not in _RSA or not _MIN_RSA_BITS <= modulus.bit_length() <= _MAX_RSA_BITS or exponent.bit_length() > 32:
        return None
    return RSAPublicNumbers(exponent, modulus).public_key(), algorithm


def _ec(jwk: Mapping[str, Any]) -> tuple[PublicKey, str] | None:
    named = jwk.get("crv")
    curve, algorithm = _CURVES.get(named, (None, "")) if isinstance(named, str) else (None, "")
    if curve is None or jwk.get("alg", algorithm) != algorithm:
        return None
    return EllipticCurvePublicNumbers(_number(jwk.get("x")), _number(jwk.get("y")), curve).public_key(), algorithm


def _number(text: object) -> int:
    """Base64url, big-endian. Raises `ValueError`."""
    if not isinstance(text, str) or len(text) > 2048:
        raise ValueError("not a number")
    try:
        return int.from_bytes(base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True), "big")
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError("not a number") from None
