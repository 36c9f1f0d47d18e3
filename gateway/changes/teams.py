"""Changes of teams. Admins alone make, change and delete them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from auth.principal import Limits
from gateway.changes.actor import Actor, Change, change
from gateway.changes.limits import FIELDS as _LIMITS
from gateway.changes.limits import check_limits, edited, set_back, shown_limits
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.store import teams
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.teams import Team

FIELDS = frozenset({"name"}) | _LIMITS
_MAX_NAME_CHARS = 100
_ENTITY = "team"


async def create_team(db: Database, generation: Generation, actor: Actor, *, name: str, limits: Limits | None = None) -> Team:
    """`limits`: of all that its users do."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        check_limits(limits or Limits())
        team = await teams.create(step.conn, await _free(step, name), step.now_s, limits or Limits())
        await step.record("create", _ENTITY, team.id, None, _shown(team))
        return team


async def rename_team(db: Database, generation: Generation, actor: Actor, team_id: str, name: str) -> Team:
    return await update_team(db, generation, actor, team_id, {"name": name})


async def update_team(db: Database, generation: Generation, actor: Actor, team_id: str, fields: Mapping[str, Any]) -> Team:
    """`fields`: any of name, and the limits as `update_user` has them. What was spent of a budget stays spent."""
    if not fields.keys() <= FIELDS:
        raise InvalidRequest(f"There is no field {sorted(fields.keys() - FIELDS)[0]!r} of a team to change.")
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await _known(step, team_id)
        after = replace(team, limits=edited(team.limits, fields))
        if "name" in fields and team.name != fields["name"].strip():
            after = replace(after, name=await _free(step, fields["name"], team.id))
        return await _stored(step, team, after, "rename" if after.limits == team.limits else "update")


async def reset_team_budget(db: Database, generation: Generation, actor: Actor, team_id: str) -> Team:
    """What the team has spent so far counts against its budgets no more; those of its users and keys stay as they are."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await _known(step, team_id)
        return await _stored(step, team, replace(team, limits=set_back(team.limits, step.now_s)), "reset_budget")


async def delete_team(db: Database, generation: Generation, actor: Actor, team_id: str) -> None:
    """Only a team that nobody is of, not even a disabled user."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        team = await _known(step, team_id)
        if await teams.heads(step.conn, [team_id]):
            raise Conflict("There are users of this team: move them to another one, or to none, first.")
        await teams.remove(step.conn, team_id)
        await step.record("delete", _ENTITY, team_id, _shown(team), None)


async def _stored(step: Change, team: Team, after: Team, action: str) -> Team:
    if after != team:
        await teams.rename(step.conn, team.id, after.name)
        await teams.set_limits(step.conn, team.id, after.limits)
        await step.record(action, _ENTITY, team.id, _shown(team), _shown(after))
    return after


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
    """What is not set is left out."""
    return {"name": team.name} | shown_limits(team.limits)
