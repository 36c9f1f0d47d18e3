"""A credential gives no more than it carries, and what it carries is read again where something is changed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from auth.principal import SCOPES, Budget, Limits, Role
from gateway import changes
from gateway.changes import Actor, Grant
from gateway.changes.bounds import wider
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.store import keys, trail, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.keys import ApiKey
from gateway.store.tables import api_keys
from gateway.store.users import User

CLI = Actor(None, "cli")
HOME = "192.0.2.1"
ALL = tuple(sorted(SCOPES))


class House:
    """The change functions with database and counter filled in."""

    def __init__(self, db: Database, generation: Generation) -> None:
        self.db, self.generation = db, generation

    def __getattr__(self, name: str) -> Any:
        function = getattr(changes, name)
        return lambda *args, **kwargs: function(self.db, self.generation, *args, **kwargs)

    async def key(self, key_id: str) -> ApiKey:
        async with self.db.read() as conn:
            key = await keys.by_id(conn, key_id)
        assert key is not None
        return key

    async def user(self, user_id: str) -> User:
        async with self.db.read() as conn:
            user = await users.by_id(conn, user_id)
        assert user is not None
        return user

    async def person(self, name: str, role: str, team: str | None = None, **more: Any) -> User:
        user = await self.create_user(CLI, email=f"{name}@example.com", role=role, team=team, password_hash="hash", **more)
        assert isinstance(user, User)
        return user

    async def acting(self, owner: User, **fields: Any) -> Actor:
        """With a key of this user."""
        issued = await self.create_key(CLI, name="acting", owner_id=owner.id, **({"scopes": sorted(owner.role.scopes)} | fields))
        return Actor(owner.id, "api", HOME, frozenset(issued.scopes) & owner.role.scopes, key_id=issued.id)


@pytest.fixture
def house(db: Database, generation: Generation) -> House:
    return House(db, generation)


@pytest.fixture
async def admin(house: House) -> User:
    return await house.person("admin", "admin")


@pytest.fixture
async def member(house: House, admin: User) -> User:
    await house.create_team(CLI, name="own")
    return await house.person("member", "member", "own")


@pytest.fixture
async def boss(house: House, member: User) -> Actor:
    manager = await house.person("manager", "manager", "own")
    return logged_in(manager)


def logged_in(user: User) -> Actor:
    return Actor(user.id, "api", HOME, user.role.scopes, login=True, epoch=user.token_epoch)


# What a credential carries is read again.


@pytest.mark.parametrize("how", ["revoked", "run out", "narrowed", "from elsewhere", "not theirs", "no such key", "nonsense"])
async def test_a_key_that_ended_meanwhile_changes_nothing(house: House, admin: User, member: User, how: str) -> None:
    me = await house.acting(admin)
    assert me.key_id is not None
    assert await house.create_team(me, name="before")
    if how == "revoked":
        await house.revoke_key(CLI, me.key_id)
    elif how == "narrowed":
        await house.update_key(CLI, me.key_id, {"scopes": ["inference", "usage", "metrics"]})
    elif how == "from elsewhere":
        await house.update_key(CLI, me.key_id, {"networks": ["198.51.100.0/24"]})
    elif how == "not theirs":
        me = replace(me, key_id=(await house.acting(member)).key_id)
    elif how == "no such key":
        me = replace(me, key_id="nosuchkey000")
    else:
        values: dict[str, Any] = {"expires_at": time.time() - 1} if how == "run out" else {"networks": ("nonsense",)}
        async with house.db.write() as conn:
            await conn.execute(update(api_keys).where(api_keys.c.id == me.key_id).values(values))
    for attempt in (
        house.create_team(me, name="after"),
        house.set_role(me, member.id, "viewer"),
        house.create_key(me, name="k"),
        house.reset_password(me, admin.id, password_hash="x"),
    ):
        with pytest.raises(Forbidden):
            await attempt


async def test_a_key_keeps_what_it_still_carries(house: House, admin: User) -> None:
    me = await house.acting(admin)
    assert me.key_id is not None
    await house.update_key(CLI, me.key_id, {"scopes": ["admin", "inference"], "networks": ["192.0.2.0/24"]})
    assert (await house.create_key(me, name="k", networks=[HOME])).id
    assert (await house.create_key(me, name="k", networks=[HOME], scopes=["usage"])).id, "an admin's key makes keys of any scope"
    with pytest.raises(Forbidden, match="key that you act with"):
        await house.create_key(me, name="k")


async def test_a_login_that_ended_meanwhile_changes_nothing(house: House, admin: User, member: User) -> None:
    me, theirs = logged_in(admin), logged_in(member)
    own = await house.create_key(CLI, name="own", owner_id=member.id)
    await house.reset_password(CLI, admin.id, password_hash="new")
    await house.reset_password(CLI, member.id, password_hash="new")
    for attempt in (house.create_team(me, name="t"), house.create_key(me, name="k"), house.reset_password(me, admin.id, password_hash="x")):
        with pytest.raises(Forbidden):
            await attempt
    for attempt in (house.rotate_key(theirs, own.id), house.revoke_key(theirs, own.id)):
        with pytest.raises((Forbidden, NotFound)):
            await attempt
    assert await house.create_team(logged_in(await house.user(admin.id)), name="t")


# A key gives no more than it carries.

_IN_A_DAY = time.time() + 86_400
NARROWED: dict[str, dict[str, Any]] = {
    "networks": {"networks": ["192.0.2.0/24", "2001:db8::/32"]},
    "expires_at": {"expires_at": _IN_A_DAY},
    "models": {"models": ["chat-*", "embed"]},
}
WIDER: dict[str, list[dict[str, Any]]] = {
    "networks": [{}, {"networks": ["192.0.0.0/16"]}, {"networks": [HOME, "198.51.100.1"]}, {"networks": ["2001:db9::1"]}],
    "expires_at": [{}, {"expires_at": _IN_A_DAY + 1}],
    "models": [{}, {"models": ["c*"]}, {"models": ["chat-1", "other"]}, {"models": ["[ce]mbed"]}, {"models": ["*-chat"]}],
}
WITHIN: dict[str, list[dict[str, Any]]] = {
    "networks": [{"networks": [HOME]}, {"networks": ["192.0.2.0/25", "192.0.2.128/25", "2001:db8:1::/48"]}],
    "expires_at": [{"expires_at": _IN_A_DAY}, {"expires_at": _IN_A_DAY - 3600}],
    "models": [{"models": ["embed", "chat-*"]}, {"models": ["chat-1"]}, {"models": ["chat-small-*"]}],
}


@pytest.mark.parametrize("what", sorted(NARROWED))
async def test_a_narrowed_key_makes_and_changes_keys_within_its_own_bounds(house: House, admin: User, member: User, what: str) -> None:
    me = await house.acting(admin, **NARROWED[what])
    text = "imported-key-of-forty-characters-01234567"
    for fields in WIDER[what]:
        for owner in (admin.id, member.id):
            with pytest.raises(Forbidden, match="key that you act with"):
                await house.create_key(me, name="k", owner_id=owner, **fields)
        with pytest.raises(Forbidden, match="key that you act with"):
            await house.import_key(me, text, Grant("k", **fields))
        assert me.key_id is not None
        full = {"models": ["*"], "networks": [], "expires_at": None}
        with pytest.raises(Forbidden, match="key that you act with"):  # its own row too
            await house.update_key(me, me.key_id, {what: (full | fields)[what]})
    for fields in WITHIN[what]:
        made = await house.create_key(me, name="k", owner_id=member.id, **fields)
        with pytest.raises(Forbidden, match="key that you act with"):
            await house.update_key(me, made.id, {what: full[what]})
        assert (await house.update_key(me, made.id, {"rpm": 5, "description": "x"})).limits.rpm == 5
        assert (await house.rotate_key(me, made.id)).key


@pytest.mark.parametrize("what", sorted(NARROWED))
async def test_a_narrowed_key_learns_the_text_of_no_key_that_reaches_further(house: House, admin: User, member: User, what: str) -> None:
    """Neither of its own owner's: whoever has found the one has not found the other."""
    me = await house.acting(admin, **NARROWED[what])
    for owner in (admin, member):
        wide = await house.create_key(CLI, name="wide", owner_id=owner.id, scopes=["inference"])
        with pytest.raises(Forbidden):
            await house.rotate_key(me, wide.id)
        assert (await house.update_key(me, wide.id, {"rpm": 1})).limits.rpm == 1  # gives nothing
    assert me.key_id is not None
    assert (await house.rotate_key(me, me.key_id)).id == me.key_id
    assert (await house.rotate_key(logged_in(admin), me.key_id)).id == me.key_id


