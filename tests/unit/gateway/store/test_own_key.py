"""A database remembers the first secret key that it is set up with, and is served with no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.changes import Actor, reseal_secrets
from gateway.store import meta
from gateway.store.engine import Database
from gateway.store.errors import SecretKeyRefused
from gateway.store.generation import Generation
from gateway.store.own_key import check_keys, keys_for, settle_keys, successor_keys
from gateway.store.secret_key import FILE_NAME, PREVIOUS_FILE_NAME, SecretKeys

MINE = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"
OTHER = "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"
THIRD = "Yw4Ns8Cv1Mz6Tb3Xq9Kd5Gj0Rl7Hf2PaUeIoOyEt"
INIT = Actor(None, "init")


async def test_the_first_key_is_remembered(db: Database, database_url: str, tmp_path: Path) -> None:
    with pytest.raises(SecretKeyRefused, match="gateway init"):
        await check_keys(db, (tmp_path, MINE, None, ""))
    assert await settle_keys(db, (tmp_path, MINE, None, "")) == SecretKeys(MINE)
    for _ in range(2):
        assert await check_keys(db, (tmp_path, MINE, None, "")) == SecretKeys(MINE)
    for asked in (check_keys(db, (tmp_path, OTHER, None, "")), settle_keys(db, (tmp_path, OTHER, None, ""))):
        with pytest.raises(SecretKeyRefused, match="not the one that this database was set up with"):
            await asked
    with pytest.raises(SecretKeyRefused, match="not the one"):
        await keys_for(database_url, (tmp_path, OTHER, None, ""))
    replacing = SecretKeys(OTHER, (MINE,))
    assert await check_keys(db, (tmp_path, OTHER, None, MINE)) == replacing
    assert await keys_for(database_url, (tmp_path, OTHER, None, MINE)) == replacing


async def test_none_is_made_where_one_is_remembered(db: Database, tmp_path: Path) -> None:
    await settle_keys(db, (tmp_path, MINE, None, ""))
    for asked in (check_keys, settle_keys):
        with pytest.raises(SecretKeyRefused, match=r"secret\.key is missing"):
            await asked(db, (tmp_path, "", None, ""))
    assert not (tmp_path / FILE_NAME).exists()


async def test_it_is_succeeded_only_where_it_is_lost(db: Database, tmp_path: Path) -> None:
    await settle_keys(db, (tmp_path, MINE, None, ""))
    for sources in ((tmp_path, MINE, None, ""), (tmp_path, OTHER, None, MINE)):
        with pytest.raises(SecretKeyRefused, match="nothing is lost"):
            await successor_keys(db, sources)
    assert await successor_keys(db, (tmp_path, OTHER, None, "")) == SecretKeys(OTHER)
    made = await successor_keys(db, (tmp_path, "", None, ""))
    assert (tmp_path / FILE_NAME).read_text().strip() == made.current


async def test_of_a_database_that_is_not_there_any_key_is(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/none/gateway.sqlite3"
    assert await keys_for(url, (tmp_path, MINE, None, "")) == SecretKeys(MINE)
    assert list(tmp_path.iterdir()) == []


async def test_it_is_replaced_by_one_other_alone(db: Database, database_url: str, generation: Generation, tmp_path: Path) -> None:
    """Several hosts that each make a new key of their own: the first one's counts."""
    homes = [tmp_path / name for name in ("a", "b", "c")]
    await settle_keys(db, (homes[0], MINE, None, ""))
    for home in homes:
        home.mkdir()
        (home / PREVIOUS_FILE_NAME).write_text(MINE)
        (home / PREVIOUS_FILE_NAME).chmod(0o600)
    made = await settle_keys(db, (homes[0], "", None, ""))
    assert made.previous == (MINE,)
    assert await settle_keys(db, (homes[0], "", None, "")) == made
    for refused in (
        settle_keys(db, (homes[1], "", None, "")),
        keys_for(database_url, (homes[1], "", None, "")),
        settle_keys(db, (homes[2], THIRD, None, MINE)),
        check_keys(db, (homes[2], THIRD, None, MINE)),
        keys_for(database_url, (homes[2], THIRD, None, MINE)),
    ):
        with pytest.raises(SecretKeyRefused, match="another new key"):
            await refused
    assert not (homes[1] / FILE_NAME).exists(), "one was made that no other host has"
    assert await settle_keys(db, (homes[1], made.current, None, "")) == made
    await reseal_secrets(db, generation, INIT, keys=made)
    replacing = SecretKeys(THIRD, (made.current,))
    assert await settle_keys(db, (homes[2], THIRD, None, made.current)) == replacing, "the next replacement is another one"
    await reseal_secrets(db, generation, INIT, keys=made)  # given up: back to the key that is the database's
    await settle_keys(db, (homes[2], OTHER, None, made.current))


async def test_two_that_start_first_at_once_agree(database_url: str, db: Database, tmp_path: Path) -> None:
    """Each looks before the other has written: one value is in force, and nobody fails."""
    other = Database(database_url)
    if db.dialect == "postgresql":
        async with db.write() as first:
            assert await meta.put_if_absent(first, "name", "1") == "1"
            second = asyncio.create_task(_put(other, "2"))
            await _waits(db)
        assert await second == "1"
    else:
        assert await asyncio.gather(_put(db, "1"), _put(other, "2")) in (["1", "1"], ["2", "2"])
    await other.close()


async def _put(db: Database, value: str) -> str:
    async with db.write() as conn:
        return await meta.put_if_absent(conn, "name", value)


async def _waits(db: Database) -> None:
    """Until somebody waits for another's transaction."""
    waiting = 0
    async with asyncio.timeout(10):
        while not waiting:
            async with db.read() as conn:
                waiting = (await conn.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))).scalar() or 0
