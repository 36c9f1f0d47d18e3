from __future__ import annotations

import asyncio
import gc
import re
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from auth.authenticator import Authenticator
from auth.errors import CredentialInvalid
from auth.keys import digest, mint
from auth.principal import Budget, Limits, Principal, Role
from auth.tokens import AccessTokens
from gateway import changes
from gateway.changes import Actor, IssuedKey
from gateway.store import changelog, keys, users
from gateway.store.booking import insert_usage
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.generation import Generation
from gateway.store.keys import ApiKey
from gateway.store.live import STEP, LiveTables
from gateway.store.spending import Spending
from gateway.store.tables import api_key_digests, api_keys
from gateway.store.users import User

CLI = Actor(None, "cli")


@pytest.fixture
async def admin(db: Database, generation: Generation) -> User:
    return await changes.create_user(db, generation, CLI, email="admin@localhost", role=Role.ADMIN)


@pytest.fixture
async def issued(db: Database, generation: Generation, admin: User) -> IssuedKey:
    limits = Limits(rpm=10, tpm=1000, concurrency=2, budget=Budget(5, "day"))
    return await changes.create_key(
        db, generation, CLI, name="k", models=["chat", "embed-*"], scopes=["inference", "metrics"], limits=limits
    )


def why_not(live: LiveTables, key: str, now_s: float | None = None) -> str | None:
    """The reason of the refusal; None if the key is accepted."""
    try:
        Authenticator(live, AccessTokens(bytes(32))).authenticate(key.encode(), time.time() if now_s is None else now_s)
    except CredentialInvalid as refused:
        return refused.reason
    return None


def principal_of(live: LiveTables, issued: IssuedKey) -> Principal:
    record = live.key_by_digest(digest(issued.key))
    assert record is not None
    return record.principal


async def finished(live: LiveTables, db: Database) -> int:
    """Let it finish what it has begun; in how many steps."""
    steps = 0
    while live.unfinished:
        await live.catch_up(db)
        steps += 1
    return steps


