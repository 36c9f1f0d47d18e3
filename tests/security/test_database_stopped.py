"""The database is stopped: who was known goes on, who is not is told to come back, and all heals by itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from auth.keys import mint
from tests.security.inside import Inside, inside
from tests.stoppable_postgres import StoppablePostgres, stoppable_postgres

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATIENCE_S = 15.0


async def status(own: Inside, credential: str, path: str = "/v1/models") -> int:
    headers = {"authorization": f"Bearer {credential}"}
    async with own.client() as http:
        if path.startswith("/v1/chat"):
            return (await http.post(path, json=CHAT, headers=headers)).status_code
        return (await http.get(path, headers=headers)).status_code


async def until(own: Inside, credential: str, wanted: int, path: str = "/v1/models") -> float:
    """Seconds until this is the answer."""
    started = time.monotonic()
    while (found := await status(own, credential, path)) != wanted:
        assert time.monotonic() < started + PATIENCE_S, f"still {found}, not {wanted}"
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def lived_through(own: Inside, stop: Callable[[], None], start: Callable[[], None]) -> None:
    """What must hold on either database."""
    key, revoked = await own.key("live", scopes=["inference", "usage"]), await own.key("revoked")
    token = await own.log_in(own.admin)
    async with own.client(token) as http:
        assert (await http.post(f"/admin/keys/{revoked.split('-')[2]}/revoke")).status_code == 200
    unknown = mint()[1]
    assert await status(own, unknown) == 401
    await asyncio.to_thread(stop)
    assert await until(own, unknown, 503) < 3
    async with own.client(unknown) as http:
        answer = await http.get("/v1/models")
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    for _ in range(5):
        assert await status(own, key) == 200
        assert await status(own, key, "/v1/chat/completions") == 200
        assert await status(own, token, "/auth/me") in (200, 503)  # it shows what only the database knows
        assert await status(own, token) == 200
        assert await status(own, revoked) == 401  # known, and known to be revoked
        assert await status(own, unknown) == 503
        assert await status(own, unknown, "/v1/chat/completions") == 503
        assert await status(own, "nonsense") == 503  # existing keys were imported: any text may be one
    async with own.client(token) as http:
        for path in ("/admin/users", "/admin/keys", "/v1/usage"):
            assert (await http.get(path)).status_code == 503, path
        assert (await http.post("/auth/login", json={"email": own.admin, "password": "wrong"})).status_code == 503
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200
    await asyncio.to_thread(start)
    await until(own, unknown, 401)
    fresh = await own.key("made afterwards")
    assert await status(own, fresh) == 200
    assert await status(own, key) == 200
    async with own.client(await own.log_in(own.admin)) as http:
        assert (await http.post(f"/admin/keys/{key.split('-')[2]}/revoke")).status_code == 200
    assert await status(own, key) == 401


async def test_sqlite_made_unusable(own: Inside) -> None:
    """The file is moved away with what belongs to it, as a disk that is unmounted takes it."""
    file = own.services.settings.home / "gateway.sqlite3"
    parts = [Path(f"{file}{suffix}") for suffix in ("", "-wal", "-shm")]

    def stop() -> None:
        for part in parts:
            part.rename(f"{part}.away")

    def start() -> None:
        for part in reversed(parts):
            part.with_name(f"{part.name}.away").rename(part)

    await lived_through(own, stop, start)


async def test_relayed_routes_tell_the_unknown_to_come_back_too(own: Inside) -> None:
    file = own.services.settings.home / "gateway.sqlite3"
    await asyncio.to_thread(file.rename, f"{file}.away")
    unknown = mint()[1]
    await until(own, unknown, 503)
    async with own.client(unknown) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert answer.headers["retry-after"] == "1"


async def test_what_is_known_is_believed_for_a_set_time(tmp_path: Path, prepared_home: Path) -> None:
    """Somebody may have revoked it meanwhile: not for ever. Back, it is believed again."""
    async with inside(tmp_path / "home", prepared_home, GATEWAY_STALE_S="4") as own:
        key, token = await own.key("live"), await own.log_in(own.admin)
        file = own.services.settings.home / "gateway.sqlite3"
        await asyncio.to_thread(file.rename, f"{file}.away")
        await until(own, mint()[1], 503)
        assert await status(own, key) == 200
        assert await until(own, key, 503) > 0
        assert await status(own, token) == 503
        await asyncio.to_thread(Path(f"{file}.away").rename, file)
        await until(own, key, 200)
        assert await status(own, token) == 200


@pytest.fixture
def server() -> Iterator[StoppablePostgres]:
    with stoppable_postgres() as running:
        yield running


@pytest.fixture
async def on_postgres(server: StoppablePostgres, tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path / "home", GATEWAY_DATABASE_URL=server.url) as made:
        yield made


async def test_postgresql_really_stopped(server: StoppablePostgres, on_postgres: Inside) -> None:
    await lived_through(on_postgres, server.stop, server.start)


async def test_postgresql_that_says_nothing(server: StoppablePostgres, on_postgres: Inside) -> None:
    """A cut line: connections stand, and no answer comes."""
    own = on_postgres
    key, unknown = await own.key("live"), mint()[1]
    server.freeze(signal.SIGSTOP)
    try:
        assert await until(own, unknown, 503) < 5
        assert await status(own, key) == 200
        assert await status(own, key, "/v1/chat/completions") == 200
    finally:
        server.freeze(signal.SIGCONT)
    await until(own, unknown, 401)
    assert httpx.codes(await status(own, await own.key("fresh"))) == 200
