"""The login service over the real store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from auth.errors import CredentialInvalid, HasherBusy, LoginFailed
from auth.login import Login, TokenPair
from auth.passwords import Passwords
from auth.principal import Role
from auth.tokens import AccessTokens
from auth.turns import Turns
from gateway import changes
from gateway.changes import Actor
from gateway.store import changelog, login_addresses, tokens, trail, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.logins import Accounts, RefreshTokens
from gateway.store.tables import refresh_tokens
from gateway.store.users import User

CLI = Actor(None, "cli")
PASSWORD = "correct horse"
ACCESS = AccessTokens(bytes(range(32)))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    service = Passwords(memory_kib=1024, rounds=1)
    yield service
    service.close()


@pytest.fixture
async def user(db: Database, generation: Generation, passwords: Passwords) -> User:
    await changes.ensure_admin(db, generation, CLI, email="root@localhost", password_hash=await passwords.hash("another password"))
    stored = await passwords.hash(PASSWORD)
    return await changes.create_user(db, generation, CLI, email="User@Localhost", role=Role.MEMBER, password_hash=stored)


@pytest.fixture
def login(db: Database, passwords: Passwords, clock: Clock) -> Login:
    return Login(Accounts(db), RefreshTokens(db), passwords, ACCESS, refresh_lifetime_s=1000, clock=clock)


async def refusal(login: Login, refresh_token: str) -> str:
    with pytest.raises(CredentialInvalid) as refused:
        await login.refresh(refresh_token)
    return refused.value.reason


async def test_whoever_was_stored_in_lower_case_types_their_address_as_they_like(db: Database, passwords: Passwords, login: Login) -> None:
    """Earlier versions lowered every letter. What is ASCII once lowered was another's from the beginning."""
    stored = await passwords.hash(PASSWORD)
    async with db.write() as conn:
        for email in ("m\u00fcller@x.de", "kim@x.de"):
            await users.create(conn, email, Role.MEMBER, stored, 1.0)
        await users.create(conn, "Zo\u00cb@x.de", Role.MEMBER, stored, 1.0)
        await users.create(conn, "zo\u00eb@x.de", Role.MEMBER, None, 1.0)
    for typed in ("M\u00fcller@x.de", " M\u00dcLLER@X.DE ", "m\u00fcller@x.de"):
        assert (await login.prove(typed, PASSWORD)).user.email == "m\u00fcller@x.de"
    assert (await login.prove("Zo\u00cb@x.de", PASSWORD)).user.email == "Zo\u00cb@x.de", "as it is typed comes first"
    with pytest.raises(LoginFailed):
        await login.prove("\u212aim@x.de", PASSWORD)


async def test_login_gives_a_pair_and_stores_only_a_digest(db: Database, login: Login, user: User, clock: Clock) -> None:
    pair = await login.login("  USER@localhost ", PASSWORD)
    assert ACCESS.verify(pair.access_token, clock()).user_id == user.id
    assert pair.expires_in_s == 900
    assert len(pair.refresh_token) >= 43
    assert pair.refresh_token not in repr(pair)
    async with db.read() as conn:
        stored = (await conn.execute(select(refresh_tokens.c.digest))).scalars().all()
    assert [len(d) for d in stored] == [32]
    assert pair.refresh_token.encode() not in stored[0]


async def test_wrong_password_unknown_and_disabled_are_one_error(db: Database, generation: Generation, login: Login, user: User) -> None:
    no_password = await changes.create_user(db, generation, CLI, email="robot@localhost", role=Role.MEMBER)
    for email, password in (
        ("user@localhost", "wrong horse"),
        ("nobody@localhost", PASSWORD),
        ("x" * 300, PASSWORD),
        (no_password.email, ""),
    ):
        with pytest.raises(LoginFailed):
            await login.login(email, password)
    await changes.disable_user(db, generation, CLI, user.id)
    with pytest.raises(LoginFailed):
        await login.login("user@localhost", PASSWORD)


async def test_a_refresh_token_is_good_for_one_use_and_its_second_ends_the_family(login: Login, user: User) -> None:
    first = await login.login(user.email, PASSWORD)
    elsewhere = await login.login(user.email, PASSWORD)
    second = await login.refresh(first.refresh_token)
    third = await login.refresh(second.refresh_token)
    assert await refusal(login, first.refresh_token) == "reused"
    assert await refusal(login, third.refresh_token) == "unknown"
    assert await refusal(login, second.refresh_token) == "unknown"
    await login.refresh(elsewhere.refresh_token)  # another login is another family


