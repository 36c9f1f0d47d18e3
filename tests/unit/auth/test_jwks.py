from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from auth.errors import CredentialInvalid, KeyUnknown
from auth.jwks import ALGORITHMS, KeySet
from tests.unit.auth.signed import b64, jwk, token

NOW = 1_800_000_000.0
ISSUER, AUDIENCE = "https://id.example.com", "gateway-client"
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
SET = {"keys": [jwk(RSA, kid="r", alg="RS256", use="sig"), jwk(EC, kid="e", use="sig"), jwk(EC384, kid="e384")]}
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": int(NOW) - 5, "exp": int(NOW) + 300, "nonce": "n"}
BOTH = ("RS256", "ES256")


def verify(text: str, document: dict[str, Any] | None = None, algorithms: tuple[str, ...] = BOTH, now_s: float = NOW) -> dict[str, Any]:
    return KeySet.from_document(document or SET).verify(text, ISSUER, AUDIENCE, algorithms, now_s)


def refusal(text: str, **more: Any) -> CredentialInvalid:
    with pytest.raises(CredentialInvalid) as refused:
        verify(text, **more)
    return refused.value


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (EC384, "ES384", "e384")])
def test_each_kind_of_key_in_one_set(key: Any, algorithm: str, kid: str) -> None:
    assert verify(token(CLAIMS, key, algorithm, kid), algorithms=ALGORITHMS) == CLAIMS


def test_several_audiences_on_either_side() -> None:
    text = token(CLAIMS | {"aud": ["other", AUDIENCE]}, RSA, "RS256", "r")
    assert verify(text)["sub"] == "u1"
    keys = KeySet.from_document(SET)
    assert keys.verify(text, ISSUER, ("nobody", "other"), BOTH, NOW)["sub"] == "u1"
    with pytest.raises(CredentialInvalid):
        keys.verify(text, ISSUER, ("nobody",), BOTH, NOW)
    with pytest.raises(CredentialInvalid):  # no part of a name is the name
        keys.verify(token(CLAIMS | {"aud": "gateway"}, RSA, "RS256", "r"), ISSUER, AUDIENCE, BOTH, NOW)


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "iat", "exp"])
def test_every_claim_is_required(claim: str) -> None:
    refusal(token({k: v for k, v in CLAIMS.items() if k != claim}, RSA, "RS256", "r"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": ISSUER + "/"}, "signature"),
        ({"iss": [ISSUER]}, "signature"),
        ({"aud": "other"}, "signature"),
        ({"aud": []}, "signature"),
        ({"aud": {AUDIENCE: 1}}, "signature"),
        ({"aud": [[AUDIENCE]]}, "signature"),
        ({"sub": ""}, "malformed"),
        ({"sub": 7}, "malformed"),
        ({"exp": NOW - 31}, "expired"),
        ({"exp": "never"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": 10**400}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"iat": NOW + 31}, "early"),
        ({"nbf": NOW + 31}, "early"),
        ({"nbf": None}, "malformed"),
    ],
)
def test_wrong_claims(change: dict[str, Any], reason: str) -> None:
    assert refusal(token(CLAIMS | change, RSA, "RS256", "r")).reason == reason


def test_clocks_may_differ_a_little() -> None:
    assert verify(token(CLAIMS | {"exp": NOW - 29, "iat": NOW + 29, "nbf": NOW + 29}, RSA, "RS256", "r"))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "rs256", "PS256", "dir", None, 7, ["RS256"]])
def test_no_other_algorithm(algorithm: Any) -> None:
    head = {"alg": algorithm, "kid": "r", "typ": "JWT"}
    for signature in ("", "x", b64(b"\0" * 256)):
        refusal(f"{b64(head)}.{b64(CLAIMS)}.{signature}", algorithms=(*ALGORITHMS, "none", "HS256", ""))


def test_a_public_key_is_no_shared_secret() -> None:
    """HS256 with what everybody can read, in every form that it is written in."""
    public = RSA.public_key()
    forms = [
        public.public_bytes(e, f) for e in (Encoding.PEM, Encoding.DER) for f in (PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1)
    ]
    forms += [json.dumps(SET["keys"][0]).encode(), SET["keys"][0]["n"].encode()]
    for form in forms:
        refusal(token(CLAIMS, form, "HS256", "r"), algorithms=("RS256", "HS256"))
        refusal(token(CLAIMS, form, "HS256", "r", alg="RS256"))


def test_a_secret_in_a_set_is_not_used() -> None:
    secret = b"s" * 32
    document = {"keys": [{"kty": "oct", "k": b64(secret), "kid": "o", "alg": "HS256"}, *SET["keys"]]}
    refusal(token(CLAIMS, secret, "HS256", "o"), document=document, algorithms=("HS256", "RS256"))
    with pytest.raises(ValueError, match="no key"):
        KeySet.from_document({"keys": document["keys"][:1]})


def test_a_key_verifies_with_its_own_algorithm_only() -> None:
    refusal(token(CLAIMS, RSA, "RS512", "r"), algorithms=ALGORITHMS)
    refusal(token(CLAIMS, EC, "ES256", "r"))
    refusal(token(CLAIMS, RSA, "RS256", "e"))