@pytest.mark.parametrize("what", sorted(NARROWED))
async def test_a_narrowed_key_opens_no_login(house: House, admin: User, member: User, what: str) -> None:
    me = await house.acting(admin, **NARROWED[what])
    away, robot = await house.person("away", "admin"), await house.create_service(CLI, name="away")
    for one in (away, robot):
        await house.disable_user(me, one.id)
    for attempt in (
        house.create_user(me, email="new@example.com", role="member", password_hash="x"),
        house.create_user(me, email="new@example.com", role="member"),  # a provider may vouch for this address
        house.create_user(me, email="new@example.com", role="admin"),
        house.create_user(me, email="new@example.com", role="manager"),
        house.enable_user(me, away.id),
        house.create_service(me, name="robot", role="admin"),
        house.set_role(me, member.id, "manager"),
        house.set_role(me, member.id, "admin"),
        house.reset_password(me, member.id, password_hash="x"),
        house.reset_password(me, admin.id, password_hash="x"),
        house.issue_password_link(me, member.id),
    ):
        with pytest.raises(Forbidden, match="bound to networks, models or an expiry"):
            await attempt
    assert (await house.create_service(me, name="robot", role="member")).role == Role.MEMBER
    assert (await house.enable_user(me, robot.id)).enabled
    assert (await house.enable_user(me, member.id)).enabled, "they were: nothing changes"
    assert (await house.set_role(me, member.id, "viewer")).role == Role.VIEWER


