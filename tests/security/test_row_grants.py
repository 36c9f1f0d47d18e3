"""A caller can grant only what it holds, and touches only what is its own: decided inside the change, whatever the route's guard let in."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from auth.principal import SCOPES, Limits, Role
from gateway.changes import (
    Actor,
    apply_revision,
    create_key,
    create_team,
    create_user,
    disable_user,
    enable_user,
    ensure_admin,
    issue_password_link,
    password_link_user,
    reset_password,
    revoke_key,
    rollback,
    rotate_key,
    set_role,
    update_key,
    update_user,
)
from gateway.changes.revisions import delete_secret, set_secret
from gateway.errors import Conflict, Forbidden, GatewayError, InvalidRequest, NotFound
from gateway.keeper.ship import ship_once
from gateway.store.users import User
from tests.security.inside import INIT, PASSWORD, Inside


def by(user: User | None, *, login: bool = True, scopes: frozenset[str] = SCOPES) -> Actor:
    """As if every gate before the change had let them in, with every scope there is."""
    return Actor(user.id if user else None, "api", "127.0.0.1", scopes, login)


@pytest.mark.parametrize("role", [Role.MANAGER, Role.MEMBER, Role.VIEWER])
@pytest.mark.parametrize("login", [True, False])
async def test_every_change_looks_again_who_asks_for_it(own: Inside, role: Role, login: bool) -> None:
    db, generation, box = own.services.db, own.services.generation, own.services.box
    person, victim = await own.person("person", role), await own.person("victim", Role.ADMIN)
    key = (await create_key(db, generation, INIT, name="k", owner_id=victim.id)).id
    me, everybody = by(person, login=login), {"models": [{"id": "x", "backends": [{"type": "echo"}]}]}
    attempts: list[Any] = [
        lambda: create_user(db, generation, me, email="new@example.com", role=Role.ADMIN),
        lambda: create_user(db, generation, me, email="new@example.com", role=Role.MEMBER),
        lambda: set_role(db, generation, me, person.id, Role.ADMIN),
        lambda: set_role(db, generation, me, victim.id, Role.VIEWER),
        lambda: disable_user(db, generation, me, victim.id),
        lambda: reset_password(db, generation, me, victim.id, password_hash="x"),
        lambda: create_key(db, generation, me, name="k", owner_id=victim.id),
        lambda: create_key(db, generation, me, name="k", scopes=["admin"]),
        lambda: update_key(db, generation, me, key, {"scopes": ["admin"]}),
        lambda: revoke_key(db, generation, me, key),
        lambda: rotate_key(db, generation, me, key),
        lambda: apply_revision(db, generation, me, everybody),
        lambda: rollback(db, generation, me),
        lambda: set_secret(db, generation, me, "name", "value", box=box),
        lambda: delete_secret(db, generation, me, "name"),
        lambda: ensure_admin(db, generation, me, email="new@example.com", password_hash="x"),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises((Forbidden, NotFound, InvalidRequest, Conflict)) as refused:
            await attempt()
        assert isinstance(refused.value, Forbidden | NotFound) or number in (1, 7), (number, refused.value)


@pytest.mark.parametrize("role", [Role.MEMBER, Role.VIEWER])
async def test_nobody_raises_their_own_limits_or_makes_keys_round_them(own: Inside, role: Role) -> None:
    db, generation = own.services.db, own.services.generation
    person = await own.person("person", role)
    issued = await create_key(db, generation, INIT, name="k", owner_id=person.id, scopes=["usage"], limits=Limits(rpm=1))
    for fields in ({"rpm": None}, {"scopes": ["usage", "inference"]}, {"models": ["*"]}, {"expires_at": None}):
        with pytest.raises(GatewayError) as refused:
            await update_key(db, generation, by(person), issued.id, fields)
        assert refused.value.status in (403, 404)
    with pytest.raises(Forbidden):
        await create_key(db, generation, by(person), name="another", scopes=["usage"])


async def test_a_key_never_has_more_than_its_owner_whatever_its_row_says(own: Inside) -> None:
    """The role is taken away after the key was made: the key's scopes shrink with it, at once."""
    owner = await own.person("was-admin", Role.ADMIN)
    key = await own.key("mighty", owner, scopes=["admin", "inference", "usage", "metrics"])
    async with own.client(key) as http:
        assert (await http.get("/admin/users")).status_code == 200
        await set_role(own.services.db, own.services.generation, INIT, owner.id, Role.VIEWER)
        await own.caught_up()
        assert (await http.get("/admin/users")).status_code == 403
        assert (await http.get("/v1/models")).status_code == 403
        assert (await http.get("/v1/usage")).status_code == 200


