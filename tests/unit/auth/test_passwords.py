from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from auth.errors import HasherBusy, PasswordUnsuitable
from auth.passwords import Passwords
from auth.turns import Turns

GOOD = "correct horse"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    service = Passwords()
    yield service
    service.close()


async def test_a_hash_is_argon2id_with_the_stated_parameters(passwords: Passwords) -> None:
    stored = await passwords.hash(GOOD)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(GOOD, stored) == (True, None)
    assert await passwords.verify("wrong horse", stored) == (False, None)


async def test_a_hash_with_older_parameters_is_replaced_at_login(passwords: Passwords) -> None:
    cheap = Passwords(memory_kib=1024, rounds=1)
    old = await cheap.hash(GOOD)
    cheap.close()
    matches, newer = await passwords.verify(GOOD, old)
    assert matches
    assert newer is not None
    assert newer.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(GOOD, newer) == (True, None)
    assert await passwords.verify("wrong horse", old) == (False, None)


async def test_an_unknown_user_costs_a_hash_too(passwords: Passwords) -> None:
    stored = await passwords.hash(GOOD)
    await passwords.verify(GOOD, None)  # makes the decoy

    async def cpu_s(hash_or_none: str | None) -> float:
        """The least of some: of this process, all threads."""
        found = []
        for _ in range(4):
            started = time.process_time()
            assert await passwords.verify("wrong horse", hash_or_none) == (False, None)
            found.append(time.process_time() - started)
        return min(found)

    known, unknown = await cpu_s(stored), await cpu_s(None)
    assert unknown > known / 3


@pytest.mark.parametrize("stored", ["", "plain text", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$broken"])
async def test_what_is_not_an_argon2_hash_matches_nothing(passwords: Passwords, stored: str) -> None:
    assert await passwords.verify(GOOD, stored) == (False, None)


async def test_unsuitable_passwords(passwords: Passwords) -> None:
    for password in ("short", "x" * 1025, "가" * 400):
        with pytest.raises(PasswordUnsuitable):
            await passwords.hash(password)
    stored = await passwords.hash("가나다라마바사아")
    assert await passwords.verify("가나다라마바사아", stored) == (True, None)
    assert await passwords.verify("x" * 100_000, stored) == (False, None)


async def test_one_hash_at_a_time_and_a_bounded_queue() -> None:
    passwords = Passwords(memory_kib=1024, rounds=1, turns=Turns(max_behind=2))
    before = threading.active_count()
    results = await asyncio.gather(*(passwords.verify(GOOD, None) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(r, HasherBusy) for r in results) == 7  # one at work, two waiting
    assert threading.active_count() - before <= 1
    assert await passwords.verify(GOOD, None) == (False, None)  # the queue is free again
    passwords.close()


async def test_strangers_do_not_stand_before_who_is_ahead() -> None:
    passwords = Passwords(memory_kib=64, rounds=1, turns=Turns(max_behind=3, share=0.00001, burst_s=0.0))
    stored = await passwords.hash(GOOD)  # of somebody who has proven who they are: ahead as well
    strangers = [asyncio.create_task(passwords.verify("wrong horse", stored)) for _ in range(4)]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(passwords.verify(GOOD, stored, ahead=True), 4) == (True, None)
    assert not all(task.done() for task in strangers)
    passwords.close()
    for task in strangers:
        task.cancel()
    await asyncio.gather(*strangers, return_exceptions=True)


async def test_a_common_password_is_refused_and_the_users_own_e_mail(passwords: Passwords) -> None:
    for password, email in (("Password123!", ""), ("dana@example.com", "dana@example.com")):
        with pytest.raises(PasswordUnsuitable):
            await passwords.hash(password, email=email)
