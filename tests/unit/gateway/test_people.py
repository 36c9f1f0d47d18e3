"""Teams, service accounts, users' limits, and what a manager may: decided inside each change, on both databases."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from auth.issuers import USER_PREFIX
from auth.principal import Budget, Limits, Role
from gateway import changes
from gateway.changes import Actor
from gateway.changes.actor import EXTERNAL
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.store import keys, teams, trail, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.live import LiveTables
from gateway.store.teams import Heads, Team
from gateway.store.users import Kind, User

CLI = Actor(None, "cli")
HASH = "$argon2id$v=19$m=1,t=1,p=1$not-a-real-hash"


class House:
    """The change functions with database and counter filled in."""

    def __init__(self, db: Database, generation: Generation) -> None:
        self.db, self.generation = db, generation

    def __getattr__(self, name: str) -> Any:
        function = getattr(changes, name)
        return lambda *args, **kwargs: function(self.db, self.generation, *args, **kwargs)

    async def audit(self) -> list[trail.AuditEntry]:
        async with self.db.read() as conn:
            return await trail.page(conn)

    async def user(self, user_id: str) -> User:
        async with self.db.read() as conn:
            user = await users.by_id(conn, user_id)
        assert user is not None
        return user


@dataclass
class People:
    """Two teams. `manager`, `colleague` (a manager too), `member`, `viewer` and `service` are of `own`; `stranger` is of `other`."""

    own: Team
    other: Team
    admin: User
    manager: User
    colleague: User
    member: User
    viewer: User
    service: User
    stranger: User
    loner: User


@pytest.fixture
def house(db: Database, generation: Generation) -> House:
    return House(db, generation)


@pytest.fixture
async def people(house: House) -> People:
    own, other = await house.create_team(CLI, name="own"), await house.create_team(CLI, name="other")

    async def made(name: str, role: str, team: Team | None) -> User:
        user = await house.create_user(CLI, email=f"{name}@example.com", role=role, team=team and team.id, password_hash=HASH)
        assert isinstance(user, User)
        return user

    return People(
        own,
        other,
        await made("admin", "admin", None),
        await made("manager", "manager", own),
        await made("colleague", "manager", own),
        await made("member", "member", own),
        await made("viewer", "viewer", own),
        await house.create_service(CLI, name="indexer", team="own"),
        await made("stranger", "member", other),
        await made("loner", "manager", None),
    )


def by(user: User, scopes: frozenset[str] | None = None, *, login: bool = True) -> Actor:
    """Someone who has logged in."""
    return Actor(user.id, "api", "192.0.2.1", user.role.scopes if scopes is None else scopes, login)


async def test_teams_come_and_go(house: House, people: People) -> None:
    made = await house.create_team(by(people.admin), name="  Forschung Süd ")
    assert made.name == "Forschung Süd"
    for name in ("Forschung Süd", "forschung süd", "OWN"):
        with pytest.raises(Conflict):
            await house.create_team(CLI, name=name)
    for name in ("", "  ", "x" * 101, "a\nb", "a\x00b"):
        with pytest.raises(InvalidRequest):
            await house.create_team(CLI, name=name)
    entries = len(await house.audit())
    assert (await house.rename_team(CLI, made.id, "Forschung Süd")).name == "Forschung Süd"
    assert len(await house.audit()) == entries, "what changes nothing is not a change"
    assert (await house.rename_team(CLI, made.id, "FORSCHUNG süd")).name == "FORSCHUNG süd", "a team is not in its own way"
    with pytest.raises(Conflict):
        await house.rename_team(CLI, made.id, "Own")
    with pytest.raises(Conflict, match="users of this team"):
        await house.delete_team(CLI, people.other.id)
    await house.delete_team(CLI, made.id)
    for call in (house.delete_team(CLI, made.id), house.rename_team(CLI, made.id, "x")):
        with pytest.raises(NotFound):
            await call
    assert [entry.action for entry in await house.audit()][:3] == ["delete", "rename", "create"]
    async with house.db.read() as conn:
        assert [team.name for team in await teams.page(conn)] == ["other", "own"]
        assert [team.name for team in await teams.page(conn, after="other", limit=1)] == ["own"]
        assert await teams.heads(conn, [people.own.id, people.other.id]) == {people.own.id: Heads(4, 1), people.other.id: Heads(1)}


async def test_a_team_does_not_vanish_under_who_joins_it(house: House, people: People) -> None:
    empty = await house.create_team(CLI, name="empty")
    results = await asyncio.gather(house.set_team(CLI, people.loner.id, empty.id), house.delete_team(CLI, empty.id), return_exceptions=True)
    assert sum(isinstance(result, Conflict | NotFound) for result in results) == 1
    async with house.db.read() as conn:
        team = await teams.by_id(conn, empty.id)
    assert (team is None) == ((await house.user(people.loner.id)).team_id is None)


async def test_a_service_never_logs_in_and_never_manages(house: House, people: People) -> None:
    assert (people.service.email, people.service.kind, people.service.team_id) == ("indexer@service", Kind.SERVICE, people.own.id)
    with pytest.raises(Conflict, match="never logs in"):
        await house.reset_password(CLI, people.service.id, password_hash=HASH)
    for call in (
        house.create_service(CLI, name="robot", role="manager"),
        house.set_role(CLI, people.service.id, "manager"),
        house.create_service(CLI, name="no spaces"),
        house.create_service(CLI, name="-x"),
        house.create_user(CLI, email="robot@service", role="member"),
    ):
        with pytest.raises(InvalidRequest):
            await call
    with pytest.raises(Conflict):
        await house.create_service(CLI, name="Indexer")
    with pytest.raises(NotFound):
        await house.create_service(CLI, name="robot", team="none such")


async def test_a_service_is_not_the_admin_that_remains(house: House, people: People) -> None:
    robot = await house.create_service(CLI, name="robot", role="admin")
    for call in (house.disable_user(CLI, people.admin.id), house.set_role(CLI, people.admin.id, "member")):
        with pytest.raises(Conflict, match="last enabled admin"):
            await call
    assert not (await house.disable_user(CLI, robot.id)).enabled
    async with house.db.read() as conn:
        assert await users.first_admin(conn) == people.admin


async def test_a_user_changes_as_a_whole_or_not_at_all(house: House, people: People) -> None:
    fields = {"name": " Mia ", "role": "viewer", "team": "other", "rpm": 5, "budget": Budget(10**12, "day"), "disabled": True}
    after = await house.update_user(by(people.admin), people.member.id, fields)
    assert (after.name, after.role, after.team_id, after.enabled) == ("Mia", Role.VIEWER, people.other.id, False)
    assert after.limits == Limits(rpm=5, budget=Budget(10**12, "day"))
    assert await house.user(people.member.id) == after
    assert [entry.action for entry in await house.audit()][:4] == ["disable", "set_team", "set_role", "update"]
    shown = (await house.audit())[3].after
    assert (shown["name"], shown["rpm"], shown["budget"]) == ("Mia", 5, "1/day")
    entries = len(await house.audit())
    assert await house.update_user(CLI, people.member.id, fields | {"name": "Mia"}) == after
    assert len(await house.audit()) == entries, "what changes nothing is not a change"
    for bad in ({"rpm": 7, "team": "none such"}, {"rpm": 7, "role": "king"}, {"rpm": 0}, {"name": "x" * 201}, {"rpm": 7, "email": "a@b"}):
        with pytest.raises((NotFound, InvalidRequest)):
            await house.update_user(CLI, people.member.id, bad)
        assert await house.user(people.member.id) == after
    bare = await house.update_user(CLI, people.member.id, {"name": None, "team": None, "rpm": None, "budget": None, "disabled": False})
    assert (bare.name, bare.team_id, bare.limits, bare.enabled) == (None, None, Limits(), True)


async def test_limits_and_team_are_in_force_for_login_tokens(house: House, people: People) -> None:
    live = await LiveTables.load(house.db)
    await house.update_user(CLI, people.member.id, {"rpm": 5, "team": "other"})
    await live.catch_up(house.db)
    record = live.user_by_id(people.member.id)
    assert record is not None
    assert (record.principal.limits, record.principal.team_id) == (Limits(rpm=5), people.other.id)
    assert record.principal.limit_id == people.member.id


async def test_a_manager_manages_the_own_team(house: House, people: People) -> None:
    boss = by(people.manager)
    new = await house.create_user(boss, email="new@example.com", role="member", name="New", limits=Limits(rpm=3))
    assert (new.team_id, new.role, new.limits.rpm) == (people.own.id, Role.MEMBER, 3)
    robot = await house.create_service(boss, name="robot", role="viewer", team="own")
    for user in (new, people.member, people.viewer, robot, people.service):
        changed = await house.update_user(boss, user.id, {"name": "Renamed", "role": "viewer", "rpm": 9, "disabled": True})
        assert (changed.name, changed.role, changed.limits.rpm, changed.enabled) == ("Renamed", Role.VIEWER, 9, False)
        assert (await house.enable_user(boss, user.id)).enabled


@pytest.mark.parametrize("role", ["admin", "manager"])
async def test_a_manager_raises_nobody(house: House, people: People, role: str) -> None:
    boss = by(people.manager)
    for call in (
        house.create_user(boss, email="new@example.com", role=role),
        house.create_service(boss, name="robot", role=role),
        house.set_role(boss, people.member.id, role),
        house.update_user(boss, people.service.id, {"role": role}),
    ):
        with pytest.raises((Forbidden, InvalidRequest)):
            await call
    assert (await house.user(people.member.id)).role == Role.MEMBER


async def test_a_manager_touches_neither_managers_nor_themselves(house: House, people: People) -> None:
    boss = by(people.manager)
    for user in (people.manager, people.colleague):
        for fields in ({"role": "member"}, {"role": "admin"}, {"disabled": True}, {"rpm": None}, {"name": "x"}, {"team": None}):
            with pytest.raises(Forbidden):
                await house.update_user(boss, user.id, fields)
        assert await house.user(user.id) == user


async def test_what_is_of_another_team_is_not_there_for_a_manager(house: House, people: People) -> None:
    boss = by(people.manager)
    for user in (people.stranger, people.admin, people.loner):
        for fields in ({"role": "viewer"}, {"disabled": True}, {"team": "own"}, {}):
            with pytest.raises(NotFound, match="no such user"):
                await house.update_user(boss, user.id, fields)
    for team in ("other", people.other.id, "none such"):
        with pytest.raises(NotFound, match="no such team"):
            await house.create_user(boss, email="new@example.com", role="member", team=team)


async def test_a_manager_moves_nobody_and_makes_no_teams(house: House, people: People) -> None:
    boss = by(people.manager)
    for team in ("own", "other", None):
        with pytest.raises(Forbidden):
            await house.set_team(boss, people.member.id, team)
    for call in (
        house.create_team(boss, name="mine"),
        house.rename_team(boss, people.own.id, "mine"),
        house.delete_team(boss, people.own.id),
    ):
        with pytest.raises(Forbidden):
            await call


async def test_a_manager_knows_nobodys_password(house: House, people: People) -> None:
    """Else the member who becomes an admin is an admin whose password the manager knows."""
    boss = by(people.manager)
    with pytest.raises(Forbidden):
        await house.create_user(boss, email="new@example.com", role="member", password_hash=HASH)
    for user in (people.member, people.viewer, people.service, people.colleague, people.stranger):
        with pytest.raises(Forbidden):
            await house.reset_password(boss, user.id, password_hash=HASH)


@pytest.mark.parametrize("role", ["manager", "admin"])
async def test_a_password_that_a_manager_may_know_does_not_survive_being_raised(house: House, people: People, role: str) -> None:
    link = await house.issue_password_link(by(people.manager), people.member.id)
    await changes.use_password_link(house.db, house.generation, token=link.token, password_hash=HASH)  # by the manager themselves
    await house.set_role(CLI, people.member.id, role)
    async with house.db.read() as conn:
        assert await users.password_hash(conn, people.member.id) is None
        assert await users.password_hash(conn, people.admin.id) == HASH


@pytest.mark.parametrize("role", ["manager", "admin"])
async def test_who_is_raised_logs_in_again(house: House, people: People, role: str) -> None:
    assert (await house.set_role(CLI, people.member.id, role)).token_epoch == people.member.token_epoch + 1
    assert (await house.set_role(CLI, people.member.id, "viewer")).token_epoch == people.member.token_epoch + 1
    assert (await house.set_role(CLI, people.member.id, "member")).token_epoch == people.member.token_epoch + 1


async def test_the_powers_of_a_manager_need_a_login_a_team_and_the_role_now(house: House, people: People) -> None:
    actors = {
        "a key": by(people.manager, login=False),
        "no team": by(people.loner),
        "a member": by(people.member),
        "a viewer": by(people.viewer),
        "a service": by(people.service),
        "nobody": Actor(None, "api", login=True),
        "unknown": Actor("usr_none", "api", login=True),
    }
    calls: dict[str, Callable[[Actor], Awaitable[User]]] = {
        "create": lambda actor: house.create_user(actor, email="new@example.com", role="viewer"),
        "service": lambda actor: house.create_service(actor, name="robot"),
        "update": lambda actor: house.update_user(actor, people.viewer.id, {"disabled": True}),
        "oneself": lambda actor: house.update_user(actor, actor.user_id or "", {"rpm": None}),
    }
    for who, actor in actors.items():
        for what, call in calls.items():
            with pytest.raises(Forbidden):
                pytest.fail(f"{who}: {what}: {await call(actor)}")
    boss = by(people.manager)
    await house.set_role(CLI, people.manager.id, "member")
    with pytest.raises(Forbidden):  # although the token was of a manager
        await house.disable_user(boss, people.viewer.id)
    await house.set_role(CLI, people.manager.id, "manager")
    await house.set_team(CLI, people.manager.id, "other")
    with pytest.raises(NotFound):
        await house.disable_user(boss, people.viewer.id)
    await house.disable_user(CLI, people.manager.id)
    with pytest.raises(Forbidden):
        await house.disable_user(boss, people.stranger.id)


async def test_whom_a_trusted_issuer_vouches_for_has_what_the_token_says(house: House, people: People) -> None:
    assert EXTERNAL == USER_PREFIX
    admin = Actor("ext_0123456789abcdef", "api", None, Role.ADMIN.scopes, login=True)
    assert (await house.create_user(admin, email="new@example.com", role="viewer")).role == Role.VIEWER
    assert (await house.audit())[0].actor_user_id == admin.user_id
    for actor in (
        Actor(admin.user_id, "api", None, Role.MANAGER.scopes, login=True),
        Actor(admin.user_id, "api", None, None, login=True),
        Actor(admin.user_id, "api", None, Role.ADMIN.scopes, login=False),
    ):
        with pytest.raises(Forbidden):
            await house.disable_user(actor, people.viewer.id)


async def test_own_password_with_a_login_only(house: House, people: People) -> None:
    assert (await house.reset_password(by(people.member), people.member.id, password_hash="new")).token_epoch == 1
    with pytest.raises(Forbidden):
        await house.reset_password(by(people.member, login=False), people.member.id, password_hash="new")


async def test_search_finds_parts_of_addresses_and_names_as_they_are(house: House, people: People) -> None:
    await house.update_user(CLI, people.member.id, {"name": "Jo_e 100% Kim"})
    await house.update_user(CLI, people.viewer.id, {"name": "Éva 김민지"})

    async def found(**wanted: Any) -> list[str]:
        async with house.db.read() as conn:
            return [user.email.partition("@")[0] for user in await users.page(conn, **wanted)]

    assert await found(search="EXAMPLE.com", limit=2) == ["admin", "colleague"]
    assert await found(search="example.com", after="colleague@example.com", limit=2) == ["loner", "manager"]
    assert await found(search="0% k") == ["member"]
    assert await found(search="o_e") == ["member"]
    assert await found(search="o%e") == []
    assert await found(search="Éva") == ["viewer"]
    assert await found(search="민지") == ["viewer"]
    assert await found(team_id=people.own.id, kind=Kind.SERVICE) == ["indexer"]
    assert await found(team_id=people.other.id) == ["stranger"]
    assert await found(team_id="") == [], "nobody is of no team by way of the empty id"


async def test_the_longest_description_fits_into_the_index_that_searches_look_through(house: House, people: People) -> None:
    rng = random.Random(1)
    long = "".join(chr(rng.randrange(0x20000, 0x2A000)) for _ in range(1000))  # four bytes each, and nothing to compress
    key = keys.ApiKey("k3v9x0q2m7ab", people.member.id, long[:200], ("*",), ("inference",), Limits(), 1.0, description=long)
    async with house.db.write() as conn:
        await keys.insert_key(conn, key, b"d" * 32)
    async with house.db.read() as conn:
        for words in (long[100:110], long[200:210], "sk-gw-K3V9", "member@EXAMPLE"):
            assert [found.key for found in await keys.page(conn, search=words)] == [key], words
        assert await keys.page(conn, search="no such") == []