async def test_a_manager_learns_no_key_that_could_do_more_than_they_may(own: Inside) -> None:
    """A key that was an admin's, whose owner is a member of the team now: its row still says admin. Rotating it shows its text."""
    db, generation = own.services.db, own.services.generation
    team = (await create_team(db, generation, INIT, name="team")).id
    manager = await own.person("manager", Role.MANAGER, team=team)
    owner = await own.person("was-admin", Role.ADMIN, team=team)
    issued = await create_key(db, generation, INIT, name="mighty", owner_id=owner.id, scopes=["admin", "inference"])
    await set_role(db, generation, INIT, owner.id, Role.MEMBER)
    with pytest.raises(Forbidden):
        await rotate_key(db, generation, by(manager, scopes=Role.MANAGER.scopes), issued.id)
    plain = await create_key(db, generation, INIT, name="plain", owner_id=owner.id)
    assert (await rotate_key(db, generation, by(manager, scopes=Role.MANAGER.scopes), plain.id)).key


async def test_a_manager_gives_no_role_like_their_own_or_higher(own: Inside) -> None:
    db, generation = own.services.db, own.services.generation
    team = (await create_team(db, generation, INIT, name="team")).id
    me = by(await own.person("manager", Role.MANAGER, team=team), scopes=Role.MANAGER.scopes)
    member = await own.person("member", Role.MEMBER, team=team)
    for role in (Role.MANAGER, Role.ADMIN):
        with pytest.raises(Forbidden):
            await create_user(db, generation, me, email=f"new-{role}@example.com", role=role)
        with pytest.raises(Forbidden):
            await set_role(db, generation, me, member.id, role)
        with pytest.raises(Forbidden):
            await set_role(db, generation, me, me.user_id or "", role)
    assert (await set_role(db, generation, me, member.id, Role.VIEWER)).role == Role.VIEWER


async def test_an_admins_key_without_the_scope_is_no_admin(own: Inside) -> None:
    admin = await own.person("second", Role.ADMIN)
    me = by(admin, login=False, scopes=frozenset({"inference"}))
    with pytest.raises(Forbidden):
        await create_user(own.services.db, own.services.generation, me, email="x@example.com", role=Role.ADMIN)
    with pytest.raises(GatewayError) as refused:
        await create_key(own.services.db, own.services.generation, me, name="k", owner_id=admin.id, scopes=["admin"])
    assert refused.value.status in (403, 404)


async def test_the_role_is_looked_up_when_the_change_is_made(own: Inside) -> None:
    """Not when the request was let in: a demotion that comes between the two counts."""
    admin = await own.person("second", Role.ADMIN)
    me = by(admin)
    await set_role(own.services.db, own.services.generation, INIT, admin.id, Role.MEMBER)
    with pytest.raises(GatewayError) as refused:
        await set_role(own.services.db, own.services.generation, me, admin.id, Role.ADMIN)
    assert refused.value.status in (403, 404)


async def test_the_key_is_looked_up_when_the_change_is_made(own: Inside) -> None:
    """Revoked, or narrowed, between the guard and the change: it changes nothing more."""
    db, generation = own.services.db, own.services.generation
    admin = await own.person("second", Role.ADMIN)
    for revoked in (True, False):
        issued = await create_key(db, generation, INIT, name="acting", owner_id=admin.id, scopes=sorted(SCOPES))
        me = replace(by(admin, login=False), key_id=issued.id)
        assert await create_team(db, generation, me, name=f"before {issued.id}")
        if revoked:
            await revoke_key(db, generation, INIT, issued.id)
        else:
            await update_key(db, generation, INIT, issued.id, {"scopes": ["usage"]})
        with pytest.raises(Forbidden):
            await create_team(db, generation, me, name=f"after {issued.id}")


async def test_the_login_is_looked_up_when_the_change_is_made(own: Inside) -> None:
    """All logins of the admin end between the guard and the change, as for one whose token was stolen."""
    db, generation = own.services.db, own.services.generation
    admin = await own.person("second", Role.ADMIN)
    me = replace(by(admin), epoch=admin.token_epoch)
    await reset_password(db, generation, INIT, admin.id, password_hash="new")
    with pytest.raises(Forbidden):
        await create_team(db, generation, me, name="after")


