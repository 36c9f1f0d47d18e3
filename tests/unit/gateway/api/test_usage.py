"""Reports in all forms, and single requests: what each caller sees of them."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from auth.principal import Role
from gateway.store import booking
from gateway.store.usage import BYS

from .conftest import Plane

NOW_S = time.time()  # of the module's import: what is asked for in moments is said from here


def moment(ago_s: float) -> str:
    return datetime.fromtimestamp(NOW_S - ago_s, UTC).isoformat().replace("+00:00", "Z")


def row(number: int, ago_s: float = 60.0, **values: Any) -> dict[str, Any]:
    return {
        "request_id": f"req-{number:04d}", "started_at": NOW_S - ago_s, "key_id": "k1", "user_id": "u1", "team_id": "t1", "model": "chat",
        "backend": "b", "revision": 3, "operation": "chat", "attempts": 2, "status": 200, "ending": "success", "prompt_tokens": 10,
        "completion_tokens": 5, "token_source": "backend", "cost_pusd": 4_500_000, "cached_tokens": 4, "reasoning_tokens": 2,
        "price": "0.15/0.60/", "tried": '[["a","timeout",12.5]]', "duration_ms": 5.0,
    } | values  # fmt: skip


async def book(plane: Plane, *rows: dict[str, Any]) -> None:
    async with plane.control.db.write() as conn:
        await booking.insert_usage(conn, rows, "segment", 1)


async def data(client: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    answer = await client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.parametrize("by", BYS)
async def test_the_same_in_every_form(plane: Plane, admin: httpx.AsyncClient, by: str) -> None:
    arms = [{"experiment": "summer", "arm": f"a{n % 3}"} for n in range(12)]
    await book(plane, *(row(n, n * 4000.0, key_id=f"k{n}", user_id=f"u{n}", revision=n + 1, **arms[n]) for n in range(12)))
    whole = (await admin.get("/admin/usage", params={"by": by})).json()
    assert whole["next"] is None
    paged: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = (await admin.get("/admin/usage", params={"by": by, "limit": 2, "after": after})).json()
        paged += page["data"]
        after = page["next"]
    assert paged == whole["data"]
    alone = {"by": by, "user": "u1"}
    first = (await admin.get("/admin/usage", params=alone | {"limit": 1})).json()
    assert len(first["data"]) == 1
    assert (await admin.get("/admin/usage", params=alone | {"after": first["next"] or ""})).status_code == 200
    lines = await admin.get("/admin/usage", params={"by": by, "format": "jsonl"})
    assert [json.loads(line) for line in lines.text.splitlines()] == whole["data"]
    table = await admin.get("/admin/usage", params={"by": by}, headers={"accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert [list(line.values()) for line in csv.DictReader(io.StringIO(table.text))] == [
        ["" if value is None else str(value) for value in line.values()] for line in whole["data"]
    ]
    assert sum(line["cached_tokens"] for line in whole["data"]) == 48


@pytest.mark.parametrize("by", BYS)
async def test_a_place_of_another_report_is_none(plane: Plane, admin: httpx.AsyncClient, by: str) -> None:
    """Databases refuse to compare text with numbers, and numbers that no column holds."""
    await book(plane, row(1, experiment="summer", arm="a"))
    for more in ({}, {"user": "u1"}, {"team": "t1"}, {"model": "chat"}, {"format": "csv"}):
        numbers = by in ("day", "hour") or (by == "version" and "user" in more)
        for after in (*(("tabc", "t") if numbers else ("n5", "n0")), "n99999999999999999999", f"n{2**63}", "n-1", "n", "nabc", "x"):
            answer = await admin.get("/admin/usage", params={"by": by, "after": after, **more})
            assert answer.status_code == 400, (after, more, answer.text)


async def test_filters(plane: Plane, admin: httpx.AsyncClient) -> None:
    await book(plane, row(1), row(2, model="embed", team_id="t2"), row(3, key_id="k2", user_id="u2", team_id="t2", backend=None))

    async def groups(**params: str) -> list[Any]:
        return [next(iter(line.values())) for line in await data(admin, "/admin/usage", **params)]

    assert await groups(by="key", model="chat") == ["k1", "k2"]
    assert await groups(by="key", team="t2") == ["k1", "k2"]
    assert await groups(by="model", team="t2") == ["chat", "embed"]
    assert await groups(by="backend", user="u2") == [None]
    assert await groups(by="version", key="k1") == [3]
    assert await groups(by="team", user="u1") == ["t1", "t2"]
    assert await groups(by="key", team="t2", model="embed") == ["k1"]


async def test_one_request_as_it_was_booked(plane: Plane, admin: httpx.AsyncClient) -> None:
    await book(plane, row(1), row(2, 3 * 86_400.0, price=None, tried=None))
    one = (await admin.get("/admin/usage/requests/req-0001")).json()
    assert (one["cost"], one["price"], one["tried"], one["cached_tokens"]) == ("0.0000045", "0.15/0.60/", [["a", "timeout", 12.5]], 4)
    assert (await admin.get("/admin/usage/requests/req-0002")).json()["tried"] is None
    assert (await admin.get("/admin/usage/requests/req-0003")).status_code == 404


async def test_requests_of_a_key_in_pages(plane: Plane, admin: httpx.AsyncClient) -> None:
    await book(plane, *(row(n, 30.0 * n, key_id=("k1", None)[n % 2]) for n in range(40)))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = await admin.get("/admin/usage/requests", params={"key": "k1", "since": "10h", "limit": 6, "after": after})
        page = answer.json()
        seen += [one["request_id"] for one in page["data"]]
        after = page["next"]
    assert seen == [f"req-{n:04d}" for n in range(0, 40, 2)]
    assert len(await data(admin, "/admin/usage/requests", user="u1", since="10h")) == 20
    assert await data(admin, "/admin/usage/requests", user="u2", since="10h") == []
    assert len(await data(admin, "/admin/usage/requests", key="k1", since=moment(610), until=moment(310))) == 5
    bad = ({}, {"key": "k1", "since": "25h"}, {"key": "k1", "since": "1h", "until": "2h"}, {"key": "k1", "after": "x"}, {"key": "k\0"})
    for params in bad:
        assert (await admin.get("/admin/usage/requests", params=params)).status_code == 400, params


async def test_ones_own_requests_alone(plane: Plane) -> None:
    member = plane.people[Role.MEMBER].id
    text = await plane.key("own", plane.people[Role.MEMBER], scopes=["usage"])
    own_key = text.split("-")[2]
    mine = {"user_id": member, "key_id": own_key}
    await book(
        plane, row(1), row(2, **mine), row(3, user_id=member, key_id="other"), row(4, user_id=member, key_id=None), row(5, key_id=None)
    )
    async with plane.client(text) as client:
        assert [one["request_id"] for one in await data(client, "/v1/usage/requests")] == ["req-0002"]
        assert await data(client, "/v1/usage/requests", key="other") == []
        assert (await client.get("/v1/usage/requests/req-0002")).status_code == 200
        for other in ("req-0001", "req-0003", "req-0004"):
            assert (await client.get(f"/v1/usage/requests/{other}")).status_code == 404
        assert (await client.get("/admin/usage/requests/req-0002")).status_code == 403
        assert await data(client, "/v1/usage", by="model", key="other") == []
        assert len(await data(client, "/v1/usage", by="version")) == 1
    async with plane.client(plane.token(Role.MEMBER)) as client:
        assert [one["request_id"] for one in await data(client, "/v1/usage/requests")] == ["req-0004"]
        assert [one["request_id"] for one in await data(client, "/v1/usage/requests", key="other")] == ["req-0003"]
        assert await data(client, "/v1/usage/requests", key="k1") == []
        assert (await client.get("/v1/usage/requests/req-0003")).status_code == 200
        assert (await client.get("/v1/usage/requests/req-0005")).status_code == 404


async def test_a_manager_sees_what_the_team_did_while_it_was_the_team(plane: Plane) -> None:
    team = plane.team_id
    await book(plane, row(1, team_id=team), row(2, user_id="u1", team_id="elsewhere"), row(3, key_id="k2", team_id=None))
    async with plane.client(plane.token(Role.MANAGER)) as client:
        assert [one["request_id"] for one in await data(client, "/admin/usage/requests", key="k1")] == ["req-0001"]
        assert (await client.get("/admin/usage/requests/req-0001")).status_code == 200
        for other in ("req-0002", "req-0003"):
            assert (await client.get(f"/admin/usage/requests/{other}")).status_code == 404
        assert await data(client, "/admin/usage", by="key", team="elsewhere") == []
        for by in BYS:
            lines = await data(client, "/admin/usage", by=by)
            assert [line["requests"] for line in lines] == ([] if by == "arm" else [1]), by
