"""The content log in the database: shipped once, read with a trace, forgotten in its time or on demand. On both databases."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from auth.principal import Role
from gateway.changes import Actor, create_key, create_user, erase_contents, forget_secrets, read_content, reseal_contents, update_key
from gateway.changes.actor import change
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from gateway.keeper.contents import ContentShipper
from gateway.metering.spool import ContentLog, Entry, finished
from gateway.store import contents, meta, trail
from gateway.store.contents import Wanted
from gateway.store.engine import Database
from gateway.store.errors import SecretKeyRefused, StoreUnavailable
from gateway.store.generation import Generation
from gateway.store.secret_key import CONTENTS, SecretKeys, fingerprint
from gateway.store.secrets import SecretBox
from gateway.store.tables import contents as table

OLD, NEW = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz", "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"
BOX = SecretBox(OLD, purpose=CONTENTS)
CLI = Actor(None, "cli")
DAY_S = 86_400.0
REASON = "complaint 4711"


def said(request_id: str, *, ago_s: float = 0, key_id: str | None = "k1", user_id: str = "u1", model: str = "m") -> Entry:
    entry = Entry(request_id, time.time() - ago_s, key_id, user_id, "t1", model, "chat", 200, "success")
    entry.request_type = entry.answer_type = "application/json"
    entry.request, entry.answer = [b"asked by ", request_id.encode()], [b"answered"]
    entry.size_bytes, entry.request_bytes, entry.answer_bytes = 20, 9 + len(request_id), 8
    return entry


def spool(folder: Path, *entries: Entry, box: SecretBox = BOX) -> None:
    log = ContentLog(folder, box.seal_bytes, box.fingerprint, max_bytes=1000, spool_bytes=10**9)
    for entry in entries:
        log.keep(entry)
    log.close()


LOST = "x" * 20 + "0123456789abcdefghij"


def shipper(db: Database, folder: Path, kept_s: float = 30 * DAY_S, keys: SecretKeys = SecretKeys(NEW, (OLD, LOST))) -> ContentShipper:  # noqa: B008  # frozen
    async def own() -> SecretKeys:
        return keys

    return ContentShipper(db, folder, kept_s, own)


async def kept(db: Database, **wanted: Any) -> list[str]:
    async with db.read() as conn:
        return [about.request_id for about in await contents.page(conn, Wanted(**wanted))]


async def audit(db: Database, entity: str = "content") -> list[Any]:
    async with db.read() as conn:
        return list((await trail.newest(conn, trail.Wanted(entity=entity)))[0])


async def test_shipped_once(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("a"), said("b"))
    (path,) = finished(tmp_path)
    data = path.read_bytes()
    assert await shipper(db, tmp_path).ship() == 1
    assert finished(tmp_path) == []
    path.write_bytes(data)  # as if the process had been killed between the transaction and the end of the file
    assert await shipper(db, tmp_path).ship() == 1
    assert sorted(await kept(db)) == ["a", "b"]
    assert await shipper(db, tmp_path).ship() == 0


async def test_nothing_in_the_clear(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    async with db.read() as conn:
        (row,) = (await conn.execute(select(table))).all()
    assert b"asked" not in repr(tuple(row)).encode()
    assert b"answered" not in repr(tuple(row)).encode()


async def test_read_with_a_reason_and_a_trace(db: Database, generation: Generation, tmp_path: Path) -> None:
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    found = await read_content(db, generation, replace(CLI, address="192.0.2.7"), "a", f"  {REASON} ", box=BOX)
    assert (found.request, found.answer) == (b"asked by a", b"answered")
    (entry,) = await audit(db)
    assert (entry.action, entry.entity, entry.entity_id, entry.via, entry.address) == ("read", "content", "a", "cli", "192.0.2.7")
    assert entry.after == {"reason": REASON, "key_id": "k1", "user_id": "u1", "model": "m", "ending": "success"}


@pytest.mark.parametrize("reason", ["", "  ", "no", "x" * 201, "two\nlines", "nul\0nul"])
async def test_no_reading_without_a_reason(db: Database, generation: Generation, tmp_path: Path, reason: str) -> None:
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    with pytest.raises(InvalidRequest):
        await read_content(db, generation, CLI, "a", reason, box=BOX)
    assert await audit(db) == []


async def test_what_is_not_there_leaves_no_trace(db: Database, generation: Generation) -> None:
    with pytest.raises(NotFound):
        await read_content(db, generation, CLI, "none-such", REASON, box=BOX)
    assert await audit(db) == []


async def test_a_trace_is_left_though_nothing_can_be_opened(db: Database, generation: Generation, tmp_path: Path) -> None:
    """It is written first: there is no way to try without it."""
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    with pytest.raises(Unavailable):
        await read_content(db, generation, CLI, "a", REASON, box=SecretBox(NEW, purpose=CONTENTS))
    assert [entry.action for entry in await audit(db)] == ["read"]


async def test_a_ciphertext_under_another_request(db: Database, generation: Generation, tmp_path: Path) -> None:
    spool(tmp_path, said("a"), said("b"))
    await shipper(db, tmp_path).ship()
    async with db.write() as conn:
        row = (await conn.execute(select(table.c.request, table.c.answer).where(table.c.request_id == "a"))).one()
        await contents.put_resealed(conn, "b", BOX.fingerprint, row.request, row.answer)
    with pytest.raises(Unavailable, match="not what was logged"):
        await read_content(db, generation, CLI, "b", REASON, box=BOX)


async def test_lists(db: Database, tmp_path: Path) -> None:
    now_s = time.time()
    spool(tmp_path, said("a", ago_s=30), said("b", ago_s=20, key_id="k2"), said("c", ago_s=10, key_id=None, user_id="u2", model="n"))
    await shipper(db, tmp_path).ship()
    assert await kept(db) == ["c", "b", "a"]
    assert await kept(db, key_id="k2") == ["b"]
    assert await kept(db, user_id="u1") == ["b", "a"]
    assert await kept(db, model="n") == ["c"]
    assert await kept(db, since_s=now_s - 25, until_s=now_s - 15) == ["b"]
    async with db.read() as conn:
        first = await contents.page(conn, Wanted(), limit=2)
        rest = await contents.page(conn, Wanted(), before=(first[-1].at, first[-1].request_id), limit=2)
    assert [about.request_id for about in rest] == ["a"]


async def test_retention(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("young"), said("old", ago_s=3 * DAY_S))
    await shipper(db, tmp_path).ship()
    assert await shipper(db, tmp_path, 4 * DAY_S).tidy() == 0
    assert await shipper(db, tmp_path, 2 * DAY_S).tidy() == 1
    assert await kept(db) == ["young"]
    spool(tmp_path, said("older", ago_s=5 * DAY_S))  # had it waited on the disk all the time
    await shipper(db, tmp_path, 2 * DAY_S).ship()
    assert await kept(db) == ["young"]


async def test_a_file_does_not_outlive_its_content(db: Database, tmp_path: Path) -> None:
    """Whatever is wrong with it, and whether the database is there or not."""
    spool(tmp_path, said("a"))
    (old,) = finished(tmp_path)
    old_open = tmp_path / "1-killed.open"
    old_open.write_bytes(old.read_bytes())
    for path in (old, old_open):
        os.utime(path, times=(time.time(), time.time() - 3 * DAY_S))
    spool(tmp_path, said("b"))
    away = Database(f"sqlite+aiosqlite:///{tmp_path}/none-such/gateway.sqlite3")
    with pytest.raises(StoreUnavailable):
        await shipper(away, tmp_path, 2 * DAY_S).ship()
    await away.close()
    assert not old.exists()
    assert not old_open.exists()
    assert await shipper(db, tmp_path, 2 * DAY_S).ship() == 1
    assert await kept(db) == ["b"]


async def test_a_bad_line_holds_up_no_file(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("a"), said("b"))
    (path,) = finished(tmp_path)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first.replace(b'"sealed_with"', b'"sealed"') + b"\n" + second + b"\n")
    assert await shipper(db, tmp_path).ship() == 1
    assert await kept(db) == ["b"]
    assert finished(tmp_path) == []


async def test_the_oldest_file_goes_first(tmp_path: Path) -> None:
    for name, ago_s in (("1-z.spool", 30), ("9-a.spool", 20), ("10-b.spool", 10)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, times=(0, time.time() - ago_s))
    assert [path.name for path in finished(tmp_path)] == ["1-z.spool", "9-a.spool", "10-b.spool"]


async def test_many_are_dropped(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, *(said(f"r{number:03d}", ago_s=3 * DAY_S) for number in range(230)), said("young"))
    await shipper(db, tmp_path).ship()
    assert await shipper(db, tmp_path, 2 * DAY_S).tidy() == 230
    assert await kept(db) == ["young"]


@pytest.mark.parametrize(("kind", "entity_id", "left"), [("key", "k2", ["a", "c"]), ("user", "u1", ["c"]), ("request", "a", ["b", "c"])])
async def test_erasing(db: Database, generation: Generation, tmp_path: Path, kind: str, entity_id: str, left: list[str]) -> None:
    everything = [said("a", ago_s=3), said("b", ago_s=2, key_id="k2"), said("c", ago_s=1, user_id="u2")]
    spool(tmp_path / "here", *everything)
    await shipper(db, tmp_path / "here").ship()
    erased = await erase_contents(db, generation, CLI, kind, entity_id, REASON)
    assert (erased, sorted(await kept(db))) == (3 - len(left), left)
    (entry,) = await audit(db)
    assert (entry.action, entry.entity_id, entry.after) == ("erase", f"{kind}:{entity_id}", {"reason": REASON})
    spool(tmp_path / "there", *everything)  # of another host, whose disk it had not left yet
    await shipper(db, tmp_path / "there").ship()
    assert sorted(await kept(db)) == left
    spool(tmp_path / "there", said("d", ago_s=-1, key_id="k2"))  # begun later: nobody has said anything of that
    await shipper(db, tmp_path / "there").ship()
    assert "d" in await kept(db)


@pytest.mark.parametrize("kind", ["key", "user", "request"])
async def test_nobody_knows_of_whom(db: Database, generation: Generation, kind: str) -> None:
    """A slip of the pen must not look as if something had been forgotten."""
    for unknown in ("none-such", "none-such@example.com", "sk-gw-none-such"):
        with pytest.raises(NotFound):
            await erase_contents(db, generation, CLI, kind, unknown, REASON)
    assert await audit(db) == []
    async with db.read() as conn:
        assert await contents.erasures(conn) == []


async def test_erasing_by_what_people_call_it(db: Database, generation: Generation, tmp_path: Path) -> None:
    user = await create_user(db, generation, CLI, email="person@example.com", role=Role.MEMBER)
    key = await create_key(db, generation, CLI, name="k", owner_id=user.id)
    named = [
        ("user", "Person@Example.com", user.id),
        ("key", f"sk-gw-{key.id}", key.id),
        ("key", key.id, key.id),
        ("user", user.id, user.id),
    ]
    for number, (kind, name, entity_id) in enumerate(named):
        assert await erase_contents(db, generation, CLI, kind, name, REASON) == 0  # known, and nothing is logged of it yet
        spool(tmp_path, said(f"r{number}", key_id=key.id, user_id=user.id))
        await shipper(db, tmp_path).ship()
        assert await erase_contents(db, generation, CLI, kind, name, REASON) == 1
        assert (await audit(db))[0].entity_id == f"{kind}:{entity_id}"
    external = "ext_0123456789abcdef"  # vouched for by somebody else: the database does not know them
    assert await erase_contents(db, generation, CLI, "user", external, REASON) == 0


async def test_only_a_key_without_bounds_erases(db: Database, generation: Generation, tmp_path: Path) -> None:
    """What it is for says nothing of whose content it may make go away."""
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    admin = await create_user(db, generation, CLI, email="admin@example.com", role=Role.ADMIN)
    bounds: list[dict[str, Any]] = [{"models": ["other"]}, {"networks": ["127.0.0.0/8"]}, {"expires_at": time.time() + 60}, {}]
    for fields in bounds:
        key = await create_key(db, generation, CLI, name="k", owner_id=admin.id, scopes=["admin"], **fields)
        by = Actor(admin.id, "api", "127.0.0.1", frozenset({"admin"}), key_id=key.id)
        if fields:
            with pytest.raises(Forbidden, match="is bound to"):
                await erase_contents(db, generation, by, "key", "k1", REASON)
        else:
            assert await erase_contents(db, generation, by, "key", "k1", REASON) == 1


async def test_erasing_that_was_cut_off(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("a", ago_s=3), said("b", ago_s=2, key_id="k2"))
    await shipper(db, tmp_path).ship()
    async with db.write() as conn:
        await contents.note_erasure(conn, "key", "k2", time.time())
    await shipper(db, tmp_path).tidy()
    assert await kept(db) == ["a"]


async def test_erasing_and_shipping_at_once(db: Database, generation: Generation, tmp_path: Path) -> None:
    """What is being stored while somebody wants it forgotten is either seen by the erasure, or sees it."""
    spool(tmp_path, said("a", ago_s=3))
    async with change(db, generation, CLI) as step:
        await contents.note_erasure(step.conn, "key", "k1", step.now_s)
        shipping = asyncio.create_task(shipper(db, tmp_path).ship())
        assert not (await asyncio.wait({shipping}, timeout=0.3))[0]
    assert await shipping == 1
    assert await kept(db) == []


async def test_a_clock_that_is_ahead(db: Database, generation: Generation, tmp_path: Path) -> None:
    """Neither keeps a request longer nor saves it from being forgotten."""
    spool(tmp_path, said("a", ago_s=-10 * DAY_S))
    await shipper(db, tmp_path).ship()
    async with db.read() as conn:
        (about,) = await contents.page(conn, Wanted())
    assert about.at <= time.time()
    async with db.write() as conn:  # of a host whose clock was ahead of this one's when it was stored
        await conn.execute(table.update().values(at=time.time() + 600))
    assert await erase_contents(db, generation, CLI, "key", "k1", REASON) == 1


async def test_an_erasure_is_not_moved_back(db: Database, tmp_path: Path) -> None:
    now_s = time.time()
    async with db.write() as conn:
        for at in (now_s - 50, now_s, now_s - 100):
            await contents.note_erasure(conn, "key", "k1", at)
        assert await contents.erasures(conn) == [("key", "k1", now_s)]


async def test_who_may(db: Database, generation: Generation, tmp_path: Path) -> None:
    spool(tmp_path, said("a"))
    await shipper(db, tmp_path).ship()
    admin = await create_user(db, generation, CLI, email="admin@example.com", role=Role.ADMIN)
    viewer = await create_user(db, generation, CLI, email="viewer@example.com", role=Role.VIEWER)
    login = Actor(admin.id, "api", "127.0.0.1", Role.ADMIN.scopes, login=True)
    with pytest.raises(Forbidden):  # no role carries it, not even this one
        await read_content(db, generation, login, "a", REASON, box=BOX)
    admins = await create_key(db, generation, login, name="admin", scopes=["admin"])
    by_key = Actor(admin.id, "api", "127.0.0.1", frozenset({"admin"}), key_id=admins.id)
    with pytest.raises(Forbidden):
        await read_content(db, generation, by_key, "a", REASON, box=BOX)
    with pytest.raises(Forbidden, match="given and renewed by an admin"):  # a key gives no more than it carries
        await create_key(db, generation, by_key, name="reader", owner_id=viewer.id, scopes=["content"])
    reader = await create_key(db, generation, login, name="reader", owner_id=viewer.id, scopes=["content"])
    by_reader = Actor(viewer.id, "api", "127.0.0.1", frozenset({"content"}), key_id=reader.id)
    assert (await read_content(db, generation, by_reader, "a", REASON, box=BOX)).answer == b"answered"
    assert (await audit(db))[0].actor_key_id == reader.id
    narrow = await create_key(db, generation, login, name="narrow", owner_id=viewer.id, scopes=["content"], models=["other-*"])
    by_narrow = Actor(viewer.id, "api", "127.0.0.1", frozenset({"content"}), key_id=narrow.id)
    with pytest.raises(NotFound):  # of a model that the key is not for
        await read_content(db, generation, by_narrow, "a", REASON, box=BOX)
    with pytest.raises(Forbidden):  # who reads cannot make it go away
        await erase_contents(db, generation, by_reader, "key", "k1", REASON)
    assert await erase_contents(db, generation, by_key, "key", "k1", REASON) == 1


async def test_a_key_with_the_scope_is_renewed_by_admins_alone(db: Database, generation: Generation) -> None:
    """Else whoever may set its owner's password would come to read."""
    from gateway.changes import create_team, rotate_key

    await create_team(db, generation, CLI, name="ours")
    member = await create_user(db, generation, CLI, email="m@example.com", role=Role.MEMBER, team="ours")
    manager = await create_user(db, generation, CLI, email="b@example.com", role=Role.MANAGER, team="ours")
    reader = await create_key(db, generation, CLI, name="reader", owner_id=member.id, scopes=["content"])
    for user in (member, manager):
        actor = Actor(user.id, "api", "127.0.0.1", user.role.scopes, login=True)
        with pytest.raises(Forbidden):
            await rotate_key(db, generation, actor, reader.id)
    assert (await rotate_key(db, generation, CLI, reader.id)).key