async def test_a_whole_admin_key_may_everything(house: House, admin: User, member: User) -> None:
    me = await house.acting(admin)
    assert (await house.create_user(me, email="new@example.com", role="admin", password_hash="x")).role == Role.ADMIN
    assert (await house.issue_password_link(me, member.id)).token
    assert (await house.reset_password(me, member.id, password_hash="x")).id == member.id
    issued = await house.create_key(me, name="k", scopes=tuple(sorted(Role.ADMIN.scopes)), networks=["10.0.0.0/8"], expires_at=_IN_A_DAY)
    assert (await house.update_key(me, issued.id, {"networks": [], "expires_at": None})).networks == ()
    assert (await house.rotate_key(me, issued.id)).key
    assert (await house.set_role(me, member.id, "admin")).role == Role.ADMIN


def test_which_of_two_reaches_further() -> None:
    def key(models: tuple[str, ...] = ("*",), networks: tuple[str, ...] = (), ends: float | None = None, **limits: Any) -> ApiKey:
        return ApiKey("id", "usr", "n", models, ("inference",), Limits(**limits), 1.0, ends, networks=networks)

    names = ("models", "networks", "expires_at", "rpm", "tpm", "concurrency", "budget")
    same = key(("a", "b*"), ("10.0.0.0/8",), 5.0, rpm=5, budget=Budget(5, "day"))
    assert wider(names, same, same) is None
    assert wider(names, key(), same) is None
    assert wider(names, same, key()) == "models"
    for before, after, what in (
        (key(ends=5.0), key(ends=6.0), "expires_at"),
        (key(rpm=5), key(rpm=6), "rpm"),
        (key(rpm=5), key(), "rpm"),
        (key(budget=Budget(5, "day")), key(budget=Budget(6, "day")), "budget"),
        (key(budget=Budget(5, "month")), key(budget=Budget(1, "day")), "budget"),
        (key(budget=Budget(5)), key(budget=Budget(1, "month")), "budget"),
        (key(networks=("10.0.0.0/8",)), key(networks=("::/0",)), "networks"),
        (key(networks=("10.0.0.0/9",)), key(networks=("10.0.0.0/8",)), "networks"),
        (key(networks=("nonsense",)), key(networks=("10.0.0.0/8",)), "networks"),
        (key(("a*b",)), key(("ab*",)), "models"),
        (key(("A",)), key(("a",)), "models"),
        (key(("[ab]*",)), key(("a*",)), "models"),
        (key(("a?",)), key(("a*",)), "models"),
    ):
        assert wider(names, before, after) == what, (before, after)
    for before, after in (
        (key(rpm=5), key(rpm=4, tpm=9)),
        (key(budget=Budget(5, "day")), key(budget=Budget(5, "day"))),
        (key(networks=("10.0.0.0/9", "10.128.0.0/9")), key(networks=("10.0.0.0/8",))),
        (key(("a*b",)), key(("axb",))),
        (key(("a*",)), key(("a?",))),
        (key(("x", "*")), key(("anything?",))),
    ):
        assert wider(names, before, after) is None, (before, after)


