from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Table, select

from auth.keys import digest, mint
from auth.principal import Budget, Limits, Role
from gateway import changes
from gateway.changes import Actor, Grant
from gateway.errors import Conflict, Forbidden, GatewayError, InvalidRequest, NotFound, Unavailable
from gateway.store import changelog, keys, meta, revisions, secrets, trail, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.revisions import Revision
from gateway.store.secrets import SecretBox
from gateway.store.tables import api_key_digests, metadata
from gateway.store.users import User

CLI = Actor(None, "cli")
HASH = "$argon2id$v=19$m=1,t=1,p=1$not-a-real-hash"
BOX = SecretBox("k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz")


class House:
    """The change functions with database and counter filled in."""

    def __init__(self, db: Database, generation: Generation) -> None:
        self.db, self.generation = db, generation

    def __getattr__(self, name: str) -> Any:
        function = getattr(changes, name)
        return lambda *args, **kwargs: function(self.db, self.generation, *args, **kwargs)

    async def log(self) -> list[tuple[str, str]]:
        async with self.db.read() as conn:
            return [(e.kind, e.entity_id) for e in await changelog.after(conn, 0)]

    async def audit(self) -> list[trail.AuditEntry]:
        async with self.db.read() as conn:
            return await trail.page(conn)

    async def rows(self, table: Table) -> Sequence[Any]:
        async with self.db.read() as conn:
            return (await conn.execute(select(table))).all()

    async def dump(self) -> str:
        """Every value of every table."""
        async with self.db.read() as conn:
            return repr([(await conn.execute(select(table))).all() for table in metadata.sorted_tables])


@pytest.fixture
def house(db: Database, generation: Generation) -> House:
    return House(db, generation)


@pytest.fixture
async def admin(house: House) -> User:
    made = await house.ensure_admin(Actor(None, "init"), email="admin@localhost", password_hash=HASH)
    assert isinstance(made, User)
    return made


@pytest.fixture
async def member(house: House, admin: User) -> User:
    made = await house.create_user(CLI, email="member@localhost", role="member", password_hash=HASH)
    assert isinstance(made, User)
    return made


def acting(user: User, scopes: frozenset[str] | None = None) -> Actor:
    return Actor(user.id, "api", "192.0.2.1", scopes, login=True)


async def test_a_change_is_logged_audited_and_announced(house: House, admin: User) -> None:
    user = await house.create_user(acting(admin), email=" New@Example.COM", role=Role.VIEWER, password_hash=HASH)
    assert (user.email, user.role, user.enabled) == ("new@example.com", Role.VIEWER, True)
    assert (await house.log())[-1] == ("user", user.id)
    async with house.db.read() as conn:
        assert house.generation.change == await changelog.latest(conn) > 0
    entry = (await house.audit())[0]
    assert (entry.actor_user_id, entry.via, entry.address) == (admin.id, "api", "192.0.2.1")
    assert (entry.action, entry.entity, entry.entity_id, entry.before) == ("create", "user", user.id, None)
    assert entry.after == {"email": "new@example.com", "role": "viewer", "enabled": True}
    assert abs(entry.at - time.time()) < 60


async def test_a_change_that_fails_leaves_no_trace(house: House, admin: User) -> None:
    log, audit, counter = await house.log(), await house.audit(), house.generation.change
    failing = [
        house.create_user(CLI, email="ADMIN@localhost", role="member"),
        house.create_user(CLI, email="no-address", role="member"),
        house.create_user(CLI, email="a@b", role="king"),
        house.create_key(CLI, name="k", owner_id="usr_nobody"),
        house.revoke_key(CLI, "nokey"),
        house.rollback(CLI),
        house.apply_revision(CLI, {"key": {"secret": "absent"}}, new_secrets={"present": "x"}, box=BOX),
    ]
    for call in failing:
        with pytest.raises(GatewayError):
            await call
    assert (await house.log(), await house.audit(), house.generation.change) == (log, audit, counter)
    async with house.db.read() as conn:
        assert await secrets.names(conn) == []


