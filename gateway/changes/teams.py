"""Changes of teams. Admins alone make, rename and delete them."""

from __future__ import annotations

from typing import Any

from gateway.changes.actor import Actor, Change, change
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.store import teams
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.teams import Team

_MAX_NAME_CHARS = 100
_ENTITY = "team"


async def create_team(db: Database, generation: Generation, actor: Actor, *, name: str) -> Team:
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await teams.create(step.conn, await _free(step, name), step.now_s)
        await step.record("create", _ENTITY, team.id, None, _shown(team))
        return team


async def rename_team(db: Database, generation: Generation, actor: Actor, team_id: str, name: str) -> Team:
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await _known(step, team_id)
        if team.name == name.strip():
            return team
        after = Team(team.id, await _free(step, name, team.id), team.created_at)
        await teams.rename(step.conn, team_id, after.name)
        await step.record("rename", _ENTITY, team_id, _shown(team), _shown(after))
        return after


async def delete_team(db: Database, generation: Generation, actor: Actor, team_id: str) -> None:
    """Only a team that nobody is of, not even a disabled user."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await _known(step, team_id)
        if await teams.heads(step.conn, [team_id]):
            raise Conflict("There are users of this team: move them to another one, or to none, first.")
        await teams.remove(step.conn, team_id)
        await step.record("delete", _ENTITY, team_id, _shown(team), None)


async def _known(step: Change, team_id: str) -> Team:
    team = await teams.by_id(step.conn, team_id)
    if team is None:
        raise NotFound("There is no such team.")
    return team


async def _free(step: Change, name: str, own_id: str = "") -> str:
    """The name as it will be stored. Raises `InvalidRequest`, `Conflict`."""
    name = name.strip()
    if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest(f"A team needs a name of 1 to {_MAX_NAME_CHARS} printable characters.", param="name")
    other = await teams.by_name(step.conn, name)
    if other is not None and other.id != own_id:
        raise Conflict("There is a team with this name already.", param="name")
    return name


def _shown(team: Team) -> dict[str, Any]:
    return {"name": team.name}
