"""The keys that sign login tokens: what one is, how it is made, written down and shown to others. How it signs is auth.tokens' affair.

Each key has one algorithm for life, and a token is only ever judged by the algorithm of the key it names: a public key can so never be
taken for a shared secret.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

ALGORITHMS = ("HS256", "RS256", "ES256")
MIN_SECRET_BYTES = 32
_RSA_BITS, _RSA_EXPONENT = 3072, 65537
_KID_BYTES = 12

PublicKey = RSAPublicKey | EllipticCurvePublicKey
Material = bytes | RSAPrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key. Times are Unix seconds; `expires_at` None: it is the newest, and does not end. `material` is in no repr."""

    kid: str
    algorithm: str
    material: Material = field(repr=False)
    created_at: float = 0.0
    expires_at: float | None = None

    def __post_init__(self) -> None:
        _check(self.algorithm, self.material)

    @property
    def verifier(self) -> bytes | PublicKey:
        """What its signatures are checked with: the secret itself (HS256), else the public half."""
        return self.material if isinstance(self.material, bytes) else self.material.public_key()


def generate(algorithm: str) -> tuple[str, Material]:
    """A new key: (kid, material). RS256 takes a second or so: not for an event loop."""
    kid = secrets.token_hex(_KID_BYTES)
    if algorithm == "HS256":
        return kid, secrets.token_bytes(MIN_SECRET_BYTES)
    if algorithm == "RS256":
        return kid, generate_rsa(_RSA_EXPONENT, _RSA_BITS)
    if algorithm == "ES256":
        return kid, generate_ec(SECP256R1())
    raise ValueError(f"{algorithm} is none of {', '.join(ALGORITHMS)}")


def to_text(material: Material) -> str:
    """As it is stored, before encryption: base64url of a secret, PEM (PKCS 8) of a private key."""
    if isinstance(material, bytes):
        return base64.urlsafe_b64encode(material).decode()
    return material.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def from_text(algorithm: str, text: str) -> Material:
    """The inverse of `to_text`. Raises `ValueError` where the text is not a key of this algorithm."""
    if algorithm == "HS256":
        material: object = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    else:
        material = load_pem_private_key(text.encode(), None)
    _check(algorithm, material)
    assert isinstance(material, Material)
    return material


def public_jwk(key: SigningKey) -> Mapping[str, str] | None:
    """Its public half as a JSON web key (RFC 7517); None for a secret, of which nothing may be shown."""
    public = key.verifier
    if isinstance(public, bytes):
        return None
    head = {"kid": key.kid, "alg": key.algorithm, "use": "sig"}
    if isinstance(public, RSAPublicKey):
        rsa = public.public_numbers()
        return MappingProxyType({"kty": "RSA", **head, "n": _number(rsa.n), "e": _number(rsa.e)})
    point, size = public.public_numbers(), (public.key_size + 7) // 8
    return MappingProxyType({"kty": "EC", **head, "crv": "P-256", "x": _number(point.x, size), "y": _number(point.y, size)})


def _check(algorithm: str, material: object) -> None:
    """Raises `ValueError` unless this material is one for this algorithm, and strong enough."""
    if isinstance(material, bytes):
        good = algorithm == "HS256"
        if len(material) < MIN_SECRET_BYTES:
            raise ValueError(f"a signing secret needs at least {MIN_SECRET_BYTES} bytes")
    elif isinstance(material, RSAPrivateKey):
        good = algorithm == "RS256" and material.key_size >= 2048
    else:
        good = algorithm == "ES256" and isinstance(material, EllipticCurvePrivateKey) and isinstance(material.curve, SECP256R1)
    if not good:
        raise ValueError(f"not a key for {algorithm}")


def _number(value: int, size_bytes: int = 0) -> str:
    """Base64url of a big-endian number, of `size_bytes` if given (RFC 7518, 2 and 6.2.1.2)."""
    return base64.urlsafe_b64encode(value.to_bytes(size_bytes or (value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
