"""One resolver of credentials, whole digests, and tokens that do not choose how they are judged: no collision, no second way in."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from auth import keys as auth_keys
from auth.authenticator import Authenticator
from auth.credential import credential_of
from auth.errors import AuthError, CredentialInvalid, CredentialMissing
from auth.passwords import Passwords
from auth.ports import KeyRecord, UserRecord
from auth.principal import Principal, Role
from auth.tokens import AccessTokens
from gateway.store.errors import SecretKeyRefused
from gateway.store.secret_key import check_secret_key, load_or_create_secret_key
from tests.security.inside import Inside

ROOT = Path(__file__).parents[2]
SECRET = bytes(range(32))
NOW = 1_800_000_000.0
USER = UserRecord("usr_1", "a@localhost", Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes), 0)
NAMES = (b"authorization", b"x-api-key", b"api-key")


class Records:
    away = behind = False

    def __init__(self, *texts: str) -> None:
        self.records = {}
        for number, text in enumerate(texts):
            digest = auth_keys.digest(text)
            self.records[digest] = KeyRecord(str(number), digest, Principal(f"u{number}", Role.MEMBER, frozenset({"inference"})))

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        return self.records.get(digest)

    def key_refusal(self, digest: bytes) -> str:
        return "unknown"

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return USER if user_id == USER.user_id else None


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(head: dict[str, Any], claims: dict[str, Any], secret: bytes = SECRET) -> str:
    text = f"{part(head)}.{part(claims)}"
    mark = base64.urlsafe_b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{text}.{mark}"


def pieces(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    head, claims, _ = (json.loads(base64.urlsafe_b64decode(p + "==")) if n < 2 else {} for n, p in enumerate(token.split(".")))
    return head, claims


def test_keys_that_differ_in_their_last_letter_are_two_keys() -> None:
    """A cache under a cut-off or shortened name would give the one the other's rights."""
    _, text = auth_keys.mint()
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    authenticator = Authenticator(Records(text), AccessTokens(SECRET))
    assert authenticator.authenticate(text.encode(), NOW).user_id == "u0"
    for wrong in (other, text[:-1], text + "a", text.upper(), text[:20]):
        with pytest.raises(CredentialInvalid):
            authenticator.authenticate(wrong.encode(), NOW)
    assert auth_keys.digest(text) == hashlib.sha256(text.encode()).digest()


def test_a_token_is_verified_each_time_to_its_last_letter() -> None:
    authenticator = Authenticator(Records(), AccessTokens(SECRET))
    token = AccessTokens(SECRET).issue(USER, NOW)
    for _ in range(3):
        assert authenticator.authenticate(token.encode(), NOW).user_id == "usr_1"
        head, claims = pieces(token)
        for changed in (
            token[:-2] + ("AA" if token[-2:] != "AA" else "BB"),
            f"{part(head)}.{part(claims | {'sub': 'usr_2'})}.{token.split('.')[2]}",
            signed(head, claims, b"x" * 32),
            signed(head, claims, b""),
        ):
            with pytest.raises(CredentialInvalid):
                authenticator.authenticate(changed.encode(), NOW)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(token.encode(), NOW + 3600)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "", None, ["HS256"], 1])
def test_a_token_does_not_choose_how_it_is_judged(algorithm: Any) -> None:
    tokens = AccessTokens(SECRET)
    head, claims = pieces(tokens.issue(USER, NOW))
    for token in (signed(head | {"alg": algorithm}, claims), signed(head | {"alg": algorithm}, claims).rpartition(".")[0] + "."):
        with pytest.raises(CredentialInvalid):
            tokens.verify(token, NOW)


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "aud", "iss", "jti"])
def test_a_claim_that_is_missing_or_wrong_is_not_waved_through(claim: str) -> None:
    tokens = AccessTokens(SECRET)
    head, claims = pieces(tokens.issue(USER, NOW))
    assert tokens.verify(signed(head, claims), NOW).user_id == "usr_1"
    without = {name: value for name, value in claims.items() if name != claim}
    for bad in (without, claims | {claim: None}, claims | {claim: "nonsense" if claim not in ("sub", "jti") else 5}):
        with pytest.raises(CredentialInvalid):
            tokens.verify(signed(head, bad), NOW)


@pytest.mark.parametrize("kid", ["", "x", None, 5, "../../dev/null", ["a"]])
def test_a_token_of_an_unknown_key_is_refused(kid: Any) -> None:
    tokens = AccessTokens(SECRET)
    head, claims = pieces(tokens.issue(USER, NOW))
    with pytest.raises(CredentialInvalid):
        tokens.verify(signed(head | {"kid": kid}, claims), NOW)


