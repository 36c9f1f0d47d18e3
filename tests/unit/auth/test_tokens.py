from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.credential import looks_like_token
from auth.errors import CredentialInvalid
from auth.ports import UserRecord
from auth.principal import Principal, Role
from auth.signing import SigningKey
from auth.tokens import AccessTokens

SECRET = bytes(range(32))
OTHER = bytes(range(100, 132))
NOW = 1_800_000_000.0
USER = UserRecord("usr_1", "a@localhost", Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes), token_epoch=3)


def _b64(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(claims: dict[str, Any], *, header: dict[str, Any], secret: bytes = SECRET) -> str:
    """A token signed without the library under test."""
    body = f"{_b64(header)}.{_b64(claims)}"
    return f"{body}.{_b64(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = token.split(".")
    return json.loads(base64.urlsafe_b64decode(header + "==")), json.loads(base64.urlsafe_b64decode(claims + "=="))


def test_a_token_says_who_and_until_when() -> None:
    tokens = AccessTokens(SECRET)
    token = tokens.issue(USER, NOW)
    header, claims = parts(token)
    assert header["alg"] == "HS256"
    assert header["kid"]
    assert claims["iss"] == claims["aud"] == "gateway"
    assert claims["exp"] - claims["iat"] == 900
    assert "role" not in claims
    read = tokens.verify(token, NOW + 899)
    assert (read.user_id, read.token_epoch, read.expires_at) == ("usr_1", 3, NOW + 900)
    assert looks_like_token(token.encode())
    assert parts(tokens.issue(USER, NOW))[1]["jti"] != claims["jti"]


def test_our_own_forgery_with_the_right_secret_is_accepted() -> None:
    """The control of the tests below: only what they change makes their tokens invalid."""
    tokens = AccessTokens(SECRET)
    header, claims = parts(tokens.issue(USER, NOW))
    assert tokens.verify(forge(claims, header=header), NOW).user_id == "usr_1"


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "aud", "iss", "jti", "epoch"])
def test_every_claim_is_required(claim: str) -> None:
    tokens = AccessTokens(SECRET)
    header, claims = parts(tokens.issue(USER, NOW))
    del claims[claim]
    with pytest.raises(CredentialInvalid):
        tokens.verify(forge(claims, header=header), NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": "other"}, "signature"),
        ({"aud": "other"}, "signature"),
        ({"exp": "tomorrow"}, "malformed"),
        ({"exp": 1e300}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"epoch": "3"}, "malformed"),
        ({"exp": NOW - 1}, "malformed"),  # a float
        ({"exp": int(NOW)}, "expired"),
    ],
)
def test_wrong_claims(change: dict[str, Any], reason: str) -> None:
    tokens = AccessTokens(SECRET)
    header, claims = parts(tokens.issue(USER, NOW))
    with pytest.raises(CredentialInvalid) as refused:
        tokens.verify(forge(claims | change, header=header), NOW)
    assert refused.value.reason == reason


@pytest.mark.parametrize("algorithm", ["none", "HS512", "RS256", "hs256", "", None])
def test_one_algorithm_only(algorithm: str | None) -> None:
    tokens = AccessTokens(SECRET)
    header, claims = parts(tokens.issue(USER, NOW))
    with pytest.raises(CredentialInvalid):
        tokens.verify(forge(claims, header=header | {"alg": algorithm}), NOW)
    unsigned = f"{_b64(header | {'alg': algorithm})}.{_b64(claims)}."
    with pytest.raises(CredentialInvalid):
        tokens.verify(unsigned, NOW)


@pytest.mark.parametrize("kid", [None, "", "unknown", 7, ["x"], {"a": 1}])
def test_the_key_is_picked_by_kid(kid: object) -> None:
    tokens = AccessTokens(SECRET)
    header, claims = parts(tokens.issue(USER, NOW))
    with pytest.raises(CredentialInvalid):
        tokens.verify(forge(claims, header=header | {"kid": kid}), NOW)


def test_another_secret_is_refused_unless_it_is_one_of_the_keys() -> None:
    old = SigningKey("old", "HS256", OTHER, created_at=NOW - 1000, expires_at=NOW + 1000)
    new = SigningKey("new", "HS256", SECRET, created_at=NOW - 10)
    token = AccessTokens([old]).issue(USER, NOW - 20)
    with pytest.raises(CredentialInvalid):
        AccessTokens([new]).verify(token, NOW)
    both = AccessTokens([old, new])
    assert both.verify(token, NOW).user_id == "usr_1"
    header, claims = parts(both.issue(USER, NOW))
    assert header["kid"] == "new"
    with pytest.raises(CredentialInvalid):  # the right kid, signed by the other secret
        both.verify(forge(claims, header=header, secret=OTHER), NOW)


def test_short_secrets_are_refused() -> None:
    for secret in (b"", b"x", SECRET[:31]):
        with pytest.raises(ValueError, match="32"):
            AccessTokens(secret)


@given(st.text(max_size=200) | st.from_regex(r"eyJ[\w-]{0,50}\.[\w-]{0,50}\.[\w-]{0,50}", fullmatch=True))
def test_no_text_leads_to_anything_but_a_refusal(text: str) -> None:
    with pytest.raises(CredentialInvalid):
        AccessTokens(SECRET).verify(text, NOW)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_character_is_accepted(position: int, delta: int) -> None:
    """Except in the last character's unused bits, which base64 ignores."""
    tokens = AccessTokens(SECRET)
    original = tokens.issue(USER, NOW).encode()
    token = bytearray(original)
    position %= len(token) - 1
    token[position] = (token[position] + delta) % 128
    if bytes(token) == original:
        return
    with pytest.raises(CredentialInvalid):
        tokens.verify(token.decode("latin-1"), NOW)


def test_a_huge_token_is_not_even_parsed() -> None:
    with pytest.raises(CredentialInvalid) as refused:
        AccessTokens(SECRET).verify("eyJ" + "a" * 10_000 + ".a.a", NOW)
    assert refused.value.reason == "malformed"
