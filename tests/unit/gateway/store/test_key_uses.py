"""Last uses: coalesced in memory, written in batches, never backwards."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from gateway.store import key_uses
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.key_uses import Uses
from gateway.store.tables import key_uses as table


class Wall:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def written(db: Database) -> dict[str, float]:
    async with db.read() as conn:
        return {row.key_id: row.at for row in (await conn.execute(select(table))).all()}


async def test_a_use_before_the_known_one_changes_nothing(db: Database) -> None:
    async with db.write() as conn:
        await key_uses.save(conn, {"a": 10.0, "b": 10.0})
        await key_uses.save(conn, {"a": 9.0, "b": 11.0, "c": 5.0})
        await key_uses.save(conn, {})
    assert await written(db) == {"a": 10.0, "b": 11.0, "c": 5.0}


async def test_more_keys_than_one_statement_takes(db: Database) -> None:
    uses = {f"{n:012d}": float(n) for n in range(1001)}
    async with db.write() as conn:
        await key_uses.save(conn, uses)
    assert await written(db) == uses


async def test_the_first_use_is_written_at_once_and_then_one_a_minute(db: Database) -> None:
    wall = Wall()
    uses = Uses(wall)
    uses.note_all(["a", None, "b", "a"], [1.0, 99.0, 2.0, 3.0])
    assert await uses.write(db) == 2
    assert await written(db) == {"a": 3.0, "b": 2.0}
    for second in range(1, 60):
        wall.now_s += 1
        uses.note("a", 3.0 + second)
        assert await uses.write(db) == 0
    uses.note("c", 7.0)
    assert await uses.write(db) == 1, "the first use of another key does not wait"
    wall.now_s += 1
    assert await uses.write(db) == 1
    assert await written(db) == {"a": 62.0, "b": 2.0, "c": 7.0}
    assert await uses.write(db) == 0


async def test_at_the_end_everything_is_written(db: Database) -> None:
    uses = Uses(Wall())
    uses.note("a", 1.0)
    await uses.write(db)
    uses.note("a", 2.0)
    assert await uses.write(db) == 0
    assert await uses.write(db, everything=True) == 1
    assert await written(db) == {"a": 2.0}


async def test_what_could_not_be_written_waits(db: Database) -> None:
    uses, away = Uses(Wall()), Database("postgresql+asyncpg://x@127.0.0.1:1/x")
    uses.note("a", 1.0)
    with pytest.raises(StoreUnavailable):
        await uses.write(away)
    await away.close()
    assert await uses.write(db) == 1
    assert await written(db) == {"a": 1.0}


async def test_very_many_are_written_in_several_transactions(db: Database) -> None:
    uses = Uses(Wall())
    for number in range(9000):
        uses.note(f"{number:012d}", 1.0 + number)
    assert await uses.write(db) == 9000
    assert len(await written(db)) == 9000
    assert await uses.write(db) == 0
