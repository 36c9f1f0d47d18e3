"""Limits and budgets over the API: set, shown with what was spent, set back."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from auth.principal import Role
from gateway.metering.record import UsageRecord
from gateway.store import booking
from tests.unit.gateway.api.conftest import Plane

LIMITS = {"rpm": 60, "tpm": 100, "rpd": 5000, "tpd": 9000, "concurrency": 8, "budget": "25/month", "token_budget": "2000/day", "soft": 80}


async def book(plane: Plane, key_id: str | None, cost_pusd: int, tokens: int) -> None:
    member = plane.people[Role.MEMBER]
    row = UsageRecord(f"r{time.monotonic_ns()}", time.time(), "chat", key_id, member.id, "m", 1, team_id=plane.team_id)
    async with plane.control.db.write() as conn:
        await booking.insert_usage(conn, [asdict(row) | {"cost_pusd": cost_pusd, "prompt_tokens": tokens}], "segment", 1)


@pytest.fixture
async def paths(plane: Plane, admin: httpx.AsyncClient) -> dict[str, str]:
    """Of a key of the member, of the member, of their team."""
    member = plane.people[Role.MEMBER]
    key = (await admin.post("/admin/keys", json={"name": "k", "owner": member.id})).json()
    return {"key": f"/admin/keys/{key['id']}", "user": f"/admin/users/{member.id}", "team": f"/admin/teams/{plane.team_id}"}


@pytest.mark.parametrize("whose", ["key", "user", "team"])
async def test_limits_are_set_and_shown_with_what_was_spent(
    plane: Plane, admin: httpx.AsyncClient, paths: dict[str, str], whose: str
) -> None:
    path = paths[whose]
    before = (await admin.get(path)).json()
    assert {name: before[name] for name in LIMITS} == dict.fromkeys(LIMITS)
    assert before["spent"] is None
    answer = await admin.patch(path, json=LIMITS)
    assert answer.status_code == 200, answer.text
    assert {name: answer.json()[name] for name in LIMITS} == LIMITS
    await book(plane, paths["key"].rpartition("/")[2], 3_500_000_000_000, 150)
    shown = (await admin.get(path)).json()
    money, tokens = shown["spent"]["budget"], shown["spent"]["token_budget"]
    assert (money["spent"], money["left"], tokens["spent"], tokens["left"]) == ("3.5", "21.5", 150, 1850)
    assert money["since"].endswith("-01T00:00:00Z") and money["resets_at"].endswith("-01T00:00:00Z")
    assert money["since"] < tokens["resets_at"] <= money["resets_at"]
    listed = (await admin.get(path.rpartition("/")[0])).json()["data"]
    assert [one["spent"] for one in listed if path.endswith(one["id"])] == [shown["spent"]]
    assert {one["spent"] is None for one in listed if not path.endswith(one["id"])} <= {True}
    await book(plane, paths["key"].rpartition("/")[2], 30_000_000_000_000, 0)
    money = (await admin.get(path)).json()["spent"]["budget"]
    assert (money["spent"], money["left"]) == ("33.5", "0")
    assert (await admin.patch(path, json={"budget": None, "soft": None})).json()["spent"]["budget"] is None


@pytest.mark.parametrize("whose", ["key", "user", "team"])
async def test_a_budget_is_set_back(plane: Plane, admin: httpx.AsyncClient, paths: dict[str, str], whose: str) -> None:
    path = f"{paths[whose]}/budget/reset"
    assert (await admin.post(path)).status_code == 409
    await admin.patch(paths[whose], json={"budget": "5"})
    await book(plane, paths["key"].rpartition("/")[2], 5_000_000_000_000, 1)
    assert (await admin.get(paths[whose])).json()["spent"]["budget"]["left"] == "0"
    answer = await admin.post(path)
    money = answer.json()["spent"]["budget"]
    assert (answer.status_code, money["spent"], money["left"], money["resets_at"]) == (200, "0", "5", None)
    assert money["since"] is not None
    async with plane.client(plane.token(Role.MANAGER)) as manager:
        assert (await manager.post(path)).status_code == 403


async def test_people_see_what_is_left_of_their_own(plane: Plane, admin: httpx.AsyncClient, paths: dict[str, str]) -> None:
    await admin.patch(paths["key"], json={"token_budget": "100/week"})
    await book(plane, paths["key"].rpartition("/")[2], 0, 40)
    await book(plane, None, 0, 2)
    async with plane.client(plane.token(Role.MEMBER)) as member:
        (own,) = (await member.get("/auth/keys")).json()["data"]
    assert (own["token_budget"], own["spent"]["token_budget"]["spent"], own["spent"]["token_budget"]["left"]) == ("100/week", 40, 60)


@pytest.mark.parametrize("whose", ["key", "user", "team"])
@pytest.mark.parametrize(
    "wrong",
    [{"rpd": 0}, {"tpd": "5"}, {"soft": 101}, {"soft": 0}, {"token_budget": "5/year"}, {"token_budget": "1.5"}, {"token_budget": 5},
     {"token_budget": f"{10**15 + 1}"}, {"spent": None}, {"budget_since": 1}],
)  # fmt: skip
async def test_what_is_no_limit_changes_nothing(admin: httpx.AsyncClient, paths: dict[str, str], whose: str, wrong: dict[str, Any]) -> None:
    before = (await admin.get(paths[whose])).json()
    answer = await admin.patch(paths[whose], json={"rpm": 7} | wrong)
    assert answer.status_code == 400, answer.text
    assert (await admin.get(paths[whose])).json() == before


async def test_teams_and_services_begin_with_limits(admin: httpx.AsyncClient) -> None:
    team = (await admin.post("/admin/teams", json={"name": "search", **LIMITS})).json()
    assert {name: team[name] for name in LIMITS} == LIMITS
    service = (await admin.post("/admin/service-accounts", json={"name": "robot", "team": "search", "tpd": 5})).json()
    assert (service["tpd"], service["held"]) == (5, ["tpd"])
    renamed = (await admin.patch(f"/admin/teams/{team['id']}", json={"name": "finding"})).json()
    assert (renamed["name"], renamed["rpd"]) == ("finding", 5000)
