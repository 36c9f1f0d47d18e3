"""`/admin/prices`: listed as JSON and CSV; a table comes in as one revision or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from tests.unit.gateway.api.conftest import Plane

CSV = {"content-type": "text/csv"}
DOCUMENT = {
    "models": [
        {
            "id": "chat",
            "prices": {"input": "0.15", "output": "0.60"},
            "backends": [{"type": "echo"}, {"type": "echo", "id": "dear", "prices": {"input": "3", "output": 4, "cached": 0.5}}],
        }
    ]
}


async def applied(admin: httpx.AsyncClient) -> int:
    response = await admin.post("/admin/revisions", json={"document": DOCUMENT})
    assert response.status_code == 201, response.text
    return int(response.json()["id"])


async def sent(admin: httpx.AsyncClient, text: str | bytes, status: int = 200, query: dict[str, Any] | None = None) -> Any:
    response = await admin.post("/admin/prices/import", content=text, headers=CSV, params=query)
    assert response.status_code == status, response.text
    return response.json()


async def test_listed_taken_out_and_brought_in(plane: Plane, admin: httpx.AsyncClient) -> None:
    number = await applied(admin)
    listed = (await admin.get("/admin/prices")).json()
    assert listed["revision"] == number
    assert listed["data"][1] == {
        "model": "chat", "backend": "dear", "from": None, "input": "3", "output": "4", "cached": "0.5", "in_force": True,
    }  # fmt: skip
    for asked in ({"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}):
        taken = await admin.get("/admin/prices", **asked)  # type: ignore[arg-type]  # as given
        assert taken.headers["content-type"] == "text/csv; charset=utf-8"
        assert taken.text == "model,backend,from,input,output,cached\r\nchat,,,0.15,0.6,\r\nchat,dear,,3,4,0.5\r\n"
        assert await sent(admin, taken.content) == {"revision": None, "changes": [], "unchanged": 2}
    assert (await admin.get("/admin/revisions/live")).json()["id"] == number


async def test_an_import_is_live_when_it_is_answered_and_stands_in_the_audit_log(plane: Plane, admin: httpx.AsyncClient) -> None:
    number = await applied(admin)
    text = "model,backend,input,output\nchat,dear,9,9\nchat,,0.15,0.6\n"
    tried = await sent(admin, text, query={"dry_run": True})
    change = {"model": "chat", "backend": "dear", "from": None, "input": "9", "output": "9", "cached": None}
    was = {"model": "chat", "backend": "dear", "from": None, "input": "3", "output": "4", "cached": "0.5"}
    assert tried == {"revision": None, "changes": [change | {"was": was}], "unchanged": 1}
    assert (await admin.get("/admin/revisions/live")).json()["id"] == number
    made = await sent(admin, text)
    assert made == tried | {"revision": number + 1}
    live = (await admin.get("/admin/revisions/live")).json()
    assert (live["id"], live["parent"], live["note"]) == (number + 1, number, "1 price of 1 model imported")
    entry = (await admin.get("/admin/audit", params={"limit": 1})).json()["data"][0]
    assert (entry["action"], entry["entity"], entry["entity_id"], entry["after"]["note"]) == (
        "apply",
        "revision",
        str(number + 1),
        live["note"],
    )


async def test_every_fault_with_its_line_and_nothing_applied(plane: Plane, admin: httpx.AsyncClient) -> None:
    number = await applied(admin)
    said = await sent(admin, "model,input,output\nchat,1\nchat,x,2\nchat,1,2\n", 400)
    assert said["detail"] == [
        {"path": "line 2", "message": "has 2 values for 3 columns"},
        {"path": "line 3: input", "message": "must be a plain decimal such as 0.15 (USD per million tokens)"},
    ]
    said = await sent(admin, "model,backend,input,output\nnone,,1,2\nchat,none,1,2\n", 400, query={"dry_run": True})
    assert [fault["path"] for fault in said["detail"]] == ["line 2: model", "line 3: backend"]
    assert (await admin.get("/admin/revisions/live")).json()["id"] == number


async def test_a_big_table_holds_up_nothing_else(plane: Plane, admin: httpx.AsyncClient) -> None:
    """The loop also relays: it goes on while a table is read and compared."""
    await applied(admin)
    text = "model,backend,from,input,output\n" + "".join(f"none,b{n},2027-01-31T00:00:00Z,1.5,2.5\n" for n in range(30_000))
    turns, request = 0, asyncio.create_task(sent(admin, text, 400))
    while not request.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len((await request)["detail"]) == 100
    assert turns > 10  # read on the loop, it is a handful


async def test_what_is_no_table(plane: Plane, admin: httpx.AsyncClient) -> None:
    await applied(admin)
    for body in (b"", b"\xff\xfe", b"model,input,output\nch\0at,1,2\n", b'{"models": []}'):
        await sent(admin, body, 400)
    await sent(admin, "model,input,output\nchat,1,2\n", 400, {"from": "soon"})
    await sent(admin, b"model,input,output\n" + b"chat,1,2\n" * 500_000, 413)
    later = await sent(admin, "model,input,output\nchat,1,2\n", query={"from": "2099-01-01T00:00:00+01:00"})
    assert later["changes"][0]["from"] == "2098-12-31T23:00:00Z"


async def test_json_elsewhere_is_still_json(plane: Plane, admin: httpx.AsyncClient) -> None:
    assert (await admin.post("/admin/revisions/check", content="model,input", headers=CSV)).status_code == 400