async def test_records_are_prebuilt(db: Database, admin: User, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    record = live.key_by_digest(digest(issued.key))
    assert record is not None
    principal = record.principal
    assert (record.key_id, principal.key_id, principal.limit_id, principal.user_id) == (issued.id, issued.id, issued.id, admin.id)
    assert principal.scopes == {"inference", "metrics"}
    assert principal.limits == Limits(10, 1000, 2, Budget(5, "day"))
    assert [principal.may_use(m) for m in ("chat", "chat2", "embed-small", "other")] == [True, False, True, False]
    user = live.user_by_id(admin.id)
    assert user is not None
    assert (user.role, user.principal.scopes, user.principal.limit_id, user.principal.key_id) == (
        Role.ADMIN,
        Role.ADMIN.scopes,
        admin.id,
        None,
    )


def counted(principal: Principal) -> dict[str, Limits]:
    return {one.limit_id: one.limits for one in principal.callers}


async def test_all_that_a_request_is_counted_under(db: Database, generation: Generation, admin: User, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    login = live.user_by_id(admin.id)
    assert login is not None
    assert (list(counted(principal_of(live, issued))), login.principal.callers) == ([issued.id], ())
    team = await changes.create_team(db, generation, CLI, name="search")
    await changes.set_team(db, generation, CLI, admin.id, team.id)
    await changes.update_user(db, generation, CLI, admin.id, {"rpm": 7})
    free = await changes.create_key(db, generation, CLI, name="free")
    await live.catch_up(db)
    (own, user, of_team), login = principal_of(live, issued).callers, live.user_by_id(admin.id)
    assert login is not None
    assert [one.limit_id for one in (own, user, of_team)] == [issued.id, f"user:{admin.id}", f"team:{team.id}"]
    assert principal_of(live, free).callers == login.principal.callers == (user, of_team)
    assert (user.limits, of_team.limits) == (Limits(rpm=7), Limits())
    await changes.update_user(db, generation, CLI, admin.id, {"rpm": 6})
    await changes.update_key(db, generation, CLI, issued.id, {"budget": None, "rpm": None, "tpm": None, "concurrency": None})
    await live.catch_up(db)
    assert principal_of(live, issued).callers == (own, user, of_team), "each there once, whatever it is limited to"
    assert (own.limits, user.limits, of_team.limits) == (Limits(), Limits(rpm=6), Limits())
    assert set(live.limited()) == {own, user, of_team}
    await changes.set_team(db, generation, CLI, admin.id, None)
    await changes.revoke_key(db, generation, CLI, issued.id)
    await live.catch_up(db)
    assert counted(principal_of(live, free)) == {user.limit_id: Limits(rpm=6)}
    assert own not in set(live.limited())


async def test_a_new_key_is_found_after_catching_up(db: Database, generation: Generation, admin: User) -> None:
    live = await LiveTables.load(db)
    assert live.applied == generation.change
    issued = await changes.create_key(db, generation, CLI, name="new")
    assert live.applied != generation.change
    assert why_not(live, issued.key) == "unknown"
    assert await live.catch_up(db) == {"key"}
    assert why_not(live, issued.key) is None
    assert live.applied == generation.change
    assert await live.catch_up(db) == set()


async def test_a_revoked_key_is_refused_and_stays_so(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    await changes.revoke_key(db, generation, CLI, issued.id)
    await live.catch_up(db)
    assert why_not(live, issued.key) == "revoked"
    assert why_not(await LiveTables.load(db), issued.key) == "revoked"
    assert list(live.records()) == []


async def test_keys_go_and_come_back_with_their_owner(db: Database, generation: Generation, admin: User) -> None:
    member = await changes.create_user(db, generation, CLI, email="m@localhost", role=Role.MEMBER)
    issued = await changes.create_key(db, generation, CLI, name="k", owner_id=member.id)
    live = await LiveTables.load(db)
    await changes.disable_user(db, generation, CLI, member.id)
    assert await live.catch_up(db) == {"user"}
    assert why_not(live, issued.key) == "disabled"
    assert live.user_by_id(member.id) is None
    assert why_not(await LiveTables.load(db), issued.key) == "disabled"
    await changes.enable_user(db, generation, CLI, member.id)
    await live.catch_up(db)
    assert why_not(live, issued.key) is None
    user = live.user_by_id(member.id)
    assert user is not None
    assert user.token_epoch == 2


async def test_a_key_never_has_more_than_its_owners_role(db: Database, generation: Generation, admin: User) -> None:
    other = await changes.create_user(db, generation, CLI, email="b@localhost", role=Role.ADMIN)
    issued = await changes.create_key(db, generation, CLI, name="k", owner_id=other.id, scopes=["inference", "usage", "admin"])
    live = await LiveTables.load(db)
    for role, scopes in ((Role.MEMBER, {"inference", "usage"}), (Role.VIEWER, {"usage"}), (Role.ADMIN, {"inference", "usage", "admin"})):
        await changes.set_role(db, generation, CLI, other.id, role)
        await live.catch_up(db)
        record = live.key_by_digest(digest(issued.key))
        assert record is not None
        assert record.principal.scopes == scopes
        assert record.principal.role == role


async def test_a_rotated_key_has_two_texts_until_its_grace_ends(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    rotated = await changes.rotate_key(db, generation, CLI, issued.id, grace_s=60)
    await live.catch_up(db)
    assert rotated.id == issued.id
    old, new = live.key_by_digest(digest(issued.key)), live.key_by_digest(digest(rotated.key))
    assert old is not None
    assert new is not None
    assert old.principal == new.principal
    assert new.expires_at is None
    assert why_not(live, issued.key, time.time() + 59) is None
    assert why_not(live, issued.key, time.time() + 61) == "expired"
    assert why_not(live, rotated.key, time.time() + 61) is None

    again = await changes.rotate_key(db, generation, CLI, issued.id, grace_s=3600)
    await live.catch_up(db)
    assert why_not(live, issued.key, time.time() + 61) == "expired", "a second rotation must not lengthen the first one's grace"
    assert why_not(live, rotated.key, time.time() + 3599) is None

    last = await changes.rotate_key(db, generation, CLI, issued.id)
    await live.catch_up(db)
    for key in (issued.key, rotated.key, again.key):
        assert why_not(live, key) in ("expired", "unknown")
    assert why_not(live, last.key) is None
    await changes.revoke_key(db, generation, CLI, issued.id)
    await live.catch_up(db)
    assert list(live.records()) == []


async def test_a_rotated_key_keeps_its_own_expiry(db: Database, generation: Generation, admin: User) -> None:
    end = time.time() + 100
    issued = await changes.create_key(db, generation, CLI, name="k", expires_at=end)
    await changes.rotate_key(db, generation, CLI, issued.id, grace_s=3600)
    assert {record.expires_at for record in (await LiveTables.load(db)).records()} == {end}


async def test_entries_that_did_not_change_are_not_touched(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    before = live.key_by_digest(digest(issued.key))
    await changes.create_key(db, generation, CLI, name="another")
    await live.catch_up(db)
    assert live.key_by_digest(digest(issued.key)) is before


async def test_with_the_database_away_what_is_known_stays(tmp_path: Path, db: Database, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    away = Database("postgresql+asyncpg://x@127.0.0.1:1/x")
    with pytest.raises(StoreUnavailable):
        await live.catch_up(away)
    await away.close()
    assert why_not(live, issued.key) is None


async def test_what_a_catch_up_that_failed_halfway_has_read_is_told_by_the_next(db: Database, generation: Generation) -> None:
    """The records of a user's many keys follow in transactions of their own."""

    class Leaving:
        """The database goes away after the log was read."""

        asked = 0

        def look(self) -> Any:
            self.asked += 1
            if self.asked > 1:
                raise StoreUnavailable("gone")
            return db.look()

    async with db.write() as conn:
        owner = await users.create(conn, "many@localhost", Role.MEMBER, None, 1.0)
        made = [ApiKey(f"{n:012d}", owner.id, "k", ("*",), ("inference",), Limits(), 1.0) for n in range(STEP + 1)]
        await keys.insert_keys(conn, [(key, digest(key.id)) for key in made])
    live = await LiveTables.load(db)
    await changes.disable_user(db, generation, CLI, owner.id)
    with pytest.raises(StoreUnavailable):
        await live.catch_up(Leaving())  # type: ignore[arg-type]  # it is asked for nothing else
    assert live.key_by_digest(digest("000000000000")) is None, "in force all the same"
    assert "user" in await live.catch_up(db)
    assert await live.catch_up(db) == set()


async def test_an_older_database_makes_it_read_everything_again(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    live.applied += 1000
    assert "key" in await live.catch_up(db)
    assert live.applied == generation.change
    assert why_not(live, issued.key) is None


async def test_to_load_a_hundred_thousand_keys_costs_little_more_than_to_read_them(db: Database) -> None:
    async with db.write() as conn:
        owners = [await users.create(conn, f"u{n}@localhost", Role.MEMBER, None, 1.0) for n in range(100)]
        rows = [
            {
                "id": f"{n:012d}", "user_id": owners[n % 100].id, "name": f"key {n}", "models": ("chat", f"team-{n % 300}-*"),
                "scopes": ("inference",), "rpm": n % 50 + 1, "created_at": float(n),
            }
            for n in range(100_000)
        ]  # fmt: skip
        digests = [{"digest": digest(str(row["id"])), "key_id": row["id"], "created_at": 1.0} for row in rows]
        for start in range(0, len(rows), 5000):
            await conn.execute(insert(api_keys), rows[start : start + 5000])
            await conn.execute(insert(api_key_digests), digests[start : start + 5000])
    started = time.process_time()  # of this process: the machine may be busy with others
    async with db.read() as conn:
        for row in (await conn.execute(keys.digest_rows())).all():
            digest(str(row))
    reading_s = time.process_time() - started
    live = await LiveTables.load(db)
    took_s = time.process_time() - started - reading_s
    record = live.key_by_digest(digest("000000000299"))
    assert record is not None
    assert record.principal.may_use("team-299-x")
    assert not record.principal.may_use("team-29")
    assert sum(1 for _ in live.records()) == 100_000
    assert took_s < 3 * reading_s, (took_s, reading_s)


async def test_networks_and_team_are_part_of_the_record(db: Database, generation: Generation, admin: User) -> None:
    team = await changes.create_team(db, generation, CLI, name="search")
    await changes.set_team(db, generation, CLI, admin.id, team.id)
    networks = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]
    issued = await changes.create_key(db, generation, CLI, name="k", networks=networks)
    anywhere = await changes.create_key(db, generation, CLI, name="anywhere")
    live = await LiveTables.load(db)
    principal = principal_of(live, issued)
    assert (principal.team_id, principal.networks and principal.networks.texts) == (
        team.id,
        ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"),
    )
    allowed = {
        a for a in ("10.1.2.3", "11.0.0.1", "2001:db8::5", "2001:db9::5", "192.0.2.7", "192.0.2.8", "") if principal.may_come_from(a)
    }
    assert allowed == {"10.1.2.3", "2001:db8::5", "192.0.2.7"}
    assert principal_of(live, anywhere).networks is None
    assert principal_of(live, anywhere).may_come_from("")
    await changes.update_key(db, generation, CLI, issued.id, {"networks": []})
    await live.catch_up(db)
    assert principal_of(live, issued).networks is None


async def test_what_no_key_has_any_more_is_not_kept(db: Database, generation: Generation, issued: IssuedKey) -> None:
    """Whoever may change one key could else fill the memory of every process with lists of networks and models."""
    live = await LiveTables.load(db)
    for n in range(20):
        await changes.update_key(db, generation, CLI, issued.id, {"networks": [f"10.0.{n}.0/24"], "models": [f"model-{n}"]})
        await live.catch_up(db)
    principal = principal_of(live, issued)
    assert (principal.may_come_from("10.0.19.7"), principal.may_use("model-19"), principal.may_use("model-18")) == (True, True, False)
    same = await changes.create_key(db, generation, CLI, name="same", networks=["10.0.19.0/24"], models=["model-19"])
    await live.catch_up(db)
    assert principal_of(live, same).networks is principal.networks  # and what several have is there once
    del principal
    re.purge()  # the few hundred that the module keeps for itself
    gc.collect()
    assert live.shared == 2


async def test_networks_that_cannot_be_read_let_nobody_in(db: Database, issued: IssuedKey) -> None:
    async with db.write() as conn:
        await conn.execute(update(api_keys).values(networks=("no network",)))
    principal = principal_of(await LiveTables.load(db), issued)
    assert not any(principal.may_come_from(address) for address in ("127.0.0.1", "10.0.0.1", "::1", ""))


class TestOwnersOfManyKeys:
    """More keys than are read at once: what changes is in force at once, and the records follow step by step."""

    COUNT = 2 * STEP + 50

    @pytest.fixture
    async def owner(self, db: Database, generation: Generation, admin: User) -> User:
        return await changes.create_user(db, generation, CLI, email="many@localhost", role=Role.ADMIN)

    @pytest.fixture
    async def texts(self, db: Database, owner: User) -> list[str]:
        minted = [mint() for _ in range(self.COUNT)]
        limits = Limits(budget=Budget(5))
        issued = [(ApiKey(key_id, owner.id, "k", ("*",), ("inference", "admin"), limits, 1.0), digest(text)) for key_id, text in minted]
        async with db.write() as conn:
            await keys.insert_keys(conn, issued)
        return [text for _, text in minted]

    async def test_a_disabled_owner_is_refused_at_once_and_back_when_all_is_read(
        self, db: Database, generation: Generation, owner: User, texts: list[str]
    ) -> None:
        live = await LiveTables.load(db)
        await changes.disable_user(db, generation, CLI, owner.id)
        await live.catch_up(db)
        assert live.unfinished
        assert live.applied == generation.change
        assert {why_not(live, text) for text in texts} == {"disabled"}
        assert await finished(live, db) == 2
        assert {why_not(live, text) for text in texts} == {"disabled"}
        await changes.enable_user(db, generation, CLI, owner.id)
        await live.catch_up(db)
        await finished(live, db)
        assert live.applied == generation.change
        assert {why_not(live, text) for text in texts} == {None}

    async def test_a_role_taken_away_is_gone_at_once(self, db: Database, generation: Generation, owner: User, texts: list[str]) -> None:
        live = await LiveTables.load(db)
        await changes.set_role(db, generation, CLI, owner.id, Role.MEMBER)
        await live.catch_up(db)
        assert live.unfinished
        for _ in range(3):
            found = [live.key_by_digest(digest(text)) for text in texts]
            assert {(r.principal.role, r.principal.scopes) for r in found if r} == {(Role.MEMBER, frozenset({"inference"}))}
            assert {r.principal.limits for r in found if r} == {Limits(budget=Budget(5))}
            await live.catch_up(db)
        assert not live.unfinished

    async def test_limits_of_their_owner_hold_at_once(self, db: Database, generation: Generation, owner: User, texts: list[str]) -> None:
        live = await LiveTables.load(db)
        await changes.update_user(db, generation, CLI, owner.id, {"rpm": 7})
        await live.catch_up(db)
        assert live.unfinished
        found = [live.key_by_digest(digest(text)) for text in texts]
        assert {tuple(one.limits for one in r.principal.callers) for r in found if r} == {(Limits(budget=Budget(5)), Limits(rpm=7))}
        assert len({id(r.principal.callers[1]) for r in found if r}) == 1
        await finished(live, db)
        assert {len(r.principal.callers) for text in texts if (r := live.key_by_digest(digest(text)))} == {2}

    async def test_a_key_revoked_meanwhile_does_not_wait_and_does_not_come_back(
        self, db: Database, generation: Generation, owner: User, texts: list[str]
    ) -> None:
        live = await LiveTables.load(db)
        await changes.set_role(db, generation, CLI, owner.id, Role.MEMBER)
        await live.catch_up(db)
        for text in texts[::100]:
            await changes.revoke_key(db, generation, CLI, text.split("-")[2])
        await live.catch_up(db)
        assert live.unfinished
        assert {why_not(live, text) for text in texts[::100]} == {"revoked"}
        await finished(live, db)
        assert {why_not(live, text) for text in texts[::100]} == {"revoked"}
        assert why_not(live, texts[1]) is None

    async def test_budgets_of_keys_that_come_back_are_read_first(
        self, db: Database, generation: Generation, owner: User, texts: list[str]
    ) -> None:
        await changes.disable_user(db, generation, CLI, owner.id)
        spending = Spending()
        live = await LiveTables.load(db)
        key_id = texts[-1].split("-")[2]
        spent = {"request_id": "r", "key_id": key_id, "started_at": time.time(), "user_id": owner.id, "cost_pusd": 3}
        others = {"operation": "chat", "model": "m", "attempts": 1, "status": 200, "ending": "success", "token_source": "backend"}
        async with db.write() as conn:
            await insert_usage(conn, [spent | others | {"prompt_tokens": 0, "completion_tokens": 0}], "s", 1)
        await changes.enable_user(db, generation, CLI, owner.id)
        while live.applied != generation.change or live.unfinished:
            await live.catch_up(db, spending)
        assert spending.spent(key_id, None)[0] == 3


async def test_a_long_log_is_read_in_steps(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    async with db.write() as conn:
        for _ in range(STEP + 5):
            last = await changelog.append(conn, "key", issued.id, "test")
        await changelog.append(conn, "team", "t", "test")
    await changes.revoke_key(db, generation, CLI, issued.id)
    assert await live.catch_up(db) == {"key", "team"}
    assert live.applied == generation.change > last
    assert why_not(live, issued.key) == "revoked"


async def test_reading_everything_again_leaves_no_key_out_meanwhile(db: Database, generation: Generation, issued: IssuedKey) -> None:
    live = await LiveTables.load(db)
    live.applied += 1000

    async def ask() -> set[str | None]:
        seen = set()
        while live.applied != generation.change:
            seen.add(why_not(live, issued.key))
            await asyncio.sleep(0)
        return seen

    _, seen = await asyncio.gather(live.catch_up(db), ask())
    assert seen == {None}


@pytest.mark.parametrize("dialect", ["sqlite"])  # what is measured is this process; one database is enough
async def test_the_keys_of_an_owner_of_100000_hold_the_loop_for_moments_only(db: Database, generation: Generation) -> None:
    async with db.write() as conn:
        owner = await users.create(conn, "many@localhost", Role.MEMBER, None, 1.0)
        for start in range(0, 100_000, 5000):
            made = [ApiKey(f"{n:012d}", owner.id, "k", ("*",), ("inference",), Limits(rpm=5), 1.0) for n in range(start, start + 5000)]
            await keys.insert_keys(conn, [(key, digest(key.id)) for key in made])
    live = await LiveTables.load(db)
    held_s: list[float] = []

    async def watch() -> None:
        """How much of this process's own time passes between two turns of the loop: the machine may be busy with others."""
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0)
            held_s.append(time.thread_time() - before_s)

    await changes.disable_user(db, generation, CLI, owner.id)
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # the collector as a server process sets it: what it does with all else that a test run holds is not measured here
    gc.set_threshold(50_000, 20, 20)
    watching = asyncio.create_task(watch())
    try:
        while live.applied != generation.change or live.unfinished:
            await live.catch_up(db)
        live.applied += 1000
        await live.catch_up(db)  # all of them, as from another database
    finally:
        watching.cancel()
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert live.key_by_digest(digest("000000099999")) is None
    assert max(held_s) < 0.05, sorted(held_s)[-5:]
