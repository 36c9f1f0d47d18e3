"""The keeper's housekeeping."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from gateway.changes import Actor, ensure_admin
from gateway.keeper.duties import Keeper
from gateway.settings import Settings
from gateway.store import login_addresses, password_links, samples, tokens
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.migrate import migrate
from gateway.store.samples import Sample


async def test_what_has_run_out_is_forgotten(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    await migrate(settings.database)
    db, generation, now_s = Database(settings.database), Generation(settings.run_dir / "generation"), time.time()
    admin = await ensure_admin(db, generation, Actor(None, "init"), email="a@b", password_hash="x")
    assert admin is not None
    async with db.write() as conn:
        for digest, ends_s in ((b"over", now_s - 1), (b"good", now_s + 60)):
            await tokens.add(conn, digest, family="f", user_id=admin.id, token_epoch=0, began_at=now_s - 2, expires_at=ends_s)
        await password_links.put(conn, b"link", admin.id, now_s - 2, now_s - 1)
        await login_addresses.put(conn, admin.id, "long ago", now_s - 200 * 86_400)
        await login_addresses.put(conn, admin.id, "home", now_s)
        await samples.insert_many(conn, [Sample(now_s - 40 * 86_400, "old", 1.0), Sample(now_s, "new", 1.0)])
    keeper = asyncio.create_task(Keeper(settings, "").run())
    async with asyncio.timeout(10):
        while True:
            async with db.read() as conn:
                if await tokens.find(conn, b"over") is None and not await samples.read_range(conn, "old", 0, now_s):
                    break
            await asyncio.sleep(0.02)
    async with db.read() as conn:
        assert await tokens.find(conn, b"good") is not None
        assert await password_links.issuer_of(conn, b"link", admin.id, 0) is None
        assert [await login_addresses.has(conn, admin.id, address) for address in ("long ago", "home")] == [False, True]
        assert len(await samples.read_range(conn, "new", 0, now_s + 1)) == 1
    os.kill(os.getpid(), signal.SIGTERM)
    await keeper
    generation.close()
    await db.close()