async def test_a_key_with_the_scope_is_widened_by_those_who_give_it(db: Database, generation: Generation) -> None:
    """Else a key without it would reach further, or come to life again, through another's."""
    admin = await create_user(db, generation, CLI, email="admin@example.com", role=Role.ADMIN)
    viewer = await create_user(db, generation, CLI, email="viewer@example.com", role=Role.VIEWER)
    plain = await create_key(db, generation, CLI, name="admin", owner_id=admin.id, scopes=["admin"])
    bearing = await create_key(db, generation, CLI, name="both", owner_id=admin.id, scopes=["admin", "content"])
    reader = await create_key(
        db,
        generation,
        CLI,
        name="r",
        owner_id=viewer.id,
        scopes=["content"],
        models=["a-*"],
        networks=["10.0.0.0/8"],
        expires_at=time.time() + DAY_S,
    )
    by_plain, by_bearing = (Actor(admin.id, "api", "127.0.0.1", frozenset(key.scopes), key_id=key.id) for key in (plain, bearing))
    wider: list[dict[str, Any]] = [{"models": ["*"]}, {"networks": []}, {"expires_at": None}, {"expires_at": time.time() + 2 * DAY_S}]
    for fields in wider:
        with pytest.raises(Forbidden, match="given and renewed by an admin"):
            await update_key(db, generation, by_plain, reader.id, fields)
    await update_key(db, generation, by_plain, reader.id, {"name": "n", "models": ["a-1"], "expires_at": time.time() + 60})
    for fields in wider:
        await update_key(db, generation, by_bearing, reader.id, fields)