async def test_the_first_admin_is_made_once_and_never_changed(house: House, admin: User) -> None:
    assert await house.ensure_admin(Actor(None, "init"), email="other@localhost", password_hash="x") is None
    async with house.db.read() as conn:
        assert await users.by_id(conn, admin.id) == admin
        assert await users.password_hash(conn, admin.id) == HASH


async def test_the_last_enabled_admin_stays(house: House, admin: User) -> None:
    with pytest.raises(Conflict, match="last enabled admin"):
        await house.disable_user(CLI, admin.id)
    with pytest.raises(Conflict, match="last enabled admin"):
        await house.set_role(CLI, admin.id, "member")
    second = await house.create_user(CLI, email="second@localhost", role="admin")
    results = await asyncio.gather(house.disable_user(CLI, admin.id), house.disable_user(CLI, second.id), return_exceptions=True)
    assert sum(isinstance(r, Conflict) for r in results) == 1
    async with house.db.read() as conn:
        assert await users.count_admins(conn) == 1


async def test_roles_and_states(house: House, member: User) -> None:
    assert (await house.set_role(CLI, member.id, "manager")).role == Role.MANAGER
    entries = len(await house.log())
    assert (await house.set_role(CLI, member.id, "manager")).role == Role.MANAGER
    assert len(await house.log()) == entries, "what changes nothing is not a change"
    disabled = await house.disable_user(CLI, member.id)
    assert not disabled.enabled
    assert await house.disable_user(CLI, member.id) == disabled
    enabled = await house.enable_user(CLI, member.id)
    assert enabled.enabled
    assert enabled.token_epoch > disabled.token_epoch > member.token_epoch
    reset = await house.reset_password(CLI, member.id, password_hash="new")
    assert reset.token_epoch > enabled.token_epoch
    assert [e.action for e in await house.audit()][:4] == ["reset_password", "enable", "disable", "set_role"]
    with pytest.raises(NotFound):
        await house.disable_user(CLI, "usr_nobody")


