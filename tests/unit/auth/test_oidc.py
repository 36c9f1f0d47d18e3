"""Logins in progress: sealed notes, who may finish them, where they lead; and how the provider is configured."""

from __future__ import annotations

import secrets

import pytest

from auth.oidc import Approved, LoginExpired, OidcLogin, Program, challenge_of, own_path, program_of
from auth.oidc_config import OidcConfig, checked_issuer, checked_public_url, checked_scopes, parse_roles
from auth.principal import Role
from auth.provider import Identity
from auth.seal import Seal

NOW_S = 1_800_000_000.0
CONFIG = OidcConfig("https://id.example.com", "gateway", "https://gw.example.com")
DANA = Identity(CONFIG.issuer, "1", "dana@example.com", None, None)
CHALLENGE = challenge_of("v" * 43)


class FakeProvider:
    def __init__(self, config: OidcConfig = CONFIG) -> None:
        self.config = config
        self.sent: dict[str, str] = {}
        self.asked: dict[str, object] = {}

    async def authorization_url(self, **query: str) -> str:
        self.sent = query
        return "https://id.example.com/authorize"

    async def identity(self, **asked: object) -> Identity:
        self.asked = asked
        return DANA


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def login(provider: FakeProvider, seal: Seal | None = None, clock: Clock | None = None) -> OidcLogin:
    return OidcLogin(provider, seal or Seal(secrets.token_bytes(32)), clock=clock or Clock())  # type: ignore[arg-type]  # a fake of the seam


async def test_a_login_is_finished_with_what_it_was_begun_with() -> None:
    provider = FakeProvider()
    flow = login(provider)
    begun = await flow.begin("/ui/keys")
    finished = await flow.finish(state=provider.sent["state"], note=begun.note, code="c", said_issuer="i")
    assert (finished.identity, finished.next, finished.program) == (DANA, "/ui/keys", None)
    assert provider.asked["nonce"] == provider.sent["nonce"]
    assert challenge_of(str(provider.asked["verifier"])) == provider.sent["challenge"]
    assert (provider.asked["code"], provider.asked["said_issuer"]) == ("c", "i")
    for secret in (provider.sent["state"], provider.sent["nonce"], str(provider.asked["verifier"])):
        assert len(secret) >= 43
        assert secret not in begun.note + begun.name + repr(begun)


async def test_another_process_finishes_it() -> None:
    key = secrets.token_bytes(32)
    provider = FakeProvider()
    begun = await login(provider, Seal(key)).begin("/")
    assert await login(FakeProvider(), Seal(key)).finish(state=provider.sent["state"], note=begun.note, code="c", said_issuer=None)


async def test_what_does_not_belong_together_is_refused() -> None:
    provider, clock = FakeProvider(), Clock()
    key = secrets.token_bytes(32)
    flow = login(provider, Seal(key), clock)
    mine = await flow.begin("/")
    my_state = provider.sent["state"]
    other = await flow.begin("/")

    async def refused(flow: OidcLogin, state: str, note: str) -> None:
        assert not flow.known(state, note)
        with pytest.raises(LoginExpired):
            await flow.finish(state=state, note=note, code="c", said_issuer=None)

    await refused(flow, my_state, other.note)  # a login that another browser began
    await refused(flow, "", mine.note)
    await refused(flow, "ünïcode", mine.note)
    await refused(flow, my_state, "")
    await refused(flow, my_state, mine.note[:-2] + "AA")
    await refused(flow, my_state, "ä" * 100)
    await refused(flow, my_state, "A" * 100_000)
    await refused(login(FakeProvider()), my_state, mine.note)  # another secret key
    elsewhere = FakeProvider(OidcConfig("https://other.example.com", "gateway", "https://gw.example.com"))
    await refused(login(elsewhere, Seal(key), clock), my_state, mine.note)  # begun at another provider
    await refused(flow, my_state, flow.ask("usr_1", 0, program_of(5000, CHALLENGE, "s" * 16)))  # a ticket is no note
    assert flow.known(my_state, mine.note)
    clock.now_s += 601
    await refused(flow, my_state, mine.note)
    assert provider.asked == {}  # the provider was never asked