async def test_who_acts_is_named_to_the_change_with_key_and_epoch(own: Inside) -> None:
    """Through the API: the audit log names the key, and a token from before the last end of all logins is refused."""
    admin = await own.person("second", Role.ADMIN)
    key = await own.key("acting", admin, scopes=["admin"])
    for credential, key_id in ((key, key.split("-")[2]), (await own.token(admin), None)):
        async with own.client(credential) as http:
            assert (await http.post("/admin/teams", json={"name": f"team of {key_id}"})).status_code == 201
            entry = (await http.get("/admin/audit", params={"limit": 1})).json()["data"][0]
            assert (entry["actor_user_id"], entry["actor_key_id"], entry["action"]) == (admin.id, key_id, "create")
    record = own.services.live.user_by_id(admin.id)
    assert record is not None
    assert record.principal.token_epoch == record.token_epoch


@pytest.mark.parametrize("bound", ["networks", "models", "expires_at"])
async def test_a_narrowed_key_gives_no_more_than_it_carries(own: Inside, bound: str) -> None:
    """Whoever finds an admin's key that works from one network only must not come to hold one that works from everywhere."""
    db, generation = own.services.db, own.services.generation
    admin, member = await own.person("second", Role.ADMIN), await own.person("member", Role.MEMBER)
    values: dict[str, Any] = {"networks": ["127.0.0.1"], "models": ["m"], "expires_at": time.time() + 3600}
    issued = await create_key(db, generation, INIT, name="found", owner_id=admin.id, scopes=sorted(SCOPES), **{bound: values[bound]})
    me = replace(by(admin, login=False), key_id=issued.id)
    wide = await create_key(db, generation, INIT, name="wide", owner_id=admin.id)
    made = await create_key(db, generation, me, name="within", **values)
    attempts = (
        create_key(db, generation, me, name="k"),
        create_key(db, generation, me, name="k", owner_id=member.id),
        update_key(db, generation, me, issued.id, {"networks": [], "models": ["*"], "expires_at": None}),
        update_key(db, generation, me, made.id, {"networks": [], "models": ["*"], "expires_at": None}),
        rotate_key(db, generation, me, wide.id),
    )
    for attempt in attempts:
        with pytest.raises(Forbidden):
            await attempt


async def test_a_narrowed_key_opens_no_login(own: Inside) -> None:
    db, generation = own.services.db, own.services.generation
    admin, member = await own.person("second", Role.ADMIN), await own.person("member", Role.MEMBER)
    issued = await create_key(db, generation, INIT, name="found", owner_id=admin.id, scopes=sorted(SCOPES), networks=["127.0.0.1"])
    me = replace(by(admin, login=False), key_id=issued.id)
    away = await own.person("away", Role.ADMIN)
    await disable_user(db, generation, INIT, away.id)
    for attempt in (
        create_user(db, generation, me, email="new@example.com", role=Role.MEMBER, password_hash="x"),
        create_user(db, generation, me, email="new@example.com", role=Role.MEMBER),
        enable_user(db, generation, me, away.id),
        create_user(db, generation, me, email="new@example.com", role=Role.ADMIN),
        set_role(db, generation, me, member.id, Role.MANAGER),
        reset_password(db, generation, me, admin.id, password_hash="x"),
        issue_password_link(db, generation, me, admin.id),
    ):
        with pytest.raises(Forbidden):
            await attempt


async def test_what_an_admin_has_set_a_manager_does_not_widen(own: Inside) -> None:
    db, generation = own.services.db, own.services.generation
    team = (await create_team(db, generation, INIT, name="team")).id
    manager, member = await own.person("manager", Role.MANAGER, team=team), await own.person("member", Role.MEMBER, team=team)
    boss = by(manager, scopes=Role.MANAGER.scopes)
    limits = Limits(rpm=5)
    theirs = (await create_key(db, generation, INIT, name="k", owner_id=member.id, limits=limits, networks=["10.0.0.0/8"])).id
    own_key = (await create_key(db, generation, INIT, name="k", owner_id=manager.id)).id
    await update_key(db, generation, boss, own_key, {"rpm": 5})
    for key_id, fields in ((theirs, {"rpm": None}), (theirs, {"networks": []}), (own_key, {"rpm": 6})):
        with pytest.raises(Forbidden):
            await update_key(db, generation, boss, key_id, fields)
    await update_user(db, generation, INIT, member.id, {"rpm": 5})
    with pytest.raises(Forbidden):
        await update_user(db, generation, boss, member.id, {"rpm": 6})