# What an admin has set, a manager only narrows.

_SET: dict[str, Any] = {
    "models": ["chat-*"], "networks": ["10.0.0.0/8"], "expires_at": _IN_A_DAY, "rpm": 10, "tpm": 10, "concurrency": 10,
    "budget": Budget(10, "day"),
}  # fmt: skip
_FREE: dict[str, Any] = {"models": ["*"], "networks": [], "expires_at": None, "rpm": None, "tpm": None, "concurrency": None, "budget": None}
_LESS: dict[str, Any] = {
    "models": ["chat-1"], "networks": ["10.1.0.0/16"], "expires_at": _IN_A_DAY - 1, "rpm": 9, "tpm": 9, "concurrency": 9,
    "budget": Budget(9, "day"),
}  # fmt: skip
_IN_LIMITS = ("rpm", "tpm", "concurrency", "budget")


@pytest.mark.parametrize("name", sorted(_SET))
@pytest.mark.parametrize("when", ["made", "changed"])
async def test_a_manager_narrows_what_an_admin_has_set_of_a_key(house: House, member: User, boss: Actor, name: str, when: str) -> None:
    limits = Limits(**{name: _SET[name]}) if name in _IN_LIMITS else None
    fields = {} if when == "changed" or name in _IN_LIMITS else {name: _SET[name]}
    issued = await house.create_key(CLI, name="k", owner_id=member.id, limits=limits if when == "made" else None, **fields)
    if when == "changed":
        await house.update_key(CLI, issued.id, {name: _SET[name]})
    assert (await house.key(issued.id)).held == (name,)
    for wide in (_FREE[name], ["chat-*", "x"] if name == "models" else _FREE[name]):
        with pytest.raises(Forbidden, match=f"An admin has set this.*{name}"):
            await house.update_key(boss, issued.id, {name: wide})
    await house.update_key(boss, issued.id, {name: _LESS[name]})
    with pytest.raises(Forbidden):  # not even back to what the admin had set: what that was is not kept
        await house.update_key(boss, issued.id, {name: _SET[name]})
    for other in sorted(_SET):  # what the admin left open is the manager's
        if other != name:
            await house.update_key(boss, issued.id, {other: _LESS[other]})
            await house.update_key(boss, issued.id, {other: _SET[other]})
            await house.update_key(boss, issued.id, {other: _FREE[other]})
    assert (await house.update_key(CLI, issued.id, {name: _FREE[name]})).held == ()
    await house.update_key(boss, issued.id, {name: _LESS[name]})
    await house.update_key(boss, issued.id, {name: _FREE[name]})


