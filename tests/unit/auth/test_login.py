"""What a flood of strangers costs, and that whoever is known passes it by. The real parts, over accounts in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import pytest

from auth.errors import HasherBusy, LoginDelayed, LoginFailed
from auth.known import REFRESH_S, Known
from auth.login import Login
from auth.passwords import Passwords
from auth.ports import Account, RefreshGrant, UserRecord
from auth.principal import Principal, Role
from auth.tokens import AccessTokens
from auth.turns import Turns

OWNER, HOME, RIGHT = "owner@example.com", "192.0.2.1", "correct horse"


class Accounts:
    """One account, and how often the database was asked for any."""

    def __init__(self, stored: str) -> None:
        record = UserRecord("usr_1", OWNER, Role.MEMBER, Principal("usr_1", Role.MEMBER, Role.MEMBER.scopes))
        self._account, self._stored = record, stored
        self.logins: list[tuple[float, str, str]] = []
        self.asked = self.asked_since = 0

    async def account_by_email(self, email: str, address: str = "") -> Account | None:
        self.asked += 1
        known = any((e, a) == (OWNER, address) for _, e, a in self.logins)
        return Account(self._account, self._stored, known) if email.strip().lower() == OWNER else None

    async def logged_in_since(self, at: float) -> Iterable[tuple[str, str]]:
        self.asked_since += 1
        return [(email, address) for when, email, address in self.logins if when >= at]

    async def account_by_id(self, user_id: str) -> Account | None:
        return None

    async def save_rehash(self, user_id: str, old_hash: str, new_hash: str) -> None:
        raise AssertionError("nothing is old here")


class RefreshTokens:
    async def add(self, digest: bytes, grant: RefreshGrant, now_s: float, expires_at: float, address: str = "") -> None:
        pass

    async def rotate(
        self, old: bytes, new: bytes, now_s: float, expires_at: float, address: str = "", *, login_lifetime_s: float
    ) -> RefreshGrant:
        raise AssertionError

    async def revoke(self, digest: bytes) -> None:
        raise AssertionError

    async def end(self, digest: bytes, now_s: float, address: str = "") -> None:
        raise AssertionError


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    service = Passwords(memory_kib=64, rounds=1, turns=Turns(max_behind=2))
    yield service
    service.close()


@pytest.fixture
async def accounts(passwords: Passwords) -> Accounts:
    return Accounts(await passwords.hash(RIGHT))


@pytest.fixture
def login(accounts: Accounts, passwords: Passwords, clock: Clock) -> Login:
    return Login(accounts, RefreshTokens(), passwords, AccessTokens(bytes(range(32))), clock=clock)


async def outcome(login: Login, email: str, password: str, address: str) -> str:
    try:
        await login.login(email, password, address)
    except (LoginFailed, LoginDelayed, HasherBusy) as error:
        return error.reason
    return "in"


async def test_refused_strangers_cost_no_look_into_the_database(login: Login, accounts: Accounts, clock: Clock) -> None:
    told = [await outcome(login, OWNER, f"guess {i}", f"198.51.{i // 250}.{i % 250}") for i in range(500)]
    assert told[:20] == ["password"] * 20
    assert told.count("delayed") > 470
    assert accounts.asked == told.count("password") < 30
    assert accounts.asked_since == 1


async def test_the_owner_at_home_passes_them_by(login: Login, accounts: Accounts, clock: Clock) -> None:
    """Learned of a login that another process let in, though strangers keep the account's wait at its longest."""
    for i in range(300):
        await outcome(login, OWNER, "guess", f"198.51.100.{i}")
    assert await outcome(login, OWNER, RIGHT, HOME) == "delayed"
    accounts.logins.append((clock.now_s, OWNER, HOME))
    clock.now_s += REFRESH_S
    while await outcome(login, OWNER, "guess", "198.51.100.7") != "delayed":
        pass
    assert await outcome(login, " Owner@Example.com ", RIGHT, HOME) == "in"
    assert await outcome(login, OWNER, "wrong", HOME) == "password"


async def test_a_full_queue_of_strangers_is_not_the_owners(login: Login, accounts: Accounts, passwords: Passwords, clock: Clock) -> None:
    accounts.logins.append((clock.now_s, OWNER, HOME))
    busy = [asyncio.create_task(outcome(login, f"user{i}@example.com", "guess", f"198.51.100.{i}")) for i in range(12)]
    owner = asyncio.create_task(outcome(login, OWNER, RIGHT, HOME))
    told = await asyncio.gather(*busy)
    assert told.count("busy") >= 5
    assert await owner == "in"
    assert await outcome(login, "user11@example.com", "guess", "198.51.100.11") == "unknown"  # what was not looked at was not counted


async def test_a_login_here_is_known_at_once(login: Login, accounts: Accounts, clock: Clock) -> None:
    assert await login.knows(OWNER, HOME) is False
    asked = accounts.asked
    assert asked == 0  # a stranger: no need to ask
    assert await outcome(login, OWNER, RIGHT, HOME) == "in"
    accounts.logins.append((clock.now_s, OWNER, HOME))  # as the store has written it
    assert await login.knows(OWNER.upper(), HOME) is True


async def test_an_address_that_is_not_known_is_nobodys(login: Login, accounts: Accounts) -> None:
    """Whoever makes proxies' headers disagree comes from there, too: nobody is let ahead because the owner once did."""
    assert await outcome(login, OWNER, RIGHT, "") == "in"
    accounts.asked = 0
    assert await login.knows(OWNER, "") is False
    assert accounts.asked == 0
    told = await asyncio.gather(*(outcome(login, OWNER, "guess", "") for _ in range(30)))
    assert accounts.asked <= 4  # as for other strangers
    assert set(told) <= {"password", "busy", "delayed"}
    for _ in range(12):
        told.append(await outcome(login, OWNER, "guess", ""))
    assert told[-1] == "delayed"  # and they wait like any other


async def test_the_filter_forgets_nobody_and_takes_few_for_known(accounts: Accounts) -> None:
    known = Known(accounts)
    for i in range(50_000):
        known.add(f"user{i}@example.com", HOME)
    assert all((f"user{i}@example.com", HOME) in known for i in range(50_000))
    assert sum((f"stranger{i}@example.com", HOME) in known for i in range(20_000)) < 20


async def test_a_store_that_fails_is_asked_again(accounts: Accounts, clock: Clock) -> None:
    class Failing(Accounts):
        async def logged_in_since(self, at: float) -> Iterable[tuple[str, str]]:
            self.asked_since += 1
            if self.asked_since == 1:
                raise ConnectionError
            return [(OWNER, HOME)]

    known = Known(Failing(""), clock)
    with pytest.raises(ConnectionError):
        await known.follow()
    await known.follow()
    assert (OWNER, HOME) in known