async def test_whom_an_admin_has_disabled_a_manager_does_not_enable(own: Inside) -> None:
    db, generation = own.services.db, own.services.generation
    team = (await create_team(db, generation, INIT, name="team")).id
    manager, member = await own.person("manager", Role.MANAGER, team=team), await own.person("member", Role.MEMBER, team=team)
    await disable_user(db, generation, INIT, member.id)
    with pytest.raises(Forbidden):
        await enable_user(db, generation, by(manager, scopes=Role.MANAGER.scopes), member.id)


async def test_a_link_ends_with_the_right_of_who_issued_it(own: Inside) -> None:
    db, generation = own.services.db, own.services.generation
    issuer, member = await own.person("issuer", Role.ADMIN), await own.person("member", Role.MEMBER)
    link = await issue_password_link(db, generation, by(issuer), member.id)
    assert (await password_link_user(db, link.token)).id == member.id
    await set_role(db, generation, INIT, issuer.id, Role.MEMBER)
    with pytest.raises(InvalidRequest):
        await password_link_user(db, link.token)


async def test_what_belongs_to_another_is_as_unknown_as_what_does_not_exist(own: Inside) -> None:
    """IDOR: own keys and own usage alone, and the same answer for another's as for none."""
    one, other = await own.person("one", Role.MEMBER), await own.person("other", Role.MEMBER)
    key_of_one = await own.key("one", one, scopes=["inference", "usage"])
    key_of_other = await own.key("other", other, scopes=["inference", "usage"])
    other_id = key_of_other.split("-")[2]
    async with own.client(await own.token(one)) as http:
        listed = (await http.get("/auth/keys")).json()["data"]
        assert [key["id"] for key in listed] == [key_of_one.split("-")[2]]
        for action in ("rotate", "revoke"):
            theirs = await http.post(f"/auth/keys/{other_id}/{action}")
            nobodys = await http.post(f"/auth/keys/aaaaaaaaaaaa/{action}")
            assert (theirs.status_code, theirs.json()) == (nobodys.status_code, nobodys.json())
            assert theirs.status_code == 404
    async with own.client(key_of_other) as http:
        assert (await http.get("/v1/models")).status_code == 200  # it still works
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        asked = (await http.get("/v1/usage", params={"user": one.id, "key": key_of_one.split("-")[2], "by": "key"})).json()
        assert all(line["key_id"] == other_id for line in asked["data"])


async def test_what_another_used_is_never_shown(own: Inside) -> None:
    one, other = await own.person("one", Role.MEMBER), await own.person("other", Role.MEMBER)
    key = await own.key("one", one)
    async with own.client(key) as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert await ship_once(own.services.db, own.services.settings.run_dir)  # what the keeper does
    async with own.client(await own.token(other)) as http:
        for query in ("", f"?user={one.id}", f"?key={key.split('-')[2]}", "?by=key", "?by=day"):
            assert (await http.get("/v1/usage" + query)).json()["data"] == [], query
    async with own.client(await own.token(one)) as http:
        assert [line["requests"] for line in (await http.get("/v1/usage")).json()["data"]] == [1]


async def test_the_first_admin_is_made_once_however_many_try(own: Inside) -> None:
    """Claim-the-admin: there is one already; and of many that try at once none becomes another."""
    db, generation = own.services.db, own.services.generation
    made = await asyncio.gather(
        *(ensure_admin(db, generation, INIT, email=f"a{n}@example.com", password_hash="x") for n in range(8)), return_exceptions=True
    )
    assert made == [None] * 8


async def test_a_stranger_can_make_nobody_an_admin(own: Inside) -> None:
    async with own.client() as http:
        for path in ("/admin/users", "/auth/register", "/auth/setup", "/admin/setup", "/v1/admin/setup", "/setup", "/auth/signup"):
            answer = await http.post(path, json={"email": "x@example.com", "password": PASSWORD, "role": "admin"})
            assert answer.status_code in (401, 404, 405), path
        for password in ("", "admin", "password", "changeme", "admin@localhost"):
            answer = await http.post("/auth/login", json={"email": own.admin, "password": password})
            assert answer.status_code in (400, 401, 429), password


async def test_the_last_admin_is_never_lost(own: Inside) -> None:
    async with own.client(await own.log_in(own.admin)) as http:
        me = (await http.get("/auth/me")).json()["id"]
        for change in ({"role": "member"}, {"disabled": True}):
            assert (await http.patch(f"/admin/users/{me}", json=change)).status_code == 409
        assert (await http.get("/admin/users")).status_code == 200
