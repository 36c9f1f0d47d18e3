"""Several processes change state at once: nothing is lost, and whoever follows the change log misses nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import select, update

from auth.principal import Role
from gateway import changes
from gateway.changes import Actor
from gateway.store import changelog, users
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.live import LiveTables
from gateway.store.tables import meta

_PROCESSES, _TIMES = 3, 80

# Reads, then writes what it read plus one: the pattern that loses updates where a transaction does not exclude the others.
_COUNTER = """
import asyncio, sys
from sqlalchemy import select, update
from gateway.store.changelog import lock
from gateway.store.engine import Database
from gateway.store.tables import meta

async def main():
    db = Database(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        async with db.write() as conn:
            await lock(conn)
            value = int((await conn.execute(select(meta.c.value).where(meta.c.name == "n"))).scalar_one())
            await conn.execute(update(meta).where(meta.c.name == "n").values(value=str(value + 1)))
    await db.close()

asyncio.run(main())
"""

_MAKES_KEYS = """
import asyncio, sys
from pathlib import Path
from gateway import changes
from gateway.store.engine import Database
from gateway.store.generation import Generation

async def main():
    db, generation = Database(sys.argv[1]), Generation(Path(sys.argv[3]))
    for number in range(int(sys.argv[2])):
        await changes.create_key(db, generation, changes.Actor(None, "cli"), name=f"key {number}")
    await db.close()

asyncio.run(main())
"""


async def _start(program: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", program, *arguments)


async def test_increments_from_three_processes_are_all_kept(db: Database, database_url: str) -> None:
    async with db.write() as conn:
        await conn.execute(meta.insert().values(name="n", value="0"))
    processes = [await _start(_COUNTER, database_url, str(_TIMES)) for _ in range(_PROCESSES)]
    assert [await p.wait() for p in processes] == [0] * _PROCESSES
    async with db.read() as conn:
        assert (await conn.execute(select(meta.c.value).where(meta.c.name == "n"))).scalar_one() == str(_PROCESSES * _TIMES)


async def test_a_follower_of_the_change_log_misses_no_change(db: Database, database_url: str, tmp_path: Path) -> None:
    """The follower reads while the others commit; an id that became visible after a later one would be missed for ever."""
    path = tmp_path / "run" / "generation"
    generation = Generation(path)
    await changes.create_user(db, generation, Actor(None, "init"), email="a@localhost", role=Role.ADMIN)
    live = await LiveTables.load(db, generation=generation)
    processes = [await _start(_MAKES_KEYS, database_url, str(_TIMES // 4), str(path)) for _ in range(_PROCESSES)]
    done = asyncio.gather(*(p.wait() for p in processes))
    rounds = 0
    while not done.done():
        if live.behind:
            await live.catch_up(db)
            rounds += 1
        await asyncio.sleep(0.001)
    assert await done == [0] * _PROCESSES
    await live.catch_up(db)
    assert not live.behind
    assert sum(1 for _ in live.records()) == _PROCESSES * (_TIMES // 4)
    async with db.read() as conn:
        assert generation.change == live.applied == await changelog.latest(conn)
    assert rounds > 3, "the follower never ran beside the writers"


async def test_only_one_of_many_first_admins_is_made(db: Database, generation: Generation) -> None:
    makers = [
        changes.ensure_admin(db, generation, Actor(None, "init"), email=f"a{n}@localhost", password_hash="$argon2id$unused")
        for n in range(8)
    ]
    assert sum(made is not None for made in await asyncio.gather(*makers)) == 1
    async with db.read() as conn:
        assert await users.count_admins(conn) == 1


async def test_an_update_in_a_read_transaction_is_refused(db: Database) -> None:
    from gateway.store.errors import StoreUnavailable

    try:
        async with db.read() as conn:
            await conn.execute(update(meta).values(value="x"))
    except StoreUnavailable as error:
        assert "READONLY" in error.reason or "25006" in error.reason
    else:
        raise AssertionError("a read transaction wrote")