def test_an_algorithm_that_was_not_allowed() -> None:
    refusal(token(CLAIMS, EC, "ES256", "e"), algorithms=("RS256",))


def test_kid() -> None:
    assert isinstance(refusal(token(CLAIMS, RSA, "RS256", "gone")), KeyUnknown)
    assert verify(token(CLAIMS, RSA, "RS256"))["sub"] == "u1"  # the only one of its kind
    two = {"keys": [jwk(RSA, kid="r"), jwk(OTHER_RSA, kid="o")]}
    refusal(token(CLAIMS, RSA, "RS256"), document=two)
    refusal(token(CLAIMS, OTHER_RSA, "RS256", "r"), document=two)
    for kid in (7, ["r"], {"r": 1}, True):
        refusal(token(CLAIMS, RSA, "RS256", kid=kid))  # type: ignore[arg-type]  # what a forger may write
    doubled = {"keys": [jwk(RSA, kid="r"), jwk(OTHER_RSA, kid="r"), jwk(EC, kid="e")]}
    for key in (RSA, OTHER_RSA):
        refusal(token(CLAIMS, key, "RS256", "r"), document=doubled)


def test_keys_that_a_token_brings_along_are_not_used() -> None:
    for head in ({"jwk": jwk(OTHER_RSA)}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/c"}):
        refusal(token(CLAIMS, OTHER_RSA, "RS256", "r", **head))


def test_what_must_be_understood_and_is_not() -> None:
    refusal(token(CLAIMS, RSA, "RS256", "r", crit=["exp"]))
    refusal(token(CLAIMS, RSA, "RS256", "r", crit=[]))


@pytest.mark.parametrize(
    "broken",
    [
        {"kty": "RSA"},
        jwk(RSA, use="enc"),
        jwk(RSA, key_ops=["sign"]),
        jwk(RSA, alg="RSA-OAEP"),
        jwk(RSA, alg="HS256"),
        jwk(RSA, alg=["RS256"]),
        jwk(RSA, kid=7),
        jwk(RSA) | {"n": "!!"},
        jwk(RSA) | {"e": "AQ"},  # 1: anybody could sign
        jwk(RSA) | {"e": "Ag"},
        jwk(RSA) | {"e": ""},
        jwk(rsa.generate_private_key(65537, 1024)),
        jwk(EC) | {"crv": "secp256k1"},
        jwk(EC) | {"crv": ["P-256"]},
        jwk(EC) | {"y": "AQ"},  # not on the curve
        jwk(EC, alg="ES384"),
        "text",
        None,
    ],
)
def test_keys_that_are_passed_over(broken: Any) -> None:
    with pytest.raises(ValueError, match="no key"):
        KeySet.from_document({"keys": [broken]})
    assert len(KeySet.from_document({"keys": [broken, jwk(EC, kid="e")]})) == 1


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": []}, [], None, "x", {"keys": [jwk(EC)] * 101}])
def test_documents_that_are_no_sets(document: Any) -> None:
    with pytest.raises(ValueError, match="set"):
        KeySet.from_document(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        "a.b",
        "a.b.c.d",
        b64(b'{"alg":"RS256","kid":"r","x":' + b"[" * 5000) + ".e30.e30",
        b64({"alg": "RS256", "kid": "r"}) + "." + b64(b"[" * 9000) + ".AAAA",
        b64([1]) + ".e30.e30",
        "eyJ" + "a" * 20_000 + ".a.a",
        "\ud800.e30.e30",
        b64({"alg": "RS256", "kid": "r"}) + "é.e30.e30",
        token(CLAIMS, RSA, "RS256", "r") + "\n",
        token(CLAIMS, RSA, "RS256", "r") + "=",
        " " + token(CLAIMS, RSA, "RS256", "r"),
    ],
)
def test_texts_that_are_no_tokens(text: str) -> None:
    assert refusal(text).reason in ("malformed", "signature")


def test_signed_nonsense() -> None:
    for payload in (b"[]", b"1", b'"x"', b"{", b"[" * 3000, b"\xff", b'{"exp":' + b"9" * 5000 + b"}"):
        text = f"{b64({'alg': 'RS256', 'kid': 'r'})}.{b64(payload)}"
        assert refusal(f"{text}.{b64(RSA.sign(text.encode(), padding.PKCS1v15(), SHA256()))}").reason == "malformed"


@given(st.data())
def test_no_changed_character_is_accepted(data: st.DataObject) -> None:
    text = token(CLAIMS, EC, "ES256", "e")
    at = data.draw(st.integers(0, len(text) - 2))  # the last one has bits that base64 ignores
    other = data.draw(st.characters(max_codepoint=255).filter(lambda c: c != text[at]))
    changed = text[:at] + other + text[at + 1 :]
    head, _, rest = changed.partition(".")
    claims = rest.partition(".")[0]
    if (head, claims) == tuple(text.split(".")[:2]):
        try:
            same = base64.urlsafe_b64decode(changed.split(".")[2] + "==") == base64.urlsafe_b64decode(text.split(".")[2] + "==")
        except ValueError:
            same = False
        if same:
            return
    refusal(changed)