@pytest.mark.parametrize("one", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_there_is_one_credential_or_none(one: bytes, other: bytes) -> None:
    def line(name: bytes, value: bytes) -> tuple[bytes, bytes]:
        return name, b"Bearer " + value if name == b"authorization" else value

    assert credential_of([line(one, b"same"), line(other, b"same")]) == b"same"
    with pytest.raises(CredentialInvalid) as refused:
        credential_of([line(one, b"first"), line(other, b"second")])
    assert refused.value.reason == "conflicting"
    with pytest.raises(AuthError):
        credential_of([line(one, b"")])
    with pytest.raises(CredentialMissing):
        credential_of([(b"x-auth", b"k"), (b"cookie", b"authorization=k"), (b"proxy-authorization", b"Bearer k")])


async def test_limits_of_a_key_hold_through_every_header(own: Inside) -> None:
    """Another header than the usual one must not go round what a key may (Open WebUI's x-api-key)."""
    key = await own.key("only other", models=["other"])
    for header, form in (("authorization", "Bearer {}"), ("x-api-key", "{}"), ("api-key", "{}")):
        async with own.client() as http:
            http.headers[header] = form.format(key)
            for model, status in (("m", 404), ("other", 200)):
                body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
                assert (await http.post("/v1/chat/completions", json=body)).status_code == status, header
                assert (await http.get(f"/v1/models/{model}")).status_code == status, header
            assert (await http.get("/admin/users")).status_code == 403


async def test_no_credential_in_the_url_and_no_cookie_is_taken(own: Inside) -> None:
    token = await own.log_in(own.admin)
    async with own.client() as http:
        for name in ("key", "api_key", "api-key", "token", "access_token", "authorization"):
            assert (await http.get("/admin/users", params={name: token})).status_code == 401
            assert (await http.get("/admin/users", headers={"cookie": f"{name}={token}; gateway_refresh={token}"})).status_code == 401


async def test_metrics_are_for_those_on_this_machine_and_for_nobody_they_speak_for(own: Inside) -> None:
    async with own.client() as http:
        assert (await http.get("/metrics")).status_code == 200
        for header in ("x-forwarded-for", "forwarded", "x-real-ip", "via", "cf-connecting-ip", "x-forwarded-proto"):
            assert (await http.get("/metrics", headers={header: "198.51.100.9"})).status_code == 401, header
        headers = {"x-forwarded-for": "198.51.100.9", "authorization": f"Bearer {await own.key('m', scopes=['metrics'])}"}
        assert (await http.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize("secret", ["", "aB3eF6hI9kL2nO5qR8tU1wX4zA7cD0x", "a" * 64, "changeme" * 8, "your-secret-key-" * 3, "0" * 32])
def test_an_empty_short_or_sample_secret_is_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(SecretKeyRefused):
        check_secret_key(secret, "GATEWAY_SECRET_KEY")
    if secret:
        with pytest.raises(SecretKeyRefused):
            load_or_create_secret_key(tmp_path, secret)


@pytest.mark.parametrize("length", [0, 1, 16, 31])
def test_tokens_are_not_signed_with_a_short_secret(length: int) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        AccessTokens(b"x" * length)


def test_a_server_with_such_a_secret_does_not_start(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "GATEWAY_HOME": str(tmp_path / "home"), "GATEWAY_SECRET_KEY": "changeme"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "1"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "GATEWAY_SECRET_KEY" in done.stderr
    assert "Traceback" not in done.stderr


async def test_passwords_are_argon2id_and_nothing_else() -> None:
    passwords = Passwords()
    try:
        stored = await passwords.hash("nine lanterns under the bridge 4")
        found = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$.*", stored)
        assert found is not None
        assert int(found[1]) >= 19_456
        assert int(found[2]) >= 2
        assert (await passwords.verify("nine lanterns under the bridge 4", stored))[0]
        for weak in ("$2b$12$KIXabcdefghijklmnopqrstuv", "plain", "", hashlib.md5(b"x").hexdigest()):
            assert not (await passwords.verify("plain", weak))[0]
    finally:
        passwords.close()


async def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    passwords = Passwords()
    try:
        stored = await passwords.hash("nine lanterns under the bridge 4")
        await passwords.verify("warm", None)

        async def took_s(hash_text: str | None) -> float:
            started = time.process_time()
            await passwords.verify("wrong password", hash_text)
            return time.process_time() - started

        pairs = [(await took_s(stored), await took_s(None)) for _ in range(7)]
        assert 0.5 < min(unknown for _, unknown in pairs) / min(known for known, _ in pairs) < 2
    finally:
        passwords.close()


def test_each_risky_library_is_imported_in_one_file_alone() -> None:
    """What has to be replaced one day is replaced in one file (jose, passlib), and slowapi never judges keys."""
    homes: dict[str, set[str]] = {"jose": set(), "passlib": set(), "slowapi": set()}
    for folder in ("gateway", "auth", "backends", "migrations"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    if name.split(".")[0] in homes:
                        homes[name.split(".")[0]].add(str(file.relative_to(ROOT)))
    assert homes == {"jose": {"auth/tokens.py"}, "passlib": {"auth/passwords.py"}, "slowapi": {"gateway/limits/edge.py"}}