async def test_a_managers_keys_for_the_team_are_theirs_to_set(house: House, member: User, boss: Actor) -> None:
    issued = await house.create_key(boss, name="k", owner_id=member.id, limits=Limits(rpm=1), expires_at=_IN_A_DAY)
    assert (await house.key(issued.id)).held == ()
    assert (await house.update_key(boss, issued.id, {"rpm": None, "expires_at": None})).limits == Limits()
    await house.update_key(CLI, issued.id, {"name": "renamed"})
    assert (await house.update_key(boss, issued.id, {"rpm": 100})).limits.rpm == 100


async def test_of_their_own_keys_managers_widen_nothing(house: House, boss: Actor) -> None:
    given = await house.create_key(CLI, name="given", owner_id=boss.user_id, limits=Limits(rpm=5))
    made = await house.create_key(boss, name="made", limits=Limits(rpm=5), networks=["10.0.0.0/8"])
    for key_id in (given.id, made.id):
        for name, wide in (("rpm", 6), ("rpm", None)):
            with pytest.raises(Forbidden, match="your own keys"):
                await house.update_key(boss, key_id, {name: wide})
        assert (await house.update_key(boss, key_id, {"rpm": 4, "tpm": 7, "description": "x"})).limits == Limits(rpm=4, tpm=7)
    with pytest.raises(Forbidden, match="your own keys"):
        await house.update_key(boss, made.id, {"networks": []})


async def test_a_manager_narrows_what_an_admin_has_set_of_a_user(house: House, member: User, boss: Actor) -> None:
    await house.update_user(CLI, member.id, {"rpm": 10, "budget": Budget(10, "day")})
    for fields in ({"rpm": 11}, {"rpm": None}, {"budget": None}, {"budget": Budget(11, "day")}, {"budget": Budget(1, "month")}):
        with pytest.raises(Forbidden, match="An admin has set this"):
            await house.update_user(boss, member.id, fields)
    after = await house.update_user(boss, member.id, {"rpm": 9, "tpm": 100, "name": "M"})
    assert (after.limits.rpm, after.limits.tpm, after.held) == (9, 100, ("budget", "rpm"))
    assert (await house.update_user(boss, member.id, {"tpm": None})).limits.tpm is None
    made = await house.person("limited", "member", "own", limits=Limits(rpm=1))
    with pytest.raises(Forbidden):
        await house.update_user(boss, made.id, {"rpm": 2})
    assert (await house.update_user(CLI, made.id, {"rpm": None})).held == ()
    assert (await house.update_user(boss, made.id, {"rpm": 2})).limits.rpm == 2


async def test_whom_an_admin_disabled_only_an_admin_enables(house: House, member: User, boss: Actor) -> None:
    await house.disable_user(boss, member.id)
    assert (await house.enable_user(boss, member.id)).enabled
    await house.disable_user(CLI, member.id)
    with pytest.raises(Forbidden, match="only an admin"):
        await house.enable_user(boss, member.id)
    assert not (await house.disable_user(boss, member.id)).enabled, "which makes it none of theirs"
    with pytest.raises(Forbidden, match="only an admin"):
        await house.enable_user(boss, member.id)
    assert (await house.enable_user(CLI, member.id)).held == ()
    since = (await house.disable_user(boss, member.id)).disabled_at
    assert (await house.disable_user(CLI, member.id)).disabled_at == since
    with pytest.raises(Forbidden, match="only an admin"):
        await house.enable_user(boss, member.id)


# A link does not outlive the right of who issued it.


async def _good(house: House, token: str) -> bool:
    try:
        await changes.password_link_user(house.db, token)
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            await house.use_password_link(token=token, password_hash="new")
        return False
    await house.use_password_link(token=token, password_hash="new")
    return True


