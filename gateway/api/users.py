"""`/admin/users` and `/admin/service-accounts`. A manager sees and changes those of their own team."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from auth.passwords import MIN_CHARS
from auth.principal import Role
from gateway.api.context import By, TheControl
from gateway.api.limits import LimitsIn, LimitsOut, no_defaults
from gateway.api.limits import shown as shown_limits
from gateway.api.moments import moment, moment_or_none
from gateway.api.paging import NO_NUL, After, Limit, Page, cut
from gateway.api.reach import TheReach
from gateway.changes import create_service, create_user, may_give_password, reset_password, reset_user_budget, update_user
from gateway.errors import InvalidRequest, NotFound
from gateway.runtime import Control
from gateway.store import teams, users
from gateway.store.engine import Connection
from gateway.store.users import Kind, User

UserId = Annotated[str, Path(max_length=100, pattern=NO_NUL, examples=["usr_9f2c1a7be04d5566"])]
Search = Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Part of the e-mail address or the name.")]
TeamText = Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL, description="Id or name of a team.", examples=["research"])]
Name = Annotated[str, Field(max_length=200, description="To show.", examples=["Dana Kim"])]


class UserOut(LimitsOut):
    """A person, or a service that holds keys. The limits are of all that they do, with any key or login; keys have their own besides."""

    id: str = Field(examples=["usr_9f2c1a7be04d5566"])
    email: str = Field(examples=["dana@example.com"])
    name: str | None = Field(examples=["Dana Kim"])
    kind: Literal["person", "service"]
    role: Role
    team: str | None = Field(description="Id of the team.", examples=["team_4c1a7be09f2d5566"])
    team_name: str | None = Field(examples=["research"])
    disabled: bool
    created_at: datetime
    disabled_at: datetime | None
    last_login_at: datetime | None
    held: list[str] = Field(
        description="What of it an admin has set: managers only narrow limits, and enable nobody.", examples=[["rpm", "disabled"]]
    )


class UserIn(LimitsIn):
    model_config = ConfigDict(extra="forbid")

    email: str = Field(max_length=254, examples=["dana@example.com"])
    name: Name | None = None
    role: Role = Role.MEMBER
    team: TeamText | None = None
    password: str | None = Field(None, min_length=MIN_CHARS, max_length=1024, description="Absent: cannot log in with a password.")


class ServiceIn(LimitsIn):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, description="Its address is NAME@service.", examples=["search-indexer"])
    role: Role = Role.MEMBER
    team: TeamText | None = None


def _change_schema(schema: dict[str, Any]) -> None:
    no_defaults(schema)
    schema["examples"] = [{"role": "viewer", "rpm": 60, "budget": "25/month"}, {"disabled": True}, {"team": None}]


class UserChange(LimitsIn):
    """What is absent stays as it is; null takes a name, a team or a limit away. All of it happens, or nothing."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_change_schema)

    name: Name | None = None
    role: Role = Role.MEMBER
    team: TeamText | None = None
    disabled: bool = Field(False, strict=True, description="A disabled user's keys and logins are refused.")


class PasswordIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    password: str | None = Field(None, min_length=MIN_CHARS, max_length=1024, description="Absent: one is made, and shown in the answer.")


class PasswordOut(BaseModel):
    password: str | None = Field(description="The password that was made, shown this once; null where one was given.")


async def list_users(
    control: TheControl,
    reach: TheReach,
    search: Search = "",
    team: Annotated[str | None, Query(max_length=100, pattern=NO_NUL, description="Only those of this team (team id).")] = None,
    kind: Annotated[Kind | None, Query()] = None,
    after: After = "",
    limit: Limit = 50,
) -> Page[UserOut]:
    """Users in the order of their e-mail addresses."""
    if team is not None and reach.team_id not in (None, team):
        return Page(data=[], next=None)
    async with control.db.look() as conn:
        last = await users.by_id(conn, after) if after else None
        if after and (last is None or not reach.sees(last)):
            raise InvalidRequest("There is no such page.", param="after")
        email, of = last.email if last else "", reach.team_id if team is None else team
        found = await users.page(conn, after=email, limit=limit + 1, search=search, team_id=of, kind=kind)
        page, more = cut(found, limit)
        data = await _shown(conn, page)
    return Page(data=data, next=page[-1].id if more else None)