async def test_of_two_uses_at_once_one_wins(login: Login, user: User) -> None:
    pair = await login.login(user.email, PASSWORD)
    results = await asyncio.gather(*(login.refresh(pair.refresh_token) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(r, TokenPair) for r in results) == 1
    assert all(isinstance(r, TokenPair | CredentialInvalid) for r in results)


async def test_refresh_tokens_run_out(db: Database, login: Login, user: User, clock: Clock) -> None:
    pair = await login.login(user.email, PASSWORD)
    clock.now_s += 999
    pair = await login.refresh(pair.refresh_token)
    clock.now_s += 1000
    assert await refusal(login, pair.refresh_token) == "expired"
    async with db.write() as conn:
        assert await tokens.purge(conn, clock()) == 2
    assert await refusal(login, "anything") == "unknown"


async def test_a_login_ends_however_often_it_is_refreshed(db: Database, passwords: Passwords, user: User, clock: Clock) -> None:
    login = Login(Accounts(db), RefreshTokens(db), passwords, ACCESS, refresh_lifetime_s=1000, login_lifetime_s=2500, clock=clock)
    pair = await login.login(user.email, PASSWORD)
    for _ in range(3):
        clock.now_s += 800
        pair = await login.refresh(pair.refresh_token)
        async with db.write() as conn:
            await tokens.purge(conn, clock())  # that the first of them is forgotten makes the family no younger
    clock.now_s += 100  # the last one would be good for 900 more
    assert await refusal(login, pair.refresh_token) == "expired"
    async with db.write() as conn:
        await tokens.purge(conn, clock())
        left = (await conn.execute(select(refresh_tokens.c.expires_at))).scalars().all()
    assert left == []  # nothing is kept longer than the login itself
    await login.refresh((await login.login(user.email, PASSWORD)).refresh_token)


async def test_a_shorter_life_holds_at_once(db: Database, login: Login, passwords: Passwords, user: User, clock: Clock) -> None:
    pair = await login.login(user.email, PASSWORD)
    shorter = Login(Accounts(db), RefreshTokens(db), passwords, ACCESS, login_lifetime_s=500, clock=clock)
    clock.now_s += 499
    pair = await shorter.refresh(pair.refresh_token)
    clock.now_s += 1
    assert await refusal(shorter, pair.refresh_token) == "expired"


async def test_a_life_shorter_than_that_of_a_refresh_token(db: Database, passwords: Passwords, user: User, clock: Clock) -> None:
    login = Login(Accounts(db), RefreshTokens(db), passwords, ACCESS, login_lifetime_s=500, clock=clock)
    pair = await login.login(user.email, PASSWORD)
    async with db.read() as conn:
        assert (await conn.execute(select(refresh_tokens.c.expires_at))).scalars().all() == [clock() + 500]
    clock.now_s += 500
    assert await refusal(login, pair.refresh_token) == "expired"


async def _logouts(db: Database) -> list[tuple[str | None, str | None, float]]:
    async with db.read() as conn:
        found, _ = await trail.newest(conn, trail.Wanted(action="logout"))
    return [(entry.actor_user_id, entry.address, entry.at) for entry in found]


async def test_a_logout_that_ended_a_login_is_in_the_audit_log(db: Database, login: Login, user: User, clock: Clock) -> None:
    first = await login.login(user.email, PASSWORD)
    second = await login.refresh(first.refresh_token)
    await login.logout(second.refresh_token, "192.0.2.7")
    assert await _logouts(db) == [(user.id, "192.0.2.7", clock())]
    for text in (second.refresh_token, first.refresh_token, "anything"):  # nobody fills the log with what is over, or never was
        await login.logout(text, "192.0.2.7")
    assert len(await _logouts(db)) == 1
    late = await login.login(user.email, PASSWORD)
    clock.now_s += 1001
    await login.logout(late.refresh_token)
    assert len(await _logouts(db)) == 1, "it had run out"
    stale = await login.login(user.email, PASSWORD)
    await login.refresh(stale.refresh_token)
    await login.logout(stale.refresh_token)  # one that was used before, of a login that goes on
    assert len(await _logouts(db)) == 2
    async with db.read() as conn:
        assert not (await conn.execute(select(refresh_tokens.c.digest).where(refresh_tokens.c.expires_at > clock()))).first()


async def test_a_login_of_a_disabled_user_is_not_logged_out(db: Database, generation: Generation, login: Login, user: User) -> None:
    pair = await login.login(user.email, PASSWORD)
    await changes.disable_user(db, generation, CLI, user.id)
    await login.logout(pair.refresh_token)
    assert await _logouts(db) == []


async def test_logout_ends_the_family(login: Login, user: User) -> None:
    first = await login.login(user.email, PASSWORD)
    second = await login.refresh(first.refresh_token)
    await login.logout(second.refresh_token)
    assert await refusal(login, second.refresh_token) == "unknown"
    await login.logout("anything")


@pytest.mark.parametrize("how", ["reset", "disable", "disable and enable"])
async def test_logins_end_with_the_password_or_the_user(
    db: Database, generation: Generation, login: Login, user: User, passwords: Passwords, how: str
) -> None:
    pair = await login.login(user.email, PASSWORD)
    if how == "reset":
        await changes.reset_password(db, generation, CLI, user.id, password_hash=await passwords.hash("a new password"))
        await login.login(user.email, "a new password")
    else:
        await changes.disable_user(db, generation, CLI, user.id)
    if how == "disable and enable":
        await changes.enable_user(db, generation, CLI, user.id)
    await refusal(login, pair.refresh_token)


async def test_a_login_replaces_a_hash_with_old_parameters(db: Database, login: Login, user: User, clock: Clock) -> None:
    stronger = Passwords(memory_kib=2048, rounds=1)
    better = Login(Accounts(db), RefreshTokens(db), stronger, ACCESS, clock=clock)
    await better.login(user.email, PASSWORD)
    async with db.read() as conn:
        stored = await users.password_hash(conn, user.id)
    assert stored is not None
    assert "m=2048" in stored
    await better.login(user.email, PASSWORD)
    async with db.write() as conn:  # a hash that was replaced meanwhile is not put back
        await users.replace_hash(conn, user.id, "an older hash", "stale")
        assert await users.password_hash(conn, user.id) == stored
    stronger.close()


async def test_a_login_makes_its_address_known_to_that_user(db: Database, login: Login, user: User, clock: Clock) -> None:
    assert not await login.knows(user.email, "192.0.2.1")
    await login.login(user.email, PASSWORD, "192.0.2.1")
    assert await login.knows(" USER@localhost", "192.0.2.1")
    assert not await login.knows(user.email, "192.0.2.2")
    assert not await login.knows("root@localhost", "192.0.2.1")
    assert not await login.knows(user.email, "")
    async with db.read() as conn:
        found = await users.by_id(conn, user.id)
    assert found is not None
    assert found.last_login_at == clock()


async def test_of_many_addresses_the_latest_are_known(db: Database, user: User) -> None:
    async with db.write() as conn:
        for i in range(login_addresses.KEPT_PER_USER + 3):
            await login_addresses.put(conn, user.id, f"a{i}", 100.0 + i)
            await login_addresses.put(conn, user.id, "home", 100.5 + i)
        known = [await login_addresses.has(conn, user.id, address) for address in ("a0", "a3", "a4", "a34", "home")]
    assert known == [False, False, True, True, True]


async def test_first_logins_at_the_same_moment_from_one_address(login: Login, user: User) -> None:
    pairs = await asyncio.gather(*(login.login(user.email, PASSWORD, "192.0.2.1") for _ in range(4)))
    assert len({pair.refresh_token for pair in pairs}) == 4


async def test_a_service_never_logs_in(db: Database, generation: Generation, login: Login, passwords: Passwords) -> None:
    service = await changes.create_service(db, generation, CLI, name="robot", role=Role.MEMBER)
    async with db.write() as conn:  # however a hash came there
        await users.set_password(conn, service.id, await passwords.hash(PASSWORD))
    with pytest.raises(LoginFailed):
        await login.login(service.email, PASSWORD)


async def test_what_was_not_looked_at_is_not_counted(db: Database, user: User, clock: Clock) -> None:
    """A full queue is no wrong password: with it over, the owner is in."""
    passwords = Passwords(memory_kib=64, rounds=1, turns=Turns(max_behind=-1))
    login = Login(Accounts(db), RefreshTokens(db), passwords, ACCESS, clock=clock)
    for _ in range(50):
        with pytest.raises(HasherBusy):
            await login.login(user.email, PASSWORD, "192.0.2.1")
    passwords.turns = Turns()
    await login.login(user.email, PASSWORD, "192.0.2.1")
    passwords.close()


async def test_unknown_tokens_never_wait_for_whoever_writes(db: Database) -> None:
    """Anybody may send some: they must not take the database's one writer, nor the lock that changes wait for."""
    async with db.write() as conn, asyncio.timeout(2):
        await changelog.lock(conn)
        await RefreshTokens(db).revoke(b"unknown")
        with pytest.raises(CredentialInvalid, match="unknown"):
            await RefreshTokens(db).rotate(b"unknown", b"next", 1.0, 2.0, login_lifetime_s=1.0)