@pytest.mark.parametrize(
    "what", ["nothing", "issuer disabled", "issuer demoted", "issuer moved", "issuer's password reset", "other admin demoted"]
)
async def test_a_link_of_a_manager(house: House, admin: User, member: User, boss: Actor, what: str) -> None:
    link = await house.issue_password_link(boss, member.id)
    other = await house.person("other", "admin")
    if what == "issuer disabled":
        await house.disable_user(CLI, boss.user_id)
    elif what == "issuer demoted":
        await house.set_role(CLI, boss.user_id, "member")
    elif what == "issuer moved":
        await house.create_team(CLI, name="another")
        await house.set_team(CLI, boss.user_id, "another")
    elif what == "issuer's password reset":  # a login that was stolen ends with that, and what it left behind too
        await house.reset_password(CLI, boss.user_id, password_hash="new")
    elif what == "other admin demoted":
        await house.set_role(CLI, other.id, "member")
    assert await _good(house, link.token) == (what in ("nothing", "other admin demoted"))


@pytest.mark.parametrize(
    "what", ["nothing", "issuer disabled", "issuer demoted", "issuer's password reset", "key revoked", "key narrowed", "key rotated"]
)
async def test_a_link_of_an_admins_key(house: House, admin: User, member: User, what: str) -> None:
    issuer = await house.person("issuer", "admin")
    me = await house.acting(issuer)
    assert me.key_id is not None
    link = await house.issue_password_link(me, member.id)
    if what == "issuer disabled":
        await house.disable_user(CLI, issuer.id)
    elif what == "issuer demoted":
        await house.set_role(CLI, issuer.id, "viewer")
    elif what == "key revoked":
        await house.revoke_key(CLI, me.key_id)
    elif what == "key narrowed":
        await house.update_key(CLI, me.key_id, {"models": ["m"]})
    elif what == "issuer's password reset":
        await house.reset_password(CLI, issuer.id, password_hash="new")
    elif what == "key rotated":
        await house.rotate_key(CLI, me.key_id, grace_s=60)
    assert await _good(house, link.token) == (what == "nothing")


async def test_a_link_of_a_key_whose_older_text_is_still_good_ends_with_that(house: House, admin: User, member: User) -> None:
    """Nobody knows with which of the two it was issued."""
    me = await house.acting(admin)
    await house.rotate_key(CLI, me.key_id, grace_s=60)
    short = await house.issue_password_link(me, member.id)
    assert short.expires_at < time.time() + 61
    await house.rotate_key(CLI, me.key_id)
    assert (await house.issue_password_link(me, member.id)).expires_at > time.time() + 3600


async def test_links_of_the_command_line_stay(house: House, admin: User, member: User) -> None:
    link = await house.issue_password_link(CLI, member.id)
    assert await _good(house, link.token)
    assert not await _good(house, link.token), "good once"


# Which key acted is kept.


async def test_the_audit_log_says_which_key_acted(house: House, admin: User) -> None:
    me = await house.acting(admin)
    await house.create_team(me, name="with a key")
    await house.create_team(logged_in(admin), name="with a login")
    async with house.db.read() as conn:
        by_login, by_key = await trail.page(conn, limit=2)
        found, _ = await trail.newest(conn, trail.Wanted(actor=me.key_id or ""))
    assert (by_login.actor_user_id, by_login.actor_key_id) == (admin.id, None)
    assert (by_key.actor_user_id, by_key.actor_key_id) == (admin.id, me.key_id)
    assert [entry.id for entry in found] == [by_key.id]
    assert "actor_key_id" not in trail.exported(by_login)
    assert trail.exported(by_key)["actor_key_id"] == me.key_id
    assert (await trail.verify(house.db)).faults == ()
    with pytest.raises(Conflict):
        await house.create_team(me, name="with a key")