async def test_a_ticket() -> None:
    clock = Clock()
    provider = FakeProvider()
    flow = login(provider, clock=clock)
    program = program_of(5000, CHALLENGE, "s" * 16)
    ticket = flow.ask("usr_1", 3, program)
    assert flow.approved(ticket) == Approved("usr_1", 3, program)
    note = (await flow.begin("/", program)).note
    for wrong in ("", ticket[:-2] + "AA", note):
        with pytest.raises(LoginExpired):
            flow.approved(wrong)
    finished = await flow.finish(state=provider.sent["state"], note=note, code="c", said_issuer=None)
    assert finished.program == program
    clock.now_s += 301
    with pytest.raises(LoginExpired):
        flow.approved(ticket)


def test_the_code_that_people_compare() -> None:
    codes = {Program(5000, challenge_of(str(n)), "s").code for n in range(100)}
    assert len(codes) == 100
    assert all(len(code) == 9 and code[4] == "-" for code in codes)


@pytest.mark.parametrize(
    ("port", "challenge", "state"),
    [
        (80, CHALLENGE, "s" * 16), (65_536, CHALLENGE, "s" * 16), (-1, CHALLENGE, "s" * 16),
        (5000, "", "s" * 16), (5000, CHALLENGE + "A", "s" * 16), (5000, CHALLENGE[:-1] + "=", "s" * 16),
        (5000, CHALLENGE[:-1] + "\n", "s" * 16),
        (5000, CHALLENGE, "short"), (5000, CHALLENGE, "s" * 129), (5000, CHALLENGE, "&code=x&state=yyyyyy"),
        (5000, CHALLENGE, "s" * 16 + "\n"),
    ],
)  # fmt: skip
def test_programs_that_are_none(port: int, challenge: str, state: str) -> None:
    with pytest.raises(ValueError):
        program_of(port, challenge, state)


@pytest.mark.parametrize("path", ["/", "/ui/", "/ui/keys?page=2&q=%20#top", "/a//b", "/%2F/evil.example.com"])
def test_own_paths(path: str) -> None:
    assert own_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "", "ui", "//evil.example.com", "///evil.example.com", "/\\evil.example.com", "\\/evil.example.com", "/\t/evil.example.com",
        "/ui\n",
        "https://evil.example.com", "javascript:alert(1)", "/ui/\\..\\..\\evil", " /ui", "/é", "/\x00", "@evil.example.com",
        "/" + "a" * 2000,
    ],
)  # fmt: skip
def test_what_is_no_own_path(path: str) -> None:
    assert not own_path(path)


@pytest.mark.parametrize(
    "url", ["https://id.example.com", "https://id.example.com/realms/a", "http://localhost:8080", "http://127.0.0.1:1/x"]
)
def test_issuers(url: str) -> None:
    assert checked_issuer(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "id.example.com", "http://id.example.com", "http://127.0.0.1.evil.com", "https://user@id.example.com", "https://id.example.com?x=1",
        "https://id.example.com#x", "https://", "https://a b", "https://a\\b", "ftp://localhost", "https://é.example.com", "https://a:99999",
    ],
)  # fmt: skip
def test_what_is_no_issuer(url: str) -> None:
    with pytest.raises(ValueError):
        checked_issuer(url)


def test_public_urls() -> None:
    assert checked_public_url("https://GW.example.com/") == "https://gw.example.com"
    assert checked_public_url("http://localhost:8000") == "http://localhost:8000"
    for wrong in ("http://gw.example.com", "https://gw.example.com/gateway", "https://gw.example.com?x", "gw.example.com"):
        with pytest.raises(ValueError):
            checked_public_url(wrong)


def test_roles_and_scopes() -> None:
    assert parse_roles("") == {}
    assert parse_roles('{"a b": "admin", "c": "viewer"}') == {"a b": Role.ADMIN, "c": Role.VIEWER}
    for wrong in ("[]", "{", '{"a": "root"}', '{"a": ["admin"]}', "null", "[" * 100_000):
        with pytest.raises(ValueError):
            parse_roles(wrong)
    assert checked_scopes("openid  email") == ("openid", "email")
    with pytest.raises(ValueError):
        checked_scopes("email profile")


def test_a_secret_is_in_no_repr() -> None:
    assert "s3cret" not in repr(OidcConfig("https://id.example.com", "gateway", "https://gw.example.com", "s3cret"))