async def test_who_says_what_is_logged(db: Database, generation: Generation) -> None:
    from gateway.changes import create_team

    box = SecretBox(OLD)
    await create_team(db, generation, CLI, name="ours")
    member = await create_user(db, generation, CLI, email="m@example.com", role=Role.MEMBER, team="ours")
    manager = await create_user(db, generation, CLI, email="b@example.com", role=Role.MANAGER, team="ours")
    key = await create_key(db, generation, CLI, name="k", owner_id=member.id)
    with pytest.raises(Conflict, match="GATEWAY_SECRET_KEY"):
        await update_key(db, generation, CLI, key.id, {"content_log": True})
    assert (await update_key(db, generation, CLI, key.id, {"content_log": True}, box=box)).content_log
    for user in (member, manager):
        actor = Actor(user.id, "api", "127.0.0.1", user.role.scopes, login=True)
        with pytest.raises(Forbidden):
            await update_key(db, generation, actor, key.id, {"content_log": False})
        with pytest.raises(Forbidden):
            await create_key(db, generation, actor, name="k", owner_id=member.id, content_log=True, box=box)
    (changed, *_) = await audit(db, "key")
    assert (changed.before["content_log"], changed.after["content_log"]) == (False, True)
    assert not (await update_key(db, generation, CLI, key.id, {"content_log": False})).content_log