async def get_user(control: TheControl, reach: TheReach, user_id: UserId) -> UserOut:
    """One user."""
    async with control.db.look() as conn:
        user = await users.by_id(conn, user_id)
        if user is None or not reach.sees(user):
            raise NotFound("There is no such user.")
        return (await _shown(conn, [user]))[0]


async def add_user(control: TheControl, by: By, body: UserIn) -> UserOut:
    """Create a user. A manager creates members and viewers of their own team, without a password: they get a link."""
    password_hash = None
    if body.password is not None:
        await may_give_password(control.db, by)
        password_hash = await control.passwords.hash(body.password, email=body.email)
    user = await create_user(
        control.db,
        control.generation,
        by,
        email=body.email,
        role=body.role,
        password_hash=password_hash,
        name=body.name,
        team=body.team,
        limits=body.limits(),
    )
    return await _changed(control, user)


async def add_service(control: TheControl, by: By, body: ServiceIn) -> UserOut:
    """Create a service account: it holds keys, and never logs in."""
    user = await create_service(control.db, control.generation, by, name=body.name, role=body.role, team=body.team, limits=body.limits())
    return await _changed(control, user)


async def change_user(control: TheControl, by: By, user_id: UserId, body: UserChange) -> UserOut:
    """Change a user's name, role, team or limits, disable or enable them. The last enabled admin stays one.

    Who is made an admin or a manager has to log in again.
    """
    return await _changed(control, await update_user(control.db, control.generation, by, user_id, body.fields()))


async def reset_budget(control: TheControl, by: By, user_id: UserId) -> UserOut:
    """What this user has spent so far counts against their budgets no more; those of their keys and team stay as they are."""
    return await _changed(control, await reset_user_budget(control.db, control.generation, by, user_id))


async def set_password(control: TheControl, by: By, user_id: UserId, body: PasswordIn | None = None) -> PasswordOut:
    """Set a user's password. All their logins end."""
    given = body.password if body else None
    password = given or secrets.token_urlsafe(12)
    user = await may_give_password(control.db, by, user_id)
    password_hash = await control.passwords.hash(password, email=user.email if user else "")
    await reset_password(control.db, control.generation, by, user_id, password_hash=password_hash)
    return PasswordOut(password=None if given else password)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["users"]
    app.add_api_route("/admin/users", list_users, methods=["GET"], response_model=Page[UserOut], tags=tags)
    app.add_api_route("/admin/users", add_user, methods=["POST"], response_model=UserOut, status_code=201, tags=tags)
    app.add_api_route("/admin/users/{user_id}", get_user, methods=["GET"], response_model=UserOut, tags=tags)
    app.add_api_route("/admin/users/{user_id}", change_user, methods=["PATCH"], response_model=UserOut, tags=tags)
    app.add_api_route("/admin/users/{user_id}/budget/reset", reset_budget, methods=["POST"], response_model=UserOut, tags=tags)
    app.add_api_route("/admin/users/{user_id}/password", set_password, methods=["POST"], response_model=PasswordOut, tags=tags)
    app.add_api_route("/admin/service-accounts", add_service, methods=["POST"], response_model=UserOut, status_code=201, tags=tags)


async def _changed(control: Control, user: User) -> UserOut:
    async with control.db.look() as conn:
        return (await _shown(conn, [user]))[0]


async def _shown(conn: Connection, found: Sequence[User]) -> list[UserOut]:
    names = await teams.names(conn, [user.team_id for user in found])
    limits = await shown_limits(conn, {f"user:{user.id}": user.limits for user in found})
    return [_out(user, names.get(user.team_id or ""), limits[f"user:{user.id}"]) for user in found]


def _out(user: User, team_name: str | None, limits: dict[str, Any]) -> UserOut:
    return UserOut(
        id=user.id,
        email=user.email,
        name=user.name,
        kind=user.kind.value,
        role=user.role,
        team=user.team_id,
        team_name=team_name,
        disabled=not user.enabled,
        created_at=moment(user.created_at),
        disabled_at=moment_or_none(user.disabled_at),
        last_login_at=moment_or_none(user.last_login_at),
        held=list(user.held),
        **limits,
    )
