"""What is believed of an OpenID provider, and what is not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jose import jwk, jwt

from auth.oidc_config import OidcConfig
from auth.principal import Role
from auth.provider import AT_ONCE, Answer, FetchFailed, Identity, LoginRefused, Provider, ProviderAway, claim_at, read_metadata

ISSUER = "https://id.example.com"
NOW_S = 1_800_000_000
METADATA = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize?tenant=7",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/keys",
    "userinfo_endpoint": f"{ISSUER}/userinfo",
    "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
}
CONFIG = OidcConfig(
    ISSUER, "gateway", "https://gw.example.com", "secret:/&", role_claim="groups", roles={"ops": Role.ADMIN, "all": Role.MEMBER}
)
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "aud": "gateway", "sub": "248289761001", "exp": NOW_S + 300, "iat": NOW_S, "nonce": "the nonce",
    "email": "Dana@Example.com", "email_verified": True, "name": "Dana", "groups": ["all"],
}  # fmt: skip
DANA = Identity(ISSUER, "248289761001", "dana@example.com", "Dana", Role.MEMBER)


@pytest.fixture(scope="module")
def keys() -> tuple[RSAPrivateKey, RSAPrivateKey]:
    return generate_private_key(65537, 2048), generate_private_key(65537, 2048)


def pem(key: RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def published(**by_kid: RSAPrivateKey) -> dict[str, Any]:
    return {"keys": [jwk.construct(pem(key), "RS256").public_key().to_dict() | {"kid": kid} for kid, key in by_kid.items()]}


class FakeProvider:
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self.key = key
        self.kid = "one"
        self.metadata: Any = dict(METADATA)
        self.keys: Any = published(one=key)
        self.claims: dict[str, Any] = dict(CLAIMS)
        self.userinfo: Any = {"sub": CLAIMS["sub"]}
        self.token: Answer | None = None
        self.fails: dict[str, str] = {}  # path -> reason
        self.asked: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        path = await self._asked(url, {}, headers)
        content = {"/.well-known/openid-configuration": self.metadata, "/keys": self.keys, "/userinfo": self.userinfo}[path]
        return content if isinstance(content, Answer) else Answer(200, content)

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        await self._asked(url, form, headers)
        return self.token or Answer(200, {"token_type": "Bearer", "access_token": "at", "id_token": self.id_token()})

    async def close(self) -> None:
        pass

    def id_token(self) -> str:
        return jwt.encode(self.claims, pem(self.key), "RS256", headers={"kid": self.kid})

    def count(self, path: str) -> int:
        return sum(urlsplit(url).path == path for url, _, _ in self.asked)

    async def _asked(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None) -> str:
        self.asked.append((url, form, headers or {}))
        await self.gate.wait()
        path = urlsplit(url).path
        if path in self.fails:
            raise FetchFailed(self.fails[path])
        return path


@pytest.fixture
def fake(keys: tuple[RSAPrivateKey, RSAPrivateKey]) -> FakeProvider:
    return FakeProvider(keys[0])


def made(fake: FakeProvider, config: OidcConfig = CONFIG) -> Provider:
    return Provider(config, fake, clock=lambda: NOW_S)


async def asked(provider: Provider, said_issuer: str | None = None) -> Identity:
    return await provider.identity(code="c", verifier="v", nonce="the nonce", said_issuer=said_issuer)


async def refusal(fake: FakeProvider, config: OidcConfig = CONFIG, said_issuer: str | None = None) -> str:
    with pytest.raises(LoginRefused) as refused:
        await asked(made(fake, config), said_issuer)
    return refused.value.reason


async def test_an_identity(fake: FakeProvider) -> None:
    assert await asked(made(fake)) == DANA
    url, form, headers = fake.asked[1]
    assert url == f"{ISSUER}/token"
    assert form == {"grant_type": "authorization_code", "code": "c", "redirect_uri": CONFIG.redirect_url, "code_verifier": "v"}
    assert headers["authorization"] == "Basic " + base64.b64encode(b"gateway:secret%3A%2F%26").decode()


async def test_the_way_to_the_provider(fake: FakeProvider) -> None:
    url = await made(fake).authorization_url(state="st", nonce="no", challenge="ch")
    assert url.startswith(f"{ISSUER}/authorize?tenant=7&")
    query = {name: values for name, values in parse_qs(urlsplit(url).query).items() if name != "tenant"}
    assert query == {
        "response_type": ["code"], "client_id": ["gateway"], "redirect_uri": ["https://gw.example.com/auth/oidc/callback"],
        "scope": ["openid email profile"], "state": ["st"], "nonce": ["no"], "code_challenge": ["ch"], "code_challenge_method": ["S256"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["the nonce"]}, "nonce"),
        ({"iss": "https://evil.example.com"}, "token"),
        ({"iss": ISSUER + "/"}, "token"),
        ({"iss": None}, "token"),
        ({"aud": "another"}, "token"),
        ({"aud": None}, "token"),
        ({"aud": ["gateway", "another"]}, "token"),  # of several audiences one must be the party it was issued to
        ({"aud": ["gateway", "another"], "azp": "another"}, "token"),
        ({"azp": "another"}, "token"),
        ({"exp": NOW_S - 60}, "token"),
        ({"exp": None}, "token"),
        ({"nbf": NOW_S + 600}, "token"),
        ({"iat": None}, "token"),
        ({"iat": NOW_S + 600}, "token"),
        ({"iat": NOW_S - 86_400}, "token"),
        ({"iat": "now"}, "token"),
        ({"sub": None}, "token"),
        ({"sub": ""}, None),
        ({"sub": 7}, None),
        ({"sub": "x" * 256}, "subject"),
        ({"sub": "a\nb"}, "subject"),
    ],
)
async def test_claims_that_do_not_hold(fake: FakeProvider, change: dict[str, Any], reason: str | None) -> None:
    fake.claims = {name: value for name, value in (CLAIMS | change).items() if value is not None}
    found = await refusal(fake)
    assert found == reason if reason else found in ("token", "subject")


@pytest.mark.parametrize(
    "change",
    [
        {"aud": ["gateway"]},
        {"aud": ["gateway", "another"], "azp": "gateway"},
        {"exp": NOW_S - 10},  # clocks differ by some seconds
        {"iat": NOW_S + 10, "nbf": NOW_S + 10},
    ],
)
async def test_claims_that_do(fake: FakeProvider, change: dict[str, Any]) -> None:
    fake.claims |= change
    assert await asked(made(fake)) == DANA


async def test_signatures(fake: FakeProvider, keys: tuple[RSAPrivateKey, RSAPrivateKey]) -> None:
    fake.key = keys[1]  # under the name of a key that is not its
    assert await refusal(fake) == "token"
    fake.key = keys[0]
    good = fake.id_token()
    public = jwk.construct(pem(keys[0]), "RS256").public_key().to_pem().decode()
    head, body, signature = good.split(".")

    def b64(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def headed(**header: str) -> str:
        return f"{b64(json.dumps(header).encode())}.{body}"

    forged = [
        f"{headed(alg='none')}.",
        f"{headed(alg='none', kid='one')}.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{body}",
        "x" * 20_000,
    ]
    signed = headed(alg="HS256", kid="one")
    for secret in (public, CONFIG.client_secret):  # the public key, or our own secret, as a shared one
        mac = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
        forged.append(f"{signed}.{b64(mac)}")
    for token in forged:
        fake.token = Answer(200, {"id_token": token, "access_token": "at"})
        assert await refusal(fake) == "token", token[:60]
    fake.token = Answer(200, {"id_token": good, "access_token": "at"})
    assert await asked(made(fake)) == DANA


async def test_a_new_key_is_fetched_once(fake: FakeProvider, keys: tuple[RSAPrivateKey, RSAPrivateKey]) -> None:
    provider = made(fake)
    await asked(provider)
    provider._keys_s -= 20  # the copy is older than the ten seconds
    fake.key, fake.kid, fake.keys = keys[1], "two", published(one=keys[0], two=keys[1])
    assert await asked(provider) == DANA
    fake.kid = "three"
    for _ in range(3):
        with pytest.raises(LoginRefused):
            await asked(provider)
    assert fake.count("/keys") == 2
    assert fake.count("/.well-known/openid-configuration") == 1


@pytest.mark.parametrize("said", ["https://evil.example.com", ISSUER + "/", ""])
async def test_an_answer_of_another_issuer_is_not_taken_here(fake: FakeProvider, said: str) -> None:
    assert await refusal(fake, said_issuer=said) == "issuer"
    assert fake.count("/token") == 0  # the code was not shown to anybody


async def test_who_says_that_it_names_itself_must(fake: FakeProvider) -> None:
    fake.metadata["authorization_response_iss_parameter_supported"] = True
    assert await refusal(fake) == "issuer"
    assert await asked(made(fake), ISSUER) == DANA


@pytest.mark.parametrize(
    ("email", "verified", "trust", "expected"),
    [
        ("dana@example.com", True, False, "dana@example.com"),
        ("dana@example.com", "true", False, "dana@example.com"),  # as some providers write it
        ("dana@example.com", False, False, None),
        ("dana@example.com", False, True, None),  # trust fills a gap; it does not overrule a no
        ("dana@example.com", "false", True, None),
        ("dana@example.com", 1, True, None),
        ("dana@example.com", None, False, None),
        ("dana@example.com", None, True, "dana@example.com"),
        (["dana@example.com"], True, True, None),
        ("x" * 251 + "@y.z", True, True, None),
        ("", True, True, None),
        (" Dana@Example.com ", True, False, "dana@example.com"),
        ("\u212aim@example.com", True, True, None),  # lowered, it would be another: kim@example.com
        ("\xa0dana@example.com", True, True, None),
        ("a\x00@example.com", True, True, None),  # no database takes it
    ],
)
async def test_only_a_verified_email_counts(fake: FakeProvider, email: Any, verified: Any, trust: bool, expected: str | None) -> None:
    fake.claims |= {"email": email, "email_verified": verified}
    if verified is None:
        del fake.claims["email_verified"]
    config = OidcConfig(ISSUER, "gateway", "https://gw.example.com", trust_email=trust)
    assert (await asked(made(fake, config))).email == expected


async def test_userinfo_fills_a_short_id_token(fake: FakeProvider) -> None:
    for name in ("email", "email_verified", "name", "groups"):
        del fake.claims[name]
    fake.userinfo = {name: CLAIMS[name] for name in ("sub", "email", "email_verified", "name", "groups")}
    assert await asked(made(fake)) == DANA
    assert fake.asked[-1][2]["authorization"] == "Bearer at"
    fake.userinfo["sub"] = "somebody else"
    assert await refusal(fake) == "subject"


async def test_an_email_counts_with_the_word_of_its_own_source(fake: FakeProvider) -> None:
    fake.claims |= {"email": "admin@example.com", "email_verified": False}
    del fake.claims["groups"]
    fake.userinfo = {"sub": CLAIMS["sub"], "email": "dana@example.com", "email_verified": True, "groups": ["all"]}
    identity = await asked(made(fake))
    assert (identity.email, identity.role) == (None, Role.MEMBER)


@pytest.mark.parametrize(
    ("groups", "default", "expected"),
    [
        (["all", "ops", "x"], None, Role.ADMIN),  # the highest
        ("all", None, Role.MEMBER),
        ([], None, None),
        (["OPS"], None, None),
        ({"ops": 1}, Role.VIEWER, Role.VIEWER),
        ([["ops"], 7, None], Role.VIEWER, Role.VIEWER),
        (None, Role.VIEWER, Role.VIEWER),
    ],
)
async def test_roles(fake: FakeProvider, groups: Any, default: Role | None, expected: Role | None) -> None:
    fake.claims["groups"] = groups
    config = OidcConfig(ISSUER, "g", "https://x", role_claim="groups", roles=CONFIG.roles, default_role=default)
    fake.claims["aud"] = "g"
    assert (await asked(made(fake, config))).role == expected


def test_claims_at_a_path() -> None:
    assert claim_at({"a": {"b": ["c"]}}, "a.b") == ["c"]
    assert claim_at({"https://x.y/roles": "z", "https://x": 1}, "https://x.y/roles") == "z"
    assert claim_at({"a": [1]}, "a.b.c") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(400, {"error": "invalid_grant"}), LoginRefused("code")),
        (Answer(401, {"error": "invalid_client"}), ProviderAway("client")),
        (Answer(500, None), ProviderAway("status")),
        (Answer(302, None), ProviderAway("status")),
        (Answer(200, []), ProviderAway("garbage")),
        (Answer(200, {"access_token": "only"}), ProviderAway("garbage")),
        (Answer(200, {"id_token": 5}), ProviderAway("garbage")),
    ],
)
async def test_answers_to_the_code(fake: FakeProvider, answer: Answer, expected: Exception) -> None:
    fake.token = answer
    with pytest.raises(type(expected), match=f"^{expected}$"):
        await asked(made(fake))


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example.com"},
        {"issuer": ISSUER + "/"},
        {"token_endpoint": "http://id.example.com/token"},  # the code and our secret in the clear
        {"token_endpoint": "https://user:pw@id.example.com/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://id.example.com/\\@evil"},
        {"authorization_endpoint": f"{ISSUER}/a#b"},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"userinfo_endpoint": 5},
    ],
)
def test_metadata_that_is_not_believed(change: dict[str, Any]) -> None:
    with pytest.raises(ProviderAway):
        read_metadata(METADATA | change, CONFIG)


def test_how_the_secret_is_shown() -> None:
    assert not read_metadata(METADATA, CONFIG).secret_in_body
    only_post = METADATA | {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert read_metadata(only_post, CONFIG).secret_in_body
    assert read_metadata(METADATA, CONFIG).algorithms == ("RS256",)


async def test_a_public_client_and_one_that_posts(fake: FakeProvider) -> None:
    await asked(made(fake, OidcConfig(ISSUER, "gateway", "https://gw.example.com")))
    assert fake.asked[1][1]["client_id"] == "gateway"
    assert "client_secret" not in fake.asked[1][1] and "authorization" not in fake.asked[1][2]
    fake.asked.clear()
    fake.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    await asked(made(fake))
    assert fake.asked[1][1]["client_secret"] == CONFIG.client_secret


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token", "/userinfo"])
async def test_a_provider_that_is_away(fake: FakeProvider, path: str) -> None:
    fake.fails[path] = "timeout"
    del fake.claims["email"]
    with pytest.raises(ProviderAway):
        await asked(made(fake))


async def test_one_that_is_away_is_not_asked_by_everybody(fake: FakeProvider) -> None:
    fake.fails["/.well-known/openid-configuration"] = "timeout"
    provider = made(fake)
    results = await asyncio.gather(*(asked(provider) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, ProviderAway) for result in results)
    assert fake.count("/.well-known/openid-configuration") == 1
    fake.fails.clear()
    provider._failed_s -= 3  # the moment's rest is over
    assert await asked(provider) == DANA


async def test_metadata_that_was_good_outlives_a_failure(fake: FakeProvider) -> None:
    provider = made(fake)
    await asked(provider)
    provider._metadata_s -= 4000
    fake.fails["/.well-known/openid-configuration"] = "unreachable"
    assert await asked(provider) == DANA


async def test_logins_that_wait_are_bounded(fake: FakeProvider) -> None:
    provider = made(fake)
    fake.gate.clear()
    waiting = [asyncio.create_task(asked(provider)) for _ in range(AT_ONCE)]
    while provider._waiting < AT_ONCE:
        await asyncio.sleep(0)
    with pytest.raises(ProviderAway, match="busy"):
        await asyncio.wait_for(asked(provider), 5)
    fake.gate.set()
    assert await asyncio.gather(*waiting) == [DANA] * AT_ONCE
    assert await asked(provider) == DANA
    assert fake.count("/keys") == 1
