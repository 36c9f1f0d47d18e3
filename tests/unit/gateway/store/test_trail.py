"""The audit log: chained, append-only, searchable, and every way to change it behind the gateway's back found."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Role
from gateway.store import trail, users
from gateway.store.chain import Walk, canonical, link, moment
from gateway.store.engine import Database
from gateway.store.errors import AuditHeadMissing
from gateway.store.migrate import SCRIPTS, migrate
from gateway.store.trail import Wanted, append, newest, oldest, verify


async def _append(conn: AsyncConnection, n: int, **more: object) -> int:
    fields: dict[str, object] = {
        "at": 1_700_000_000.25 + n, "actor_user_id": None, "via": "cli", "address": None, "action": "create",
        "entity": "key", "entity_id": f"key{n}", "before": None, "after": {"name": f"nübel {n}", "rpm": n, "models": ("*",)},
    }  # fmt: skip
    return await append(conn, **(fields | more))  # type: ignore[arg-type]  # as given


async def _fill(db: Database, count: int) -> None:
    for n in range(1, count + 1):
        async with db.write() as conn:
            assert await _append(conn, n, actor_key_id="thekey000000" if n == 4 else None) == n


async def _unguarded(db: Database, *statements: str) -> None:
    """What somebody does who owns the database: the triggers go first."""
    async with db.write() as conn:
        if db.dialect == "sqlite":
            for name in ("audit_no_update", "audit_no_delete", "audit_no_replace"):
                await conn.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        else:
            await conn.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        for statement in statements:
            await conn.execute(text(statement))


async def test_a_log_that_nobody_touched_is_whole(db: Database) -> None:
    assert (await verify(db)).faults == ()
    await _fill(db, 5)
    verdict = await verify(db)
    assert (verdict.entries, verdict.last_id, verdict.faults) == (5, 5, ())
    async with db.read() as conn:
        entries, rest = await oldest(conn)
    assert rest is None
    assert verdict.last_hash == entries[-1].hash
    previous = bytes(32)
    for entry in entries:  # as the documentation says that anybody can check an export
        line = json.loads(json.dumps(trail.exported(entry)))
        wanted = line.pop("hash")
        previous = hashlib.sha256(previous + canonical(line)).digest()
        assert previous.hex() == wanted
    assert [("actor_key_id" in trail.exported(entry)) for entry in entries] == [False, False, False, True, False]
    assert entries[0].after == {"name": "nübel 1", "rpm": 1, "models": ["*"]}


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (["UPDATE audit SET action = 'delete' WHERE id = 3"], 3),
        (["UPDATE audit SET at = at - 1 WHERE id = 3"], 3),
        (["UPDATE audit SET actor_user_id = 'usr_other' WHERE id = 3"], 3),
        (["UPDATE audit SET address = '203.0.113.9' WHERE id = 3"], 3),
        (["UPDATE audit SET actor_key_id = 'otherkey0000' WHERE id = 3"], 3),
        (["UPDATE audit SET actor_key_id = '' WHERE id = 3"], 3),
        (["UPDATE audit SET actor_key_id = NULL WHERE id = 4"], 4),
        (["UPDATE audit SET actor_key_id = 'otherkey0000' WHERE id = 4"], 4),
        (["""UPDATE audit SET after = '{"name":"other"}' WHERE id = 3"""], 3),
        (["UPDATE audit SET after = 'no JSON' WHERE id = 3"], 3),
        (["UPDATE audit SET before = after, after = NULL WHERE id = 3"], 3),
        (["DELETE FROM audit WHERE id = 1"], 2),
        (["DELETE FROM audit WHERE id = 3"], 4),
        (["DELETE FROM audit WHERE id IN (2, 3)"], 4),
        (["DELETE FROM audit WHERE id = 6"], 6),
        (["DELETE FROM audit"], 6),
        (["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = id - 1 WHERE id = 4", "UPDATE audit SET id = id - 1 WHERE id = 5"], 3),
    ],
)
async def test_what_was_removed_or_altered_is_named(db: Database, statements: Sequence[str], named: int) -> None:
    await _fill(db, 6)
    await _unguarded(db, *statements)
    assert named in [fault.id for fault in (await verify(db)).faults]


async def test_one_altered_entry_is_one_fault(db: Database) -> None:
    await _fill(db, 8)
    await _unguarded(db, "UPDATE audit SET entity_id = 'other' WHERE id = 4")
    faults = (await verify(db)).faults
    assert [(fault.id, fault.message) for fault in faults] == [(4, "Entry 4 was altered, or the hash of entry 3 was.")]


async def test_a_tail_that_is_cut_off_stays_missing_when_the_log_goes_on(db: Database) -> None:
    await _fill(db, 6)
    await _unguarded(db, "DELETE FROM audit WHERE id > 4")
    assert [f.message for f in (await verify(db)).faults] == ["Entries 5 to 6 are missing at the end."]
    async with db.write() as conn:
        assert await _append(conn, 7) == 7
    assert [f.message for f in (await verify(db)).faults] == ["Entries 5 to 6 are missing, or entry 7 was altered."]


async def test_an_entry_put_in_by_hand_is_found(db: Database) -> None:
    await _fill(db, 3)
    columns = "id, at, via, action, entity, entity_id, hash"
    await _unguarded(db, f"INSERT INTO audit ({columns}) SELECT 4, at, via, action, entity, entity_id, hash FROM audit WHERE id = 3")
    assert 4 in [fault.id for fault in (await verify(db)).faults]


async def test_a_log_written_anew_as_a_whole_does_not_go_through_a_hash_kept_elsewhere(db: Database) -> None:
    await _fill(db, 4)
    kept = await verify(db)
    head = (await _head(db)).replace("'", "''")
    await _unguarded(db, "DELETE FROM audit", _set_head(json.dumps({"id": 0, "hash": "00" * 32, "count": 0})))
    for n in range(1, 7):
        async with db.write() as conn:
            await _append(conn, n, action="harmless")
    assert (await verify(db)).faults == (), "the chain alone cannot tell"
    assert [f.id for f in (await verify(db, (kept.last_id, kept.last_hash))).faults] == [4]
    assert [f.id for f in (await verify(db, (9, kept.last_hash))).faults] == [9]
    await _unguarded(db, _set_head(head))
    assert (await verify(db)).faults, "the recorded end is another one"


async def test_without_its_head_the_log_takes_nothing_more(db: Database) -> None:
    await _fill(db, 2)
    await _unguarded(db, "DELETE FROM meta WHERE name = 'audit_head'")
    with pytest.raises(AuditHeadMissing):
        async with db.write() as conn:
            await _append(conn, 3)
    verdict = await verify(db)
    assert (verdict.entries, [f.id for f in verdict.faults]) == (2, [None])


async def test_the_database_refuses_every_change_but_an_appended_entry(db: Database) -> None:
    await _fill(db, 2)
    own = "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 1" if db.dialect == "sqlite" else "TRUNCATE audit"
    for statement in (own, "UPDATE audit SET action = 'other' WHERE id = 1", "DELETE FROM audit WHERE id = 1", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with db.write() as conn:
                await conn.execute(text(statement))
    verdict = await verify(db)
    assert (verdict.entries, verdict.faults) == (2, ())


async def test_many_at_once_make_one_chain(db: Database, database_url: str) -> None:
    others = [Database(database_url) for _ in range(3)]

    async def write(database: Database, n: int) -> None:
        async with database.write() as conn:
            await _append(conn, n)
            if n % 3 == 0:
                await _append(conn, n, action="twice")

    await asyncio.gather(*(write(others[n % 3], n) for n in range(1, 16)))
    verdict = await verify(db)
    assert (verdict.entries, verdict.last_id, verdict.faults) == (20, 20, ())
    for other in others:
        await other.close()


async def test_a_change_that_is_taken_back_leaves_no_gap(db: Database) -> None:
    await _fill(db, 1)
    with pytest.raises(RuntimeError):
        async with db.write() as conn:
            await _append(conn, 2)
            raise RuntimeError
    async with db.write() as conn:
        assert await _append(conn, 3) == 2
    assert (await verify(db)).faults == ()


async def test_searching(db: Database) -> None:
    async with db.write() as conn:
        dana = await users.create(conn, "dana@example.com", Role.ADMIN, None, 1.0)
        await _append(conn, 1, actor_user_id=dana.id, via="api", address="203.0.113.7", actor_key_id="k3v9x0q2m7ab")
        await _append(conn, 2, action="revoke", after=None, before={"name": "50% off_"})
        await _append(conn, 3, entity="user", entity_id=dana.id, action="set_role", after={"note": 'a "quoted" \\ Thing'})

    async def ids(**wanted: object) -> list[int]:
        async with db.read() as conn:
            back, _ = await newest(conn, Wanted(**wanted))  # type: ignore[arg-type]  # as given
            forth, _ = await oldest(conn, Wanted(**wanted))  # type: ignore[arg-type]  # as given
        assert forth == back[::-1]
        return [entry.id for entry in forth]

    assert await ids() == [1, 2, 3]
    assert await ids(actor=dana.id) == await ids(actor="Dana@example.com") == [1]
    assert await ids(actor="k3v9x0q2m7ab") == await ids(words="v9x0q2") == [1]
    assert await ids(action="revoke") == [2]
    assert await ids(entity="user", entity_id=dana.id) == [3]
    assert await ids(words="NÜBEL".replace("Ü", "ü")) == [1]
    assert await ids(words="203.0.113") == await ids(words="DANA@") == [1]
    assert await ids(words="50%") == await ids(words="off_") == [2]
    assert await ids(words="5_%") == await ids(words="%%%") == []
    assert await ids(words='"quoted" \\ thing') == [3]
    assert await ids(since_s=1_700_000_002.25) == [2, 3]
    assert await ids(until_s=1_700_000_002.25) == [1]
    assert await ids(action="create", words="nothing like it") == []


async def test_pages_follow_each_other_both_ways(db: Database) -> None:
    await _fill(db, 7)
    async with db.read() as conn:
        first, place = await newest(conn, limit=3)
        second, place = await newest(conn, before_id=place, limit=3)
        third, place = await newest(conn, before_id=place, limit=3)
        assert [[entry.id for entry in found] for found in (first, second, third)] == [[7, 6, 5], [4, 3, 2], [1]]
        assert place is None
        first, place = await oldest(conn, limit=3)
        second, place = await oldest(conn, after_id=place or 0, limit=4)
        assert [[entry.id for entry in found] for found in (first, second)] == [[1, 2, 3], [4, 5, 6, 7]]
        assert place is None
        assert [e.id for e in await trail.page(conn, before_id=4, limit=2)] == [3, 2]


async def test_a_search_for_words_looks_at_so_many_entries_and_says_where_to_go_on(db: Database) -> None:
    await _unguarded(db, _bulk(db, 80_000))
    async with db.read() as conn:
        found, place = await newest(conn, Wanted(words="key77"), limit=5)
        assert (len(found), place) == (5, found[-1].id)
        found, place = await newest(conn, Wanted(words="key1"), before_id=70_000, limit=500)
        assert (found, place) == ([], 20_000)
        found, place = await newest(conn, Wanted(words="key12345"), before_id=place, limit=500)
        assert ([e.id for e in found], place) == ([12_345], None)
        found, place = await oldest(conn, Wanted(words="key79999"))
        assert (found, place) == ([], 50_000)
        found, place = await oldest(conn, Wanted(words="key79999"), after_id=50_000)
        assert ([e.id for e in found], place) == ([79_999], None)


async def test_old_entries_are_chained_as_they_stand(empty_url: str, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(
        SCRIPTS, older, ignore=shutil.ignore_patterns("__pycache__", "r0004*", "r0005*", "r0006*", "r0007*", "r0008*", "r0009*", "r001*")
    )
    await migrate(empty_url, older)
    db = Database(empty_url)
    async with db.write() as conn:
        for n in (1, 2, 5):  # PostgreSQL leaves gaps where a change was taken back
            after = json.dumps({"name": f"ß {n}", "limits": [n, None]}, ensure_ascii=False)
            values = {"id": n, "at": 1_700_000_000.123456 + n, "address": None if n == 2 else "192.0.2.1", "after": after}
            await conn.execute(
                text("INSERT INTO audit (id, at, via, address, action, entity, entity_id, after) "
                     "VALUES (:id, :at, 'cli', :address, 'create', 'key', 'k', :after)"), values)  # fmt: skip
    await db.close()
    await migrate(empty_url)
    db = Database(empty_url)
    verdict = await verify(db)
    assert (verdict.entries, verdict.last_id, verdict.faults) == (3, 5, ())
    async with db.write() as conn:
        assert await _append(conn, 6) == 6
    assert (await verify(db)).faults == ()
    await _unguarded(db, "DELETE FROM audit WHERE id = 2")
    assert [f.id for f in (await verify(db)).faults] == [5]
    await db.close()


async def test_entries_from_before_keys_were_named_keep_their_hashes(empty_url: str, tmp_path: Path) -> None:
    """The table as it was, with a chain in it, and its triggers in force before and after."""
    older = tmp_path / "older"
    shutil.copytree(SCRIPTS, older, ignore=shutil.ignore_patterns("__pycache__", "r0005*", "r0006*", "r0007*", "r0008*", "r0009*", "r001*"))
    await migrate(empty_url, older)
    db, previous, lines = Database(empty_url), bytes(32), []
    async with db.write() as conn:
        for n in (1, 2, 3):
            fields: dict[str, object] = {
                "id": n,
                "actor_user_id": "usr_1",
                "via": "api",
                "address": None,
                "action": "create",
                "entity": "key",
            }
            fields |= {"entity_id": f"k{n}", "before": None, "after": {"name": "ß"}}
            previous = link(previous, fields | {"at": moment(1_700_000_000.5)})
            lines.append(previous.hex())
            values = fields | {"at": 1_700_000_000.5, "after": json.dumps(fields["after"]), "hash": previous}
            columns = ", ".join(values)
            await conn.execute(text(f"INSERT INTO audit ({columns}) VALUES ({', '.join(f':{name}' for name in values)})"), values)
        await conn.execute(text(_set_head(json.dumps({"id": 3, "hash": previous.hex(), "count": 3}))))
    await db.close()
    await migrate(empty_url)
    db = Database(empty_url)
    async with db.write() as conn:
        assert await _append(conn, 4, actor_key_id="k3v9x0q2m7ab") == 4
    async with db.read() as conn:
        entries, _ = await oldest(conn)
    assert [entry.hash for entry in entries][:3] == lines
    assert [entry.actor_key_id for entry in entries] == [None, None, None, "k3v9x0q2m7ab"]
    assert (await verify(db, (3, lines[2]))).faults == ()
    for statement in ("UPDATE audit SET actor_key_id = NULL", "DELETE FROM audit WHERE id = 4"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with db.write() as conn:
                await conn.execute(text(statement))
    await _unguarded(db, "UPDATE audit SET actor_key_id = 'k' WHERE id = 2")
    assert [fault.id for fault in (await verify(db)).faults] == [2]
    await db.close()


def test_a_hundred_faults_are_enough() -> None:
    walk = Walk()
    for n in range(1, 500):
        walk.feed(n, {"id": n}, b"wrong")
    assert len(walk.finish().faults) == 100


def _bulk(db: Database, count: int) -> str:
    """Entries, quickly and without a chain."""
    digest = "x'00'" if db.dialect == "sqlite" else "'00'\\:\\:bytea"
    return f"""INSERT INTO audit (id, at, via, action, entity, entity_id, hash)
        WITH RECURSIVE counted AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM counted WHERE n < {count})
        SELECT n, 1.0, 'cli', 'create', 'key', 'key' || n, {digest} FROM counted"""


async def _head(db: Database) -> str:
    async with db.read() as conn:
        return str((await conn.execute(text("SELECT value FROM meta WHERE name = 'audit_head'"))).scalar_one())


def _set_head(value: str) -> str:
    return f"UPDATE meta SET value = '{value}' WHERE name = 'audit_head'".replace(":", "\\:")
