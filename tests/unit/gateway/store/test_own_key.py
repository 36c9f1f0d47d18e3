"""A database remembers the first secret key that it is set up with, and is served with no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store.engine import Database
from gateway.store.errors import SecretKeyRefused
from gateway.store.own_key import check_keys, keys_for, settle_keys, successor_keys
from gateway.store.secret_key import FILE_NAME, SecretKeys

MINE = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"
OTHER = "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"


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
