from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from auth.authenticator import Authenticator
from auth.errors import CredentialInvalid, KeyUnknown, StoreAway
from auth.issuers import STALE_S, TrustedIssuers, user_id
from auth.ports import KeyRecord, UserRecord
from auth.principal import Limits, Principal, Role
from auth.provider import Answer, FetchFailed
from auth.tokens import AccessTokens, head_of
from auth.trusted import TrustedIssuer, trusted_issuers
from tests.unit.auth.signed import Private, jwk, token

NOW = 1_800_000_000.0
A, B = "https://a.example.com/realms/x", "https://b.example.com"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ENTRY_A = {
    "issuer": A, "audience": "gateway", "role_claim": "realm_access.roles", "roles": {"boss": "admin", "staff": "member"},
    "models": ["chat-*"], "rpm": 60,
}  # fmt: skip
ENTRY_B = {"issuer": B, "audience": ["gw", "gateway"], "jwks_url": "https://b.example.com/keys", "default_role": "viewer"}


def claims(issuer: str = A, **changes: Any) -> dict[str, Any]:
    own = {"iss": issuer, "aud": "gateway", "sub": "u1", "iat": int(NOW), "exp": int(NOW) + 300, "realm_access": {"roles": ["staff", "x"]}}
    return own | changes


class Web:
    """What the issuers publish. `asked`: every URL that was fetched."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {
            f"{A}/.well-known/openid-configuration": {"issuer": A, "jwks_uri": f"{A}/certs"},
            f"{A}/certs": {"keys": [jwk(RSA, kid="a")]},
            "https://b.example.com/keys": {"keys": [jwk(EC, kid="b")]},
        }
        self.asked: list[str] = []
        self.fetched = asyncio.Event()

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        self.asked.append(url)
        self.fetched.set()
        page = self.pages.get(url)
        if page is None:
            raise FetchFailed("unreachable")
        return Answer(*page) if isinstance(page, tuple) else Answer(200, page)


class Nobody:
    away = behind = False

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        return None

    def key_refusal(self, digest: bytes) -> str:
        return "unknown"

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return USER if user_id == "usr_1" else None


USER = UserRecord("usr_1", "a@localhost", Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes), token_epoch=3)


class World:
    def __init__(self, *entries: dict[str, Any]) -> None:
        self.web = Web()
        self.failed: list[tuple[str, str]] = []
        self.now_s = 1000.0
        self.issuers = TrustedIssuers(
            trusted_issuers(json.dumps(entries or (ENTRY_A, ENTRY_B))),
            self.web,
            lambda issuer, word: self.failed.append((issuer, word)),
            again_s=0.01,
            monotonic=lambda: self.now_s,
        )

    def principal(
        self, key: Private = RSA, kid: str | None = "a", algorithm: str = "RS256", now_s: float = NOW, **changes: Any
    ) -> Principal:
        return self.issuers.principal(token(claims(**changes), key, algorithm, kid), now_s)

    def refusal(self, *args: Any, **changes: Any) -> CredentialInvalid:
        with pytest.raises(CredentialInvalid) as refused:
            self.principal(*args, **changes)
        return refused.value


@pytest.fixture
async def world() -> World:
    made = World()
    await made.issuers.start(5)
    return made


async def test_who_a_token_stands_for(world: World) -> None:
    found = world.principal()
    assert found.user_id == found.limit_id == user_id(A, "u1")
    assert found.user_id.startswith("ext_")
    assert (found.role, found.scopes, found.key_id) == (Role.MEMBER, Role.MEMBER.scopes, None)
    assert found.limits == Limits(rpm=60)
    assert found.may_use("chat-x")
    assert not found.may_use("embed")
    assert world.principal(EC, "b", "ES256", issuer=B).role is Role.VIEWER
    assert world.failed == []


def test_ids_of_people() -> None:
    assert len({user_id(A, "u1"), user_id(A, "u2"), user_id(B, "u1"), user_id(A + "u", "1")}) == 4
    assert user_id(A, "u1") == user_id(A, "u1")


@pytest.mark.parametrize(
    ("value", "role"),
    [
        ({"roles": ["staff", "boss"]}, Role.ADMIN),
        ({"roles": "staff"}, Role.MEMBER),
        ({"roles": ["admin"]}, None),  # our word for it means nothing at theirs
        ({"roles": {"boss": 1}}, None),
        ({"roles": [["boss"]]}, None),
        ({"roles": 7}, None),
        (["boss"], None),
        ("boss", None),
        (None, None),
    ],
)
async def test_roles(world: World, value: object, role: Role | None) -> None:
    if role is None:
        assert world.refusal(realm_access=value).reason == "role"
    else:
        assert world.principal(realm_access=value).role is role


async def test_claims_named_like_roles_or_ours_mean_nothing(world: World) -> None:
    forged = {"role": "admin", "scopes": ["admin"], "epoch": 0, "user_id": "usr_1"}
    assert world.principal(EC, "b", "ES256", issuer=B, **forged).role is Role.VIEWER


async def test_an_issuer_vouches_for_itself_alone(world: World) -> None:
    world.refusal(EC, "b", "ES256", issuer=A)  # B's key, A's name
    world.refusal(RSA, "a", "RS256", issuer=B)
    world.refusal(issuer="https://c.example.com")
    world.refusal(issuer=A + "/")
    world.refusal(iss=None)
    world.refusal(iss=[A])


async def test_audience_and_time(world: World) -> None:
    world.refusal(aud="other")
    world.refusal(aud=["gw"])  # good for B only
    assert world.principal(EC, "b", "ES256", issuer=B, aud="gw")
    assert world.refusal(exp=NOW - 100).reason == "expired"
    assert world.refusal(nbf=NOW + 100).reason == "early"


async def test_a_token_is_judged_anew_each_time(world: World) -> None:
    text = token(claims(), RSA, "RS256", "a")
    assert world.issuers.principal(text, NOW)
    with pytest.raises(CredentialInvalid):
        world.issuers.principal(text, NOW + 400)
    with pytest.raises(CredentialInvalid):
        world.issuers.principal(text[:-4] + "AAAA", NOW)


async def test_tokens_that_mean_something_else(world: World) -> None:
    assert world.issuers.principal(token(claims(), RSA, "RS256", "a", typ="at+JWT"), NOW)
    for kind in ("logout+jwt", "secevent+jwt", "", 7, ["JWT"]):
        with pytest.raises(CredentialInvalid):
            world.issuers.principal(token(claims(), RSA, "RS256", "a", typ=kind), NOW)


@pytest.mark.parametrize("sub", ["", "x" * 256, "a\0b", "a\nb", 7, None])
async def test_subjects(world: World, sub: object) -> None:
    world.refusal(sub=sub)


async def test_one_whose_keys_are_not_known_is_not_told_that_it_is_wrong() -> None:
    world = World()
    world.web.pages.clear()
    await world.issuers.start(5)
    assert sorted(world.failed) == [(A, "unreachable"), (B, "unreachable")]
    with pytest.raises(StoreAway):
        world.principal()


async def test_last_keys_stay_good_for_a_day(world: World) -> None:
    world.now_s += STALE_S - 1
    assert world.principal()
    world.now_s += 2
    with pytest.raises(StoreAway):
        world.principal()


@pytest.mark.parametrize(
    ("url", "page", "word"),
    [
        (f"{A}/.well-known/openid-configuration", {"issuer": B, "jwks_uri": f"{A}/certs"}, "issuer"),
        (f"{A}/.well-known/openid-configuration", {"issuer": A, "jwks_uri": "http://a.example.com/certs"}, "garbage"),
        (f"{A}/.well-known/openid-configuration", {"issuer": A, "jwks_uri": "file:///etc/passwd"}, "garbage"),
        (f"{A}/.well-known/openid-configuration", {"issuer": A}, "garbage"),
        (f"{A}/.well-known/openid-configuration", [], "garbage"),
        (f"{A}/certs", {"keys": []}, "keys"),
        (f"{A}/certs", (500, {"keys": [jwk(RSA, kid="a")]}), "status"),
        (f"{A}/certs", (302, None), "status"),
    ],
)
async def test_what_goes_wrong_keeps_the_last_keys(world: World, url: str, page: Any, word: str) -> None:
    world.web.pages[url] = page
    await world.issuers.start(5)
    assert world.failed == [(A, word)]
    assert world.principal()


async def test_keys_follow_the_issuer() -> None:
    """An unknown key id is a reason to look, for one that follows; nobody waits for it."""
    world = World(ENTRY_B)
    following = asyncio.create_task(world.issuers.follow())
    other = ec.generate_private_key(ec.SECP256R1())
    try:
        async with asyncio.timeout(5):
            await world.web.fetched.wait()
            await asyncio.sleep(0.05)
            assert len(world.web.asked) == 1  # a known key is no reason
            world.principal(EC, "b", "ES256", issuer=B)
            await asyncio.sleep(0.05)
            assert len(world.web.asked) == 1
            world.web.pages["https://b.example.com/keys"] = {"keys": [jwk(other, kid="b2")]}
            with pytest.raises(KeyUnknown):
                world.principal(other, "b2", "ES256", issuer=B)
            while True:
                with contextlib.suppress(CredentialInvalid):
                    assert world.principal(other, "b2", "ES256", issuer=B).role is Role.VIEWER
                    break
                await asyncio.sleep(0.005)
        world.refusal(EC, "b", "ES256", issuer=B)  # withdrawn
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_flood_of_unknown_keys_asks_the_issuer_rarely() -> None:
    world = World(ENTRY_B)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    following = asyncio.create_task(world.issuers.follow())
    try:
        await world.web.fetched.wait()
        await asyncio.sleep(0)
        while len(world.web.asked) < 10 and loop.time() < begun + 10:
            world.refusal(EC, "nobody", "ES256", issuer=B)
            await asyncio.sleep(0)
        assert 10 <= len(world.web.asked) <= 2 + (loop.time() - begun) / 0.01  # at most one in `again_s`
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_authenticator_tells_them_apart(world: World) -> None:
    own = AccessTokens(bytes(range(32)))
    judge = Authenticator(Nobody(), own, world.issuers)
    assert judge.authenticate(token(claims(), RSA, "RS256", "a").encode(), NOW).user_id == user_id(A, "u1")
    assert judge.authenticate(own.issue(USER, NOW).encode(), NOW).user_id == "usr_1"
    ours = {"iss": "gateway", "aud": "gateway", "sub": "usr_1", "epoch": 3, "iat": int(NOW), "exp": int(NOW) + 9, "jti": "x"}
    own_kid = head_of(own.issue(USER, NOW))["kid"]
    for kid, algorithm, changes in (
        ("a", "RS256", ours),  # our name, their key
        (own_kid, "RS256", claims()),  # their name, our key id
        (own_kid, "HS256", ours),
        (None, "RS256", ours),
    ):
        with pytest.raises(CredentialInvalid):
            judge.authenticate(token(changes, RSA, algorithm, kid).encode(), NOW)
    with pytest.raises(CredentialInvalid):  # nobody is trusted
        Authenticator(Nobody(), own).authenticate(token(claims(), RSA, "RS256", "a").encode(), NOW)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"issuer": "http://a.example.com"}, "https"),
        ({"issuer": None}, "issuer is missing"),
        ({"issuer": "gateway"}, "https"),
        ({"audience": None}, "audience"),
        ({"audience": []}, "audience is missing"),
        ({"audience": [""]}, "audience"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {"x": "manager"}}, "role"),
        ({"roles": {"x": "root"}}, "role"),
        ({"roles": {"x": ["admin"]}}, "role"),
        ({"roles": []}, "roles"),
        ({"roles": {}}, "go together"),
        ({"role_claim": ""}, "go together"),
        ({"role_claim": "", "roles": {}}, "nobody"),
        ({"default_role": "owner"}, "role"),
        ({"jwks_url": "http://a.example.com/k"}, "jwks_url"),
        ({"jwks_url": 7}, "jwks_url"),
        ({"rpm": 0}, "rpm"),
        ({"rpm": True}, "rpm"),
        ({"models": [1]}, "models"),
        ({"jwks_uri": "https://a.example.com/k"}, "jwks_uri"),
    ],
)
def test_settings_that_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word) as refused:
        trusted_issuers(json.dumps([ENTRY_B, ENTRY_A | change]))
    assert str(refused.value).startswith("entry 2: ")


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "issuers.json"
    path.write_text(json.dumps([ENTRY_A]))
    (found,) = trusted_issuers(str(path))
    assert found == trusted_issuers(json.dumps([ENTRY_A]))[0]
    assert isinstance(found, TrustedIssuer)
    assert found.discovery_url == f"{A}/.well-known/openid-configuration"
    assert trusted_issuers(" ") == ()
    for text, word in (("{", "cannot be read"), ("[", "no JSON"), ("[1]", "list of objects"), (str(tmp_path), "cannot be read")):
        with pytest.raises(ValueError, match=word):
            trusted_issuers(text)
    path.write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match="UTF-8"):
        trusted_issuers(str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match="list of objects"):
        trusted_issuers(str(path))
    with pytest.raises(ValueError, match="twice"):
        trusted_issuers(json.dumps([ENTRY_A, ENTRY_A]))
    with pytest.raises(ValueError, match="JSON"):
        trusted_issuers("[" * 100_000)
