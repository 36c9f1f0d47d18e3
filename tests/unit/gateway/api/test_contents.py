"""What was logged, over HTTP: who sees of it what, and at what cost to others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from auth.principal import Role
from gateway.keeper.contents import ContentShipper
from gateway.metering.spool import ContentLog, Entry
from gateway.store.secret_key import SecretKeys
from tests.unit.gateway.api.conftest import SECRET_KEY, Plane

REASON = "complaint 4711"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "wader "}}]}\n\n'


def said(request_id: str, model: str = "m", *, ago_s: float = 0, user_id: str = "u1", key_id: str = "k1", answer: bytes = CHUNK) -> Entry:
    entry = Entry(request_id, time.time() - ago_s, key_id, user_id, "t1", model, "chat", 200, "success")
    entry.request_type, entry.answer_type = "application/json", "text/event-stream"
    entry.request, entry.answer = [b'{"messages": []}'], [answer]
    entry.request_bytes, entry.answer_bytes = 16, len(answer)
    entry.size_bytes = 16 + len(answer)
    return entry


async def store(plane: Plane, folder: Path, *entries: Entry) -> None:
    box = plane.control.content_box
    log = ContentLog(folder, box.seal_bytes, box.fingerprint, max_bytes=10**8, spool_bytes=10**9)
    for entry in entries:
        log.keep(entry)
    await asyncio.to_thread(log.close)

    async def keys() -> SecretKeys:
        return SecretKeys(SECRET_KEY)

    await ContentShipper(plane.control.db, folder, 86_400.0, keys).ship()


async def reader(plane: Plane, *models: str) -> httpx.AsyncClient:
    return plane.client(await plane.key("reader", plane.people[Role.VIEWER], scopes=["content"], models=models or ("*",)))


async def test_a_page_tells_nothing_of_what_a_key_is_not_for(plane: Plane, tmp_path: Path) -> None:
    """Neither in its rows nor in where the next one begins; and it is as full as anybody's."""
    models = ["a-1", "hidden", "hidden", "a-2", "hidden", "b", "a-1", "hidden"]
    await store(plane, tmp_path / "spool", *(said(f"r{n}-{model}", model, ago_s=n) for n, model in enumerate(models)))
    mine = ["r0-a-1", "r3-a-2", "r6-a-1"]
    async with await reader(plane, "a-*") as client:
        for limit in (1, 2, 3, 4):
            found, pages, after = [], [], ""
            while True:
                page = (await client.get("/admin/contents", params={"limit": limit, "after": after})).json()
                found += [row["request_id"] for row in page["data"]]
                pages.append(len(page["data"]))
                after = page["next"]
                if after is None:
                    break
                assert after.endswith(found[-1])
            assert found == mine
            assert all(size == limit for size in pages[:-1])
        assert (await client.get("/admin/contents", params={"model": "hidden"})).json() == {"data": [], "next": None}
        assert [row["model"] for row in (await client.get("/admin/contents", params={"model": "a-2"})).json()["data"]] == ["a-2"]
    async with await reader(plane, "none-such") as client:
        assert (await client.get("/admin/contents")).json() == {"data": [], "next": None}
    async with await reader(plane) as client:
        assert len((await client.get("/admin/contents")).json()["data"]) == len(models)


async def test_reading_holds_up_nobody(plane: Plane, tmp_path: Path) -> None:
    """Megabytes are opened, searched for words and written out beside the loop, whose own thread hardly works for it."""
    await store(plane, tmp_path / "spool", said("long", answer=CHUNK * 60_000))
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0.001)
            gaps.append(time.thread_time() - before_s)

    async with await reader(plane) as client:
        beating = asyncio.create_task(beat())
        began_s = time.process_time()
        answer = await client.get("/admin/contents/long", params={"reason": REASON})
        took_s = time.process_time() - began_s
        await asyncio.sleep(0.02)  # it has seen the end
        beating.cancel()
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["words"] == ["wader " * 60_000]
    assert found["answer"] == (CHUNK * 60_000).decode()
    assert (found["request"], found["status"], found["at"][-1]) == ('{"messages": []}', 200, "Z")
    assert max(gaps) < took_s / 2, (max(gaps), took_s)


async def test_one_reading_at_a_time(plane: Plane, tmp_path: Path) -> None:
    """Each may have tens of megabytes in memory several times."""
    await store(plane, tmp_path / "spool", said("a"), said("b"))
    async with await reader(plane) as client:
        async with plane.control.reading:
            asked = asyncio.gather(*(client.get(f"/admin/contents/{name}", params={"reason": REASON}) for name in "ab"))
            assert not (await asyncio.wait({asked}, timeout=0.2))[0]
        assert [answer.status_code for answer in await asked] == [200, 200]


async def test_erasing_what_nobody_knows(plane: Plane, tmp_path: Path) -> None:
    member = plane.people[Role.MEMBER]
    await store(plane, tmp_path / "spool", said("a", user_id=member.id, key_id="k9"), said("b", user_id=member.id))
    async with plane.client(plane.keys["admin"]) as client:
        for unknown in ({"user_id": "none@example.com"}, {"user_id": "usr_none"}, {"key_id": "none"}, {"request_id": "none"}):
            assert (await client.delete("/admin/contents", params={"reason": REASON} | unknown)).status_code == 404
        answer = await client.delete("/admin/contents", params={"reason": REASON, "key_id": "k9"})
        assert answer.json() == {"erased": 1}
        answer = await client.delete("/admin/contents", params={"reason": REASON, "user_id": "member@example.com"})
        assert answer.json() == {"erased": 1}
    narrowed = await plane.key("narrowed", plane.people[Role.ADMIN], scopes=["admin"], models=("m",))
    async with plane.client(narrowed) as client:
        assert (await client.delete("/admin/contents", params={"reason": REASON, "user_id": member.id})).status_code == 403
