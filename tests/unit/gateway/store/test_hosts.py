"""Hosts on one database know of each other."""

from __future__ import annotations

from gateway.store import hosts, meta
from gateway.store.engine import Database
from gateway.store.hosts import FRESH_S, Host


async def announce(db: Database, host_id: str, now_s: float, shares: bool = False) -> tuple[Host, list[Host]]:
    async with db.write() as conn:
        return await hosts.announce(conn, host_id, now_s, shares)


async def test_each_sees_the_others_and_since_when_they_are_there(db: Database) -> None:
    assert await announce(db, "a", 1000) == (Host("a", 1000, 1000, False), [])
    assert await announce(db, "b", 1010, True) == (Host("b", 1010, 1010, True), [Host("a", 1000, 1000, False)])
    assert await announce(db, "a", 1020) == (Host("a", 1000, 1020, False), [Host("b", 1010, 1010, True)])


async def test_who_does_not_write_is_gone_and_comes_back_as_the_newest(db: Database) -> None:
    await announce(db, "a", 1000)
    await announce(db, "b", 1001)
    assert (await announce(db, "b", 1001 + FRESH_S))[1] == []
    assert (await announce(db, "a", 1002 + FRESH_S))[0].since_s == 1002 + FRESH_S


async def test_who_leaves_is_gone_at_once_and_a_process_that_stays_remembers(db: Database) -> None:
    await announce(db, "a", 1000)
    await announce(db, "b", 1001)
    async with db.write() as conn:
        await hosts.leave(conn, "a")
    assert (await announce(db, "b", 1002))[1] == []
    async with db.write() as conn:
        assert (await hosts.announce(conn, "a", 1003, False, 1000))[0].since_s == 1000


async def test_who_is_gone_for_a_day_leaves_no_row(db: Database) -> None:
    await announce(db, "a", 1000)
    await announce(db, "b", 1000 + 86_401)
    async with db.read() as conn:
        assert await meta.get(conn, "host:a") is None
        assert await meta.get(conn, "host:b") is not None


async def test_the_first_names_the_installation(db: Database) -> None:
    async with db.write() as conn:
        assert [await hosts.installation(conn, name) for name in ("one", "two")] == ["one", "one"]
