"""Teams: whose members their managers see and manage. A user is of at most one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Limits
from gateway.store.limits import NAMES as _LIMITS
from gateway.store.limits import limit_values, limits_of
from gateway.store.search import holds
from gateway.store.tables import teams, users
from gateway.store.users import Kind

_COLUMNS = (teams.c.id, teams.c.name, teams.c.created_at, *(teams.c[name] for name in _LIMITS))


@dataclass(frozen=True, slots=True)
class Team:
    """`created_at`: Unix seconds. `limits`: of all that its users do."""

    id: str
    name: str
    created_at: float
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Heads:
    """How many are of a team, disabled ones too."""

    people: int = 0
    services: int = 0


async def create(conn: AsyncConnection, name: str, now_s: float, limits: Limits | None = None) -> Team:
    """The caller has checked that the name is free."""
    team = Team(f"team_{secrets.token_hex(8)}", name, now_s, limits or Limits())
    await conn.execute(insert(teams).values(id=team.id, name=team.name, created_at=now_s, **limit_values(team.limits)))
    return team


async def by_id(conn: AsyncConnection, team_id: str) -> Team | None:
    return _team((await conn.execute(select(*_COLUMNS).where(teams.c.id == team_id))).one_or_none())


async def limits(conn: AsyncConnection, team_id: str) -> Limits | None:
    """None: there is no such team."""
    team = await by_id(conn, team_id)
    return None if team is None else team.limits


async def by_name(conn: AsyncConnection, name: str) -> Team | None:
    """In any case: two teams whose names differ in case alone are taken for one another."""
    same = or_(teams.c.name == name.strip(), func.lower(teams.c.name) == name.strip().lower())  # SQLite lowers ASCII alone
    query = select(*_COLUMNS).where(same).order_by(teams.c.name)
    return _team((await conn.execute(query.limit(1))).one_or_none())


async def page(conn: AsyncConnection, *, after: str = "", limit: int = 50, search: str = "", team_id: str | None = None) -> list[Team]:
    """Teams by name, those after the name `after`. `search`: a part of the name. `team_id`: only this one; None: all."""
    query = select(*_COLUMNS).where(teams.c.name > after).order_by(teams.c.name).limit(limit)
    if search.strip():
        words = search.strip()
        query = query.where(or_(holds(conn, teams.c.name, words), holds(conn, func.lower(teams.c.name), words.lower())))
    if team_id is not None:
        query = query.where(teams.c.id == team_id)
    return [_made(row) for row in (await conn.execute(query)).all()]


async def names(conn: AsyncConnection, team_ids: Sequence[str | None]) -> dict[str, str]:
    """Id -> name, of those of these that there are."""
    wanted = {team_id for team_id in team_ids if team_id is not None}
    if not wanted:
        return {}
    rows = (await conn.execute(select(teams.c.id, teams.c.name).where(teams.c.id.in_(wanted)))).all()
    return {str(row[0]): str(row[1]) for row in rows}


async def heads(conn: AsyncConnection, team_ids: Sequence[str]) -> dict[str, Heads]:
    """Id -> how many are of it. Teams that nobody is of are absent."""
    query = select(users.c.team_id, users.c.kind, func.count()).where(users.c.team_id.in_(team_ids))
    counts: dict[str, dict[str, int]] = {}
    for team_id, kind, count in (await conn.execute(query.group_by(users.c.team_id, users.c.kind))).all():
        counts.setdefault(team_id, {})[kind] = int(count)
    return {team_id: Heads(found.get(Kind.PERSON, 0), found.get(Kind.SERVICE, 0)) for team_id, found in counts.items()}


async def all_limits(conn: AsyncConnection) -> dict[str, Limits]:
    """Those of every team, by id."""
    rows = (await conn.execute(select(teams.c.id, *(teams.c[name] for name in _LIMITS)))).all()
    return {str(row[0]): limits_of(*row[1:]) for row in rows}


async def set_limits(conn: AsyncConnection, team_id: str, limits: Limits) -> None:
    await conn.execute(update(teams).where(teams.c.id == team_id).values(limit_values(limits)))


async def rename(conn: AsyncConnection, team_id: str, name: str) -> None:
    await conn.execute(update(teams).where(teams.c.id == team_id).values(name=name))


async def remove(conn: AsyncConnection, team_id: str) -> None:
    """The caller has checked that nobody is of it."""
    await conn.execute(delete(teams).where(teams.c.id == team_id))


def _team(row: Any) -> Team | None:
    return None if row is None else _made(row)


def _made(row: Any) -> Team:
    team_id, name, created_at, *limits = row
    return Team(team_id, name, created_at, limits_of(*limits))
