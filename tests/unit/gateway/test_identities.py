"""What logins through a provider change, on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from auth.principal import Role
from auth.provider import Identity
from gateway.changes import Actor, admit_identity, create_service, create_user, disable_user, issue_login_code, take_login_code
from gateway.errors import Forbidden, InvalidRequest
from gateway.store import changelog, identities, login_codes, tokens, trail, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.login_codes import LoginCode

INIT, NOBODY = Actor(None, "init"), Actor(None, "api", "192.0.2.7")
DANA = Identity("https://id.example.com", "1", "dana@example.com", "Dana", Role.MEMBER)


async def test_one_person_is_made_once_by_many_at_once(db: Database, generation: Generation) -> None:
    made = await asyncio.gather(*(admit_identity(db, generation, NOBODY, DANA, link_by_email=False) for _ in range(5)))
    assert len({user.id for user in made}) == 1
    async with db.read() as conn:
        entries = [(entry.action, entry.address) for entry in await trail.page(conn, limit=10)]
        assert await changelog.latest(conn) == generation.change
    assert sorted(entries) == [("create", "192.0.2.7"), ("link_identity", "192.0.2.7")]


async def test_a_usual_login_changes_nothing(db: Database, generation: Generation) -> None:
    await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    before = generation.change
    await admit_identity(db, generation, NOBODY, replace(DANA, email=None, name="Other"), link_by_email=False)
    async with db.read() as conn:
        assert len(await trail.page(conn, limit=10)) == 2
    assert generation.change == before


async def test_who_is_linked_without_a_role_keeps_the_local_one(db: Database, generation: Generation) -> None:
    admin = await create_user(db, generation, INIT, email=str(DANA.email), role="admin")
    linked = await admit_identity(db, generation, NOBODY, replace(DANA, role=None), link_by_email=True)
    assert (linked.id, linked.role) == (admin.id, Role.ADMIN)
    again = await admit_identity(db, generation, NOBODY, DANA, link_by_email=True)  # the provider maps them for the first time
    assert again.role == Role.ADMIN
    async with db.read() as conn:
        known = await identities.find(conn, DANA.issuer, DANA.subject)
    assert known is not None and known.role == Role.MEMBER


async def test_a_change_at_the_provider_ends_logins(db: Database, generation: Generation) -> None:
    user = await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    async with db.write() as conn:
        await tokens.add(conn, b"d" * 32, family="f", user_id=user.id, token_epoch=user.token_epoch, began_at=1, expires_at=2)
    raised = await admit_identity(db, generation, NOBODY, replace(DANA, role=Role.MANAGER), link_by_email=False)
    assert (raised.role, raised.token_epoch) == (Role.MANAGER, user.token_epoch + 1)
    async with db.read() as conn:
        assert await tokens.find(conn, b"d" * 32) is None
    for _ in range(2):
        with pytest.raises(Forbidden):
            await admit_identity(db, generation, NOBODY, replace(DANA, role=None), link_by_email=False)
    async with db.read() as conn:
        out = await users.by_id(conn, user.id)
        assert out is not None and out.token_epoch > raised.token_epoch


async def test_who_is_disabled_or_a_service_is_refused_here_already(db: Database, generation: Generation) -> None:
    user = await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    await disable_user(db, generation, INIT, user.id)
    for role in (Role.MEMBER, Role.ADMIN):  # also where something would have to be changed
        with pytest.raises(Forbidden, match="disabled"):
            await admit_identity(db, generation, NOBODY, replace(DANA, role=role), link_by_email=True)
    service = await create_service(db, generation, INIT, name="robot", role="member")
    async with db.write() as conn:
        await identities.add(conn, DANA.issuer, "2", service.id, Role.MEMBER, 1)
    with pytest.raises(Forbidden, match="disabled"):
        await admit_identity(db, generation, NOBODY, replace(DANA, subject="2"), link_by_email=True)


async def test_subjects_of_two_issuers_are_two(db: Database, generation: Generation) -> None:
    one = await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    elsewhere = replace(DANA, issuer="https://other.example.com")
    with pytest.raises(Forbidden):
        await admit_identity(db, generation, NOBODY, elsewhere, link_by_email=False)
    other = await admit_identity(db, generation, NOBODY, replace(elsewhere, email="else@example.com"), link_by_email=False)
    assert one.id != other.id


@pytest.mark.parametrize(
    "email", ["\u212aim@example.com", "kim@\u212anut.example.com", "\xa0kim@knut.example.com", "kim@example.com\u3000"]
)
async def test_an_email_that_becomes_another_by_lowering_it_opens_no_account(db: Database, generation: Generation, email: str) -> None:
    """The Kelvin sign is a "k" once lowered, and more than a space is stripped: whoever has such an address has not the one it becomes."""
    for known in ("kim@example.com", "kim@knut.example.com"):
        await create_user(db, generation, INIT, email=known, role="admin")
    assert email.strip().lower() in ("kim@example.com", "kim@knut.example.com")
    with pytest.raises(Forbidden, match="vouch"):
        await admit_identity(db, generation, NOBODY, replace(DANA, email=email), link_by_email=True)
    async with db.read() as conn:
        assert await identities.find(conn, DANA.issuer, DANA.subject) is None
        assert await users.by_email(conn, email) is None
        assert await users.by_email(conn, " Kim@EXAMPLE.com ") is not None
    with pytest.raises(InvalidRequest) as refused:
        await create_user(db, generation, INIT, email=email, role="member")
    assert refused.value.param == "email"
    assert "ASCII" in refused.value.message


async def test_whose_address_is_not_ascii_already_goes_on(db: Database, generation: Generation) -> None:
    """Made before such addresses were refused, and stored in lower case."""
    async with db.write() as conn:
        await users.create(conn, "zoë@example.com", Role.MEMBER, None, 1.0)
        assert await users.by_email(conn, " zoë@example.com") is not None
        assert await users.by_email(conn, "ZOË@example.com") is None
    with pytest.raises(Forbidden):  # whoever types it has a password to show; whom a provider vouches for has this address, not that one
        await admit_identity(db, generation, NOBODY, replace(DANA, email="ZOË@example.com"), link_by_email=True)


@pytest.mark.parametrize("email", ["no address", "a@b c", "robot@service", "x@y@z", "a@"])
async def test_emails_that_are_none(db: Database, generation: Generation, email: str) -> None:
    with pytest.raises(Forbidden):
        await admit_identity(db, generation, NOBODY, replace(DANA, email=email), link_by_email=True)


async def test_codes(db: Database, generation: Generation) -> None:
    user = await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    wanted = LoginCode(user.id, 3, "challenge")
    code = await issue_login_code(db, wanted, 60)
    assert await take_login_code(db, code.replace(".3", ".4")) is None  # an epoch cannot be exchanged for another
    assert await take_login_code(db, "another") is None
    taken = await asyncio.gather(*(take_login_code(db, code) for _ in range(5)))
    assert [found for found in taken if found] == [wanted]
    assert await take_login_code(db, await issue_login_code(db, wanted, -1)) is None


async def test_codes_that_ran_out_are_forgotten(db: Database, generation: Generation) -> None:
    user = await admit_identity(db, generation, NOBODY, DANA, link_by_email=False)
    async with db.write() as conn:
        old = await login_codes.add(conn, LoginCode(user.id, 0, "c"), 0, 60)
        new = await login_codes.add(conn, LoginCode(user.id, 0, "c"), 61, 121)
        assert await login_codes.take(conn, old, 1) is None
        assert await login_codes.take(conn, new, 62) == LoginCode(user.id, 0, "c")