async def test_a_key_is_shown_once_and_stored_as_its_digest(house: House, admin: User) -> None:
    limits = Limits(1, 2, 3, Budget(5 * 10**11, "day"))
    issued = await house.create_key(CLI, name=" mine ", models=["chat", "chat", "e*"], limits=limits, expires_at=time.time() + 60)
    assert issued.key.startswith(f"sk-gw-{issued.id}-")
    assert issued.key not in repr(issued)
    assert issued.scopes == ("inference",)
    async with house.db.read() as conn:
        key = await keys.by_id(conn, issued.id)
    assert key is not None
    assert (key.user_id, key.name, key.models, key.limits, key.expires_at) == (admin.id, "mine", ("chat", "e*"), limits, issued.expires_at)
    rotated = await house.rotate_key(CLI, issued.id, grace_s=10)
    await house.revoke_key(CLI, issued.id)
    dump = await house.dump()
    for text in (issued.key, rotated.key, issued.key.rpartition("-")[2]):
        assert text not in dump
    entry = (await house.audit())[-1]
    assert [e.action for e in await house.audit()][:3] == ["revoke", "rotate", "create"]
    assert entry.entity == "user"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", {"name": "  "}),
        ("name", {"name": "a\nb"}),
        ("name", {"name": "x" * 201}),
        ("scopes", {"scopes": []}),
        ("scopes", {"scopes": ["inference", "root"]}),
        ("models", {"models": []}),
        ("models", {"models": [""]}),
        ("models", {"models": [" chat"]}),
        ("models", {"models": [f"m{n}" for n in range(101)]}),
        ("networks", {"networks": ["10.0.0.0/33"]}),
        ("networks", {"networks": ["10.1.2.3/8"]}),
        ("networks", {"networks": ["office"]}),
        ("networks", {"networks": ["10.0.0.0/8", " "]}),
        ("networks", {"networks": [f"10.0.{n}.0/24" for n in range(101)]}),
        ("description", {"description": "x" * 1001}),
        ("description", {"description": "a\x00b"}),
        ("rpm", {"limits": Limits(rpm=0)}),
        ("tpm", {"limits": Limits(tpm=-5)}),
        ("concurrency", {"limits": Limits(concurrency=2**63)}),
        ("budget", {"limits": Limits(budget=Budget(-1))}),
        ("budget", {"limits": Limits(budget=Budget(1, "year"))}),
        ("expires_at", {"expires_at": 1.0}),
    ],
)
async def test_keys_that_make_no_sense_are_refused(house: House, admin: User, field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await house.create_key(CLI, **({"name": "k"} | values))
    assert refused.value.param == field


async def test_whoever_is_no_manager_makes_no_keys(house: House, admin: User, member: User) -> None:
    for owner in (None, member.id, admin.id, "usr_nobody"):
        with pytest.raises(Forbidden):
            await house.create_key(acting(member), name="mine", owner_id=owner)
    with pytest.raises(InvalidRequest):  # not even an admin gives a member's key what its owner cannot have
        await house.create_key(acting(admin), name="k", owner_id=member.id, scopes=["admin"])


async def test_a_member_rotates_and_revokes_their_own_keys_and_changes_none(house: House, admin: User, member: User) -> None:
    mine = await house.create_key(CLI, name="mine", owner_id=member.id, scopes=["inference", "usage"], limits=Limits(rpm=1))
    theirs = await house.create_key(acting(admin), name="admins", scopes=["admin"])
    for action in ("revoke_key", "rotate_key"):
        with pytest.raises(NotFound):
            await getattr(house, action)(acting(member), theirs.id)
        with pytest.raises(Forbidden):  # a key is no person: it does not prolong its own life
            await getattr(house, action)(replace(acting(member), login=False), mine.id)
    with pytest.raises(Forbidden):
        await house.update_key(acting(member), mine.id, {"rpm": 100})
    assert (await house.rotate_key(acting(member), mine.id)).id == mine.id
    assert (await house.revoke_key(acting(member), mine.id)).revoked_at is not None


async def test_an_existing_key_is_taken_as_its_digest(house: House, admin: User, member: User) -> None:
    text = "sk-proj-Vq8Zr2mVx7Lw0Yc4Nh6Ks9Pd1Gt5Bf3Jx"
    for actor in (acting(member), acting(admin, frozenset({"inference"}))):
        with pytest.raises(Forbidden):
            await house.import_key(actor, text, Grant("old"))
    key = await house.import_key(acting(admin), text, Grant(" old ", member.id, ("inference",), limits=Limits(rpm=3), networks=("::1",)))
    assert (key.name, key.user_id, key.limits, key.networks, key.prefix) == ("old", member.id, Limits(rpm=3), ("::1/128",), "sk-proj-")
    assert key.created_by == admin.id
    dump = await house.dump()
    assert text not in dump
    assert text[8:] not in dump
    assert digest(text) in {row.digest for row in await house.rows(api_key_digests)}
    with pytest.raises(Conflict):
        await house.import_key(CLI, text, Grant("again"))
    with pytest.raises(InvalidRequest) as refused:
        await house.import_key(CLI, "your-api-key-here-your-api-key", Grant("weak"))
    assert refused.value.param == "key"
    with pytest.raises(InvalidRequest):
        await house.import_key(CLI, text + "x", Grant("k", member.id, ("admin",)))
    rotated = await house.rotate_key(acting(member), key.id)
    assert rotated.key.startswith(f"sk-gw-{key.id}-")
    with pytest.raises(Conflict):  # its id is taken, though the text is another
        await house.import_key(CLI, mint(key.id)[1], Grant("again"))
    assert [entry.action for entry in await house.audit()][:2] == ["rotate", "import"]


@pytest.mark.parametrize("who", ["member", "narrowed admin", "disabled admin", "nobody"])
async def test_only_an_admin_changes_people_routes_and_secrets(house: House, admin: User, member: User, who: str) -> None:
    second = await house.create_user(CLI, email="second@localhost", role="admin")
    await house.disable_user(CLI, second.id)
    actor = {
        "member": acting(member),
        "narrowed admin": acting(admin, frozenset({"inference"})),
        "disabled admin": acting(second),
        "nobody": Actor(None, "api"),
    }[who]
    calls = [
        house.create_user(actor, email="x@localhost", role="viewer"),
        house.ensure_admin(actor, email="x@localhost", password_hash="x"),
        house.set_role(actor, member.id, "admin"),
        house.disable_user(actor, admin.id),
        house.enable_user(actor, second.id),
        house.reset_password(actor, second.id, password_hash="x"),
        house.apply_revision(actor, {}, "note"),
        house.rollback(actor),
        house.set_secret(actor, "name", "value", box=BOX),
        house.delete_secret(actor, "name"),
        house.create_key(actor, name="k", owner_id=second.id),
    ]
    before = await house.dump()
    for call in calls:
        with pytest.raises(Forbidden):
            await call
    assert await house.dump() == before


def named(model: str) -> dict[str, Any]:
    return {"models": [{"id": model, "backends": [{"type": "echo"}]}]}


async def test_a_rollback_is_checked_as_a_new_revision_is(house: House, admin: User) -> None:
    """What an older version accepted, and what refers to a secret that was deleted since, does not go live again."""
    unfit = await house.apply_revision(CLI, {"models": [{"id": "m", "backends": [{"type": "custom", "base_url": "http://0.0.0.0:1/v1"}]}]})
    backend = {"type": "custom", "base_url": "http://127.0.0.1:1/v1", "api_key": {"secret": "gone"}}
    document = {"models": [{"id": "m", "backends": [backend]}]}
    poorer = await house.apply_revision(CLI, document, box=BOX, new_secrets={"gone": "sk-upstream"})
    live = await house.apply_revision(CLI, named("m"))
    await house.delete_secret(CLI, "gone")
    before = await house.dump()
    with pytest.raises(Conflict, match=r"models\[0\].backends\[0\].base_url: has an address that servers listen on"):
        await house.rollback(CLI, unfit.id)
    with pytest.raises(Conflict, match="secret gone is not stored"):
        await house.rollback(CLI, poorer.id)
    assert await house.dump() == before
    assert (await house.rollback(CLI, live.id)).id == live.id


async def test_a_rollback_to_logged_content_needs_the_key_for_it(house: House, admin: User) -> None:
    """As applying it did: it is stored encrypted, with the database's key, or not at all."""
    document = named("m")
    document["models"][0]["content_log"] = True
    logged = await house.apply_revision(CLI, document, box=BOX)
    await house.set_secret(CLI, "name", "value", box=BOX)
    async with house.db.write() as conn:
        await meta.put(conn, meta.KEY_FINGERPRINT, BOX.fingerprint)
    plain = await house.apply_revision(CLI, named("m"))
    with pytest.raises(Conflict, match="GATEWAY_SECRET_KEY"):
        await house.rollback(CLI, logged.id)
    with pytest.raises(Unavailable):
        await house.rollback(CLI, logged.id, box=SecretBox("Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"))
    assert (await house.rollback(CLI, logged.id, box=BOX)).id == logged.id
    assert (await house.rollback(CLI, plain.id)).id == plain.id


async def test_revisions_go_live_and_back(house: House, admin: User) -> None:
    first = await house.apply_revision(CLI, named("a"), "first", file_digest="f1")
    second = await house.apply_revision(acting(admin), named("b"), "second")
    assert (first.info.author, second.info.author) == ("cli", admin.id)
    assert first.info.parent_id is None
    assert second.info.parent_id == first.id
    assert (await house.rollback(CLI)).id == first.id
    third = await house.apply_revision(CLI, named("c"), "third")
    async with house.db.read() as conn:
        live = await revisions.live_revision(conn)
        assert live is not None
        assert (live.id, live.document, live.digest) == (third.id, named("c"), revisions.content_digest(named("c")))
        assert [r.id for r in await revisions.page(conn)] == [third.id, second.id, first.id]
        assert await revisions.last_file_digest(conn) == "f1"
    assert (await house.rollback(CLI)).id == first.id, "back to what was live before, not to the revision that was rolled back"
    with pytest.raises(Conflict):
        await house.rollback(CLI)
    assert (await house.rollback(CLI, second.id)).id == second.id
    with pytest.raises(NotFound):
        await house.rollback(CLI, 999)
    assert [kind for kind, _ in (await house.log())[-6:]] == ["revision"] * 6


async def test_of_two_who_saw_the_same_revision_one_may_replace_it(house: House, admin: User) -> None:
    first = await house.apply_revision(CLI, {"v": 1})
    writers = [house.apply_revision(CLI, {"v": n}, expected=first.id) for n in (2, 3)]
    results = await asyncio.gather(*writers, return_exceptions=True)
    assert sum(isinstance(r, Conflict) for r in results) == 1


async def test_a_rollback_sends_each_backend_the_key_it_had(house: House, admin: User) -> None:
    """Each revision names another host and another key: going back must not send the new key to the old host."""

    async def applied(host: str, key: str) -> Revision:
        backend = {"type": "custom", "base_url": host, "api_key": {"secret": "chat/1"}}
        document = {"models": [{"id": "chat", "backends": [backend]}]}
        return await house.apply_revision(CLI, document, box=BOX, new_secrets={"chat/1": key})

    revisions_ = [await applied("http://a", "key-a"), await applied("http://b", "key-b"), await applied("http://c", "key-a")]
    revisions_ += [await applied("http://d", "key-b")]
    async with house.db.read() as conn:
        stored = await secrets.read_all(conn, BOX)
    assert [stored[r.document["models"][0]["backends"][0]["api_key"]["secret"]] for r in revisions_] == ["key-a", "key-b", "key-a", "key-b"]
    assert stored == {"chat/1": "key-a", "chat/1~2": "key-b"}
    assert (await house.rollback(CLI, revisions_[0].id)).document["models"][0]["backends"][0] == {
        "type": "custom",
        "base_url": "http://a",
        "api_key": {"secret": "chat/1"},
    }


async def test_secrets_of_a_revision_are_stored_with_it(house: House, admin: User) -> None:
    document = {"backends": [{"api_key": {"secret": "chat/1"}}]}
    await house.apply_revision(CLI, document, box=BOX, new_secrets={"chat/1": "upstream-key-value"})
    assert [kind for kind, _ in (await house.log())[-2:]] == ["secret", "revision"]
    entries = len(await house.log())
    assert not await house.set_secret(CLI, "chat/1", "upstream-key-value", box=BOX)
    assert len(await house.log()) == entries
    assert await house.set_secret(CLI, "chat/1", "another-value", box=BOX)
    async with house.db.read() as conn:
        assert await secrets.read_all(conn, BOX) == {"chat/1": "another-value"}
    for value in ("upstream-key-value", "another-value"):
        assert value not in await house.dump()
    with pytest.raises(Conflict, match="uses this secret"):
        await house.delete_secret(CLI, "chat/1")
    await house.apply_revision(CLI, {"backends": []})
    await house.delete_secret(CLI, "chat/1")
    with pytest.raises(NotFound):
        await house.delete_secret(CLI, "chat/1")
    for name, value in (("", "x"), ("a b", "x"), ("ok", ""), ("ok", "two\nlines")):
        with pytest.raises(InvalidRequest):
            await house.set_secret(CLI, name, value, box=BOX)
