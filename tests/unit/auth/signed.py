"""Tokens and key sets made without the code under test: by `cryptography` alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

_HASHES: dict[str, HashAlgorithm] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
Private = bytes | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def b64(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(claims: dict[str, Any], key: Private, algorithm: str, kid: str | None = None, **head: Any) -> str:
    """Signed by `key` with the hash that `algorithm` names, whatever kind of key that is."""
    head = {"typ": "JWT", "alg": algorithm, **({} if kid is None else {"kid": kid}), **head}
    text = f"{b64(head)}.{b64(claims)}"
    return f"{text}.{b64(_signature(text.encode(), key, _HASHES.get(algorithm[2:], SHA256())))}"


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **members: Any) -> dict[str, Any]:
    """The public half."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e), **members}
    point, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    return {"kty": "EC", "crv": _CURVES[key.curve.name], "x": _number(point.x, size), "y": _number(point.y, size), **members}


def _signature(text: bytes, key: Private, how: HashAlgorithm) -> bytes:
    if isinstance(key, bytes):
        return hmac.new(key, text, getattr(hashlib, how.name)).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(text, padding.PKCS1v15(), how)
    r, s = decode_dss_signature(key.sign(text, ec.ECDSA(how)))
    size = (key.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def _number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))