async def test_a_new_secret_key(db: Database, generation: Generation, tmp_path: Path) -> None:
    both = SecretBox(NEW, (OLD,), CONTENTS)
    spool(tmp_path, *(said(f"r{number:02d}") for number in range(45)))
    spool(tmp_path, said("new"), box=both)
    lost = SecretBox(LOST, purpose=CONTENTS)
    spool(tmp_path, said("lost"), box=lost)
    await shipper(db, tmp_path).ship()
    assert await reseal_contents(db, generation, CLI, box=both) == (45, 1)
    fresh = SecretBox(NEW, purpose=CONTENTS)
    for request_id in ("r00", "r44", "new"):
        assert (await read_content(db, generation, CLI, request_id, REASON, box=fresh)).request == f"asked by {request_id}".encode()
    async with db.read() as conn:
        assert await contents.count_sealed_otherwise(conn, fresh.fingerprint) == 1
    assert (await audit(db))[-1].after == {"requests": 45, "unreadable": 1}


async def test_a_lost_secret_key(db: Database, generation: Generation, tmp_path: Path) -> None:
    """What nobody can open any more is not kept, nor stored later. It goes some at a time: there may be gigabytes of it."""
    spool(tmp_path, *(said(f"r{number:03d}") for number in range(220)))
    await shipper(db, tmp_path).ship()
    changed: list[int] = []
    engine = db._writer.sync_engine  # what it is told, statement by statement

    def after(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("DELETE FROM contents"):
            changed.append(cursor.rowcount)

    event.listen(engine, "after_cursor_execute", after)
    await forget_secrets(db, generation, CLI, keys=SecretKeys(NEW), algorithm="HS256")
    event.remove(engine, "after_cursor_execute", after)
    assert await kept(db) == []
    assert max(changed) <= 100
    assert sum(changed) == 220
    (entry,) = await audit(db, "secret")
    assert entry.before["contents"] == 220
    spool(tmp_path, said("late"))  # it waited on a disk meanwhile
    spool(tmp_path, said("new"), box=SecretBox(NEW, purpose=CONTENTS))
    assert await shipper(db, tmp_path, keys=SecretKeys(NEW)).ship() == 2
    assert await kept(db) == ["new"]


async def test_what_another_host_can_open_is_stored(db: Database, generation: Generation, tmp_path: Path) -> None:
    """While the key is replaced, hosts have different ones for a while."""
    for request_id, key in (("old", OLD), ("new", NEW), ("lost", LOST)):
        spool(tmp_path, said(request_id), box=SecretBox(key, purpose=CONTENTS))
    async with db.write() as conn:
        await meta.put(conn, meta.KEY_FINGERPRINT, fingerprint(OLD))
        await meta.put(conn, meta.KEY_SUCCESSOR, fingerprint(NEW))
    assert await shipper(db, tmp_path, keys=SecretKeys(OLD)).ship() == 3
    assert sorted(await kept(db)) == ["new", "old"]


async def test_where_no_key_fits_everything_is_stored(db: Database, tmp_path: Path) -> None:
    spool(tmp_path, said("a"))

    async def refused() -> SecretKeys:
        raise SecretKeyRefused("it is not this database's")

    assert await ContentShipper(db, tmp_path, 30 * DAY_S, refused).ship() == 1
    assert await kept(db) == ["a"]
