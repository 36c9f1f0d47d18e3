"""`/admin/teams`. Admins make, change and delete them; a manager sees the own one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from pydantic import ConfigDict, Field

from gateway.api.context import By, TheControl
from gateway.api.limits import LimitsIn, LimitsOut, no_defaults
from gateway.api.limits import shown as shown_limits
from gateway.api.moments import moment
from gateway.api.paging import NO_NUL, After, Limit, Page, cut
from gateway.api.reach import TheReach
from gateway.changes import create_team, delete_team, reset_team_budget, update_team
from gateway.errors import InvalidRequest, NotFound
from gateway.runtime import Control
from gateway.store import teams
from gateway.store.engine import Connection
from gateway.store.teams import Heads, Team

TeamId = Annotated[str, Path(max_length=100, pattern=NO_NUL, examples=["team_4c1a7be09f2d5566"])]
_NOBODY = Heads()


class TeamOut(LimitsOut):
    """`people` and `services`: how many are of it, disabled ones too. The limits are of all of them together."""

    id: str = Field(examples=["team_4c1a7be09f2d5566"])
    name: str = Field(examples=["research"])
    people: int = Field(examples=[12])
    services: int = Field(examples=[3])
    created_at: datetime


class TeamIn(LimitsIn):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, examples=["research"])


def _change_schema(schema: dict[str, Any]) -> None:
    no_defaults(schema)
    schema["examples"] = [{"name": "research"}, {"rpm": 600, "budget": "500/month", "soft": 80}, {"token_budget": None}]


class TeamChange(LimitsIn):
    """What is absent stays as it is; null takes a limit away."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_change_schema)

    name: str = Field("unchanged", min_length=1, max_length=100)


async def list_teams(
    control: TheControl,
    reach: TheReach,
    search: Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Part of the name.")] = "",
    after: After = "",
    limit: Limit = 50,
) -> Page[TeamOut]:
    """Teams in the order of their names."""
    async with control.db.look() as conn:
        last = await teams.by_id(conn, after) if after else None
        if after and (last is None or reach.team_id not in (None, last.id)):
            raise InvalidRequest("There is no such page.", param="after")
        name = last.name if last else ""
        found = await teams.page(conn, after=name, limit=limit + 1, search=search, team_id=reach.team_id)
        page, more = cut(found, limit)
        data = await _shown(conn, page)
    return Page(data=data, next=page[-1].id if more else None)


async def get_team(control: TheControl, reach: TheReach, team_id: TeamId) -> TeamOut:
    """One team."""
    async with control.db.look() as conn:
        team = await teams.by_id(conn, team_id)
        if team is None or reach.team_id not in (None, team.id):
            raise NotFound("There is no such team.")
        return (await _shown(conn, [team]))[0]


async def add_team(control: TheControl, by: By, body: TeamIn) -> TeamOut:
    """Create a team."""
    return await _changed(control, await create_team(control.db, control.generation, by, name=body.name, limits=body.limits()))


async def change_team(control: TheControl, by: By, team_id: TeamId, body: TeamChange) -> TeamOut:
    """Give a team another name, or limits of all that its users do."""
    return await _changed(control, await update_team(control.db, control.generation, by, team_id, body.fields()))


async def reset_budget(control: TheControl, by: By, team_id: TeamId) -> TeamOut:
    """What this team has spent so far counts against its budgets no more; those of its users and keys stay as they are."""
    return await _changed(control, await reset_team_budget(control.db, control.generation, by, team_id))


async def drop_team(control: TheControl, by: By, team_id: TeamId) -> None:
    """Delete a team that nobody is of."""
    await delete_team(control.db, control.generation, by, team_id)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["teams"]
    app.add_api_route("/admin/teams", list_teams, methods=["GET"], response_model=Page[TeamOut], tags=tags)
    app.add_api_route("/admin/teams", add_team, methods=["POST"], response_model=TeamOut, status_code=201, tags=tags)
    app.add_api_route("/admin/teams/{team_id}", get_team, methods=["GET"], response_model=TeamOut, tags=tags)
    app.add_api_route("/admin/teams/{team_id}", change_team, methods=["PATCH"], response_model=TeamOut, tags=tags)
    app.add_api_route("/admin/teams/{team_id}", drop_team, methods=["DELETE"], status_code=204, tags=tags)
    app.add_api_route("/admin/teams/{team_id}/budget/reset", reset_budget, methods=["POST"], response_model=TeamOut, tags=tags)


async def _changed(control: Control, team: Team) -> TeamOut:
    async with control.db.look() as conn:
        return (await _shown(conn, [team]))[0]


async def _shown(conn: Connection, found: Sequence[Team]) -> list[TeamOut]:
    heads = await teams.heads(conn, [team.id for team in found])
    limits = await shown_limits(conn, {f"team:{team.id}": team.limits for team in found})
    return [_out(team, heads.get(team.id, _NOBODY), limits[f"team:{team.id}"]) for team in found]


def _out(team: Team, heads: Heads, limits: dict[str, Any]) -> TeamOut:
    return TeamOut(id=team.id, name=team.name, people=heads.people, services=heads.services, created_at=moment(team.created_at), **limits)
