"""The keeper's housekeeping."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.changes import Actor, apply_revision, ensure_admin, set_secret
from gateway.keeper.duties import Keeper
from gateway.settings import Settings
from gateway.store import login_addresses, password_links, samples, tokens
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.migrate import migrate
from gateway.store.own_key import settle_keys
from gateway.store.samples import STEP_S
from gateway.store.secrets import SecretBox
from gateway.store.tables import metric_samples

KEY = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"


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
        for at_s in (now_s - 86_400, now_s):
            await samples.add(conn, [int(at_s // STEP_S)], {})
    keeper = asyncio.create_task(Keeper(settings, "").run())
    async with asyncio.timeout(10):
        while True:
            async with db.read() as conn:
                if await tokens.find(conn, b"over") is None and await _samples_of_15_s(conn) == 1:
                    break
            await asyncio.sleep(0.02)
    async with db.read() as conn:
        assert await tokens.find(conn, b"good") is not None
        assert await password_links.issuer_of(conn, b"link", admin.id, 0) is None
        assert [await login_addresses.has(conn, admin.id, address) for address in ("long ago", "home")] == [False, True]
    os.kill(os.getpid(), signal.SIGTERM)
    await keeper
    generation.close()
    await db.close()


async def _samples_of_15_s(conn: AsyncConnection) -> int:
    """The newest of them is kept."""
    table = metric_samples.c
    return (await conn.execute(select(func.count()).where(table.step_s == STEP_S))).scalar_one()


async def test_a_secret_that_cannot_be_opened_ends_no_other_probe(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", secret_key=SecretStr(KEY))
    await migrate(settings.database)
    db, generation = Database(settings.database), Generation(settings.run_dir / "generation")
    document = {"models": [{"id": "m", "backends": [_probed("a"), _probed("b")]}]}
    strange = SecretBox(KEY[::-1])
    await apply_revision(db, generation, Actor(None, "init"), document, box=strange, new_secrets={"a": "sk-a", "b": "sk-b"})
    await settle_keys(db, settings.secret_key_sources())
    await set_secret(db, generation, Actor(None, "init"), "a", "sk-a", box=SecretBox(KEY))
    keeper = Keeper(settings, "")
    try:
        await keeper._want()
        assert set(keeper._prober._names) == {"m/a"}
    finally:
        await keeper._prober.close()
        await keeper._http.aclose()
        keeper._generation.close()
        generation.close()
        await keeper._db.close()
        await db.close()


def _probed(name: str) -> dict[str, Any]:
    return {"type": "custom", "id": name, "base_url": "http://127.0.0.1:1/v1", "api_key": {"secret": name}, "probe": {"path": "models"}}
