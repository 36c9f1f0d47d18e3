"""`/admin/keys`. A key's text is in the answer to its creation and rotation, and nowhere else. Managers see and change their team's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from auth.existing import MAX_CHARS, MIN_CHARS
from gateway.api.context import By, TheControl
from gateway.api.limits import LimitsIn, LimitsOut, no_defaults
from gateway.api.limits import shown as shown_limits
from gateway.api.moments import after as moment_after
from gateway.api.moments import moment, moment_or_none
from gateway.api.paging import NO_NUL, After, Limit, Page, cut
from gateway.api.reach import TheReach
from gateway.changes import Grant, create_key, import_key, reset_key_budget, revoke_key, rotate_key, update_key
from gateway.changes.keys import MAX_DESCRIPTION_CHARS, MAX_GRACE_S, MAX_NETWORKS, IssuedKey
from gateway.errors import InvalidRequest, NotFound
from gateway.store import keys, users
from gateway.store.engine import Connection
from gateway.store.keys import ListedKey

_EXPIRY = r"^([0-9]{1,9}[smhdw]|[0-9]{4}-.+)$"

ScopeName = Literal["inference", "usage", "metrics", "admin", "content"]
Expiry = Annotated[str, Field(max_length=60, pattern=_EXPIRY, description="A duration (30d) or an RFC 3339 time.", examples=["30d"])]
Globs = Annotated[list[str], Field(min_length=1, max_length=100, description="Model ids or patterns; * is all.", examples=[["chat"]])]
Scopes = Annotated[list[ScopeName], Field(min_length=1, max_length=5, examples=[["inference"]])]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS, examples=["nightly index of the wiki; owner on call: search team"])]
Network = Annotated[str, Field(min_length=1, max_length=64)]
Cidrs = Annotated[
    list[Network],
    Field(max_length=MAX_NETWORKS, description="Where it may be used from: CIDR or addresses; none: anywhere.", examples=[["10.0.0.0/8"]]),
]
KeyId = Annotated[str, Path(max_length=100, pattern=NO_NUL, description="The 12 characters after sk-gw-.", examples=["k3v9x0q2m7ab"])]


class KeyOut(LimitsOut):
    """A key without its text. A limit that is null is none."""

    id: str = Field(examples=["k3v9x0q2m7ab"])
    name: str = Field(examples=["search service"])
    description: str
    prefix: str = Field(description="How its text begins.", examples=["sk-gw-k3v9x0q2m7ab"])
    owner: str = Field(description="The owner's user id.", examples=["usr_9f2c1a7be04d5566"])
    owner_email: str = Field(examples=["dana@example.com"])
    team: str | None = Field(description="The owner's team (its id).", examples=["team_5b1f3c9d7e2a4860"])
    models: list[str] = Field(examples=[["*"]])
    scopes: list[str] = Field(examples=[["inference"]])
    networks: list[str] = Field(description="CIDR; none: it may be used from anywhere.", examples=[["10.0.0.0/8"]])
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    created_by: str | None = Field(description="User id, or cli.", examples=["usr_9f2c1a7be04d5566"])
    held: list[str] = Field(description="What of it an admin has set: managers only narrow that.", examples=[["rpm"]])
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute; null: never, as far as is known.")
    content_log: bool = Field(description="Its requests and their answers are kept, encrypted.")


class KeyIssued(BaseModel):
    """`key` is shown this once: only its SHA-256 is kept."""

    id: str = Field(examples=["k3v9x0q2m7ab"])
    key: str = Field(examples=["sk-gw-k3v9x0q2m7ab-..."])
    name: str = Field(examples=["search service"])
    scopes: list[str] = Field(examples=[["inference"]])
    expires_at: datetime | None


class KeyIn(LimitsIn):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200, examples=["search service"])
    description: Description = ""
    owner: str | None = Field(None, max_length=254, description="User id or e-mail address; absent: you.", examples=["dana@example.com"])
    scopes: Scopes = Field(["inference"])
    models: Globs = Field(["*"])
    networks: Cidrs = Field([])
    expires: Expiry | None = None
    content_log: bool = Field(False, strict=True, description="Keep its requests and their answers, encrypted. Only admins say so.")


class KeyImportIn(KeyIn):
    """A key that was made elsewhere. Only its SHA-256 is kept."""

    key: SecretStr = Field(min_length=MIN_CHARS, max_length=MAX_CHARS, examples=["sk-live-..."])


def _change_schema(schema: dict[str, Any]) -> None:
    no_defaults(schema)
    schema["examples"] = [{"rpm": 120, "budget": "50/month"}, {"expires": None}, {"networks": ["10.0.0.0/8"]}]


class KeyChange(LimitsIn):
    """What is absent stays as it is; null takes a limit or the expiry away."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_change_schema)

    name: str = Field("unchanged", min_length=1, max_length=200)
    description: Description = ""
    scopes: Scopes = Field(["inference"])
    models: Globs = Field(["*"])
    networks: Cidrs = Field([])
    expires: Expiry | None = None
    content_log: bool = Field(False, strict=True, description="Keep its requests and their answers, encrypted. Only admins say so.")


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grace_s: float = Field(0, ge=0, le=MAX_GRACE_S, allow_inf_nan=False, description="How long the old text still works, in seconds.")


async def list_keys(
    control: TheControl,
    reach: TheReach,
    owner: Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Only this user's (user id).")] = "",
    team: Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Only those of this team's users (team id).")] = "",
    search: Annotated[
        str, Query(max_length=100, pattern=NO_NUL, description="Part of the name, description, prefix, or the owner's e-mail or name.")
    ] = "",
    revoked: Annotated[bool, Query(description="Revoked ones too.")] = False,
    after: After = "",
    limit: Limit = 50,
) -> Page[KeyOut]:
    """Keys, oldest first."""
    seen = reach.team_id
    if seen is not None and team not in ("", seen):
        return Page(data=[], next=None)
    async with control.db.look() as conn:
        return await page_of(
            conn, after, limit, user_id=owner, team_id=(team or None) if seen is None else seen, search=search, revoked=revoked
        )


async def get_key(control: TheControl, reach: TheReach, key_id: KeyId) -> KeyOut:
    """One key."""
    async with control.db.look() as conn:
        found = await keys.listed(conn, key_id)
        if found is None or not (reach.team_id is None or (reach.team_id and found.team_id == reach.team_id)):
            raise NotFound("There is no such key.")
        return (await shown(conn, [found]))[0]


async def add_key(control: TheControl, by: By, body: KeyIn) -> KeyIssued:
    """Create a key. Its text is in this answer and cannot be shown again."""
    grant = await _grant(control, body)
    issued = await create_key(
        control.db,
        control.generation,
        by,
        name=grant.name,
        owner_id=grant.owner_id,
        scopes=grant.scopes,
        models=grant.models,
        limits=grant.limits,
        expires_at=grant.expires_at,
        description=grant.description,
        networks=grant.networks,
        content_log=grant.content_log,
        box=control.secret_box,
    )
    return issued_out(issued)


async def take_key(control: TheControl, by: By, body: KeyImportIn) -> KeyOut:
    """Let a key that was made elsewhere work here. Whoever has it goes on using it as it is; rotate it when they can."""
    grant = await _grant(control, body)
    key = await import_key(control.db, control.generation, by, body.key.get_secret_value(), grant, box=control.secret_box)
    return await _read(control, key.id)


async def change_key(control: TheControl, by: By, key_id: KeyId, body: KeyChange) -> KeyOut:
    """Change a key's name, description, scopes, models, networks, limits or expiry. Its text goes on working; running requests finish."""
    fields = body.fields()
    if "expires" in fields:
        del fields["expires"]
        fields["expires_at"] = _expiry(body.expires)
    await update_key(control.db, control.generation, by, key_id, fields, box=control.secret_box)
    return await _read(control, key_id)


async def revoke(control: TheControl, by: By, key_id: KeyId) -> KeyOut:
    """Refuse this key from now on. Running requests finish."""
    await revoke_key(control.db, control.generation, by, key_id)
    return await _read(control, key_id)


async def reset_budget(control: TheControl, by: By, key_id: KeyId) -> KeyOut:
    """What this key has spent so far counts against its budgets no more, in all processes at once."""
    await reset_key_budget(control.db, control.generation, by, key_id)
    return await _read(control, key_id)


async def rotate(control: TheControl, by: By, key_id: KeyId, body: Rotation | None = None) -> KeyIssued:
    """Give a key a new text. Its id, limits and budget stay; the old text works for `grace_s` more seconds."""
    grace_s = body.grace_s if body else 0
    issued = await rotate_key(control.db, control.generation, by, key_id, grace_s=grace_s)
    return issued_out(issued)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["keys"]
    app.add_api_route("/admin/keys", list_keys, methods=["GET"], response_model=Page[KeyOut], tags=tags)
    app.add_api_route("/admin/keys", add_key, methods=["POST"], response_model=KeyIssued, status_code=201, tags=tags)
    app.add_api_route("/admin/keys/import", take_key, methods=["POST"], response_model=KeyOut, status_code=201, tags=tags)
    app.add_api_route("/admin/keys/{key_id}", get_key, methods=["GET"], response_model=KeyOut, tags=tags)
    app.add_api_route("/admin/keys/{key_id}", change_key, methods=["PATCH"], response_model=KeyOut, tags=tags)
    app.add_api_route("/admin/keys/{key_id}/revoke", revoke, methods=["POST"], response_model=KeyOut, tags=tags)
    app.add_api_route("/admin/keys/{key_id}/rotate", rotate, methods=["POST"], response_model=KeyIssued, tags=tags)
    app.add_api_route("/admin/keys/{key_id}/budget/reset", reset_budget, methods=["POST"], response_model=KeyOut, tags=tags)


async def page_of(conn: Connection, after: str, limit: int, **chosen: Any) -> Page[KeyOut]:
    """One page of the keys that are `chosen`, in the terms of `keys.page`."""
    last = await keys.listed(conn, after) if after else None
    if after and (last is None or not _among(last, **chosen)):
        raise InvalidRequest("There is no such page.", param="after")
    page, more = cut(await keys.page(conn, after=None if last is None else last.key, limit=limit + 1, **chosen), limit)
    return Page(data=await shown(conn, page), next=page[-1].key.id if more else None)


def _among(found: ListedKey, *, user_id: str = "", team_id: str | None = None, **_: Any) -> bool:
    """A page begins behind a key of the same list: whether others exist is not told."""
    return user_id in ("", found.key.user_id) and team_id in (None, found.team_id)


async def _read(control: TheControl, key_id: str) -> KeyOut:
    """A key that was just changed."""
    async with control.db.look() as conn:
        found = await keys.listed(conn, key_id)
        assert found is not None  # keys are never removed
        return (await shown(conn, [found]))[0]


async def _grant(control: TheControl, body: KeyIn) -> Grant:
    return Grant(
        body.name,
        await _owner_id(control, body.owner),
        body.scopes,
        body.models,
        body.limits(),
        _expiry(body.expires),
        body.description,
        body.networks,
        body.content_log,
    )


async def _owner_id(control: TheControl, owner: str | None) -> str | None:
    """An address that the caller does not see is left to the change, which answers as for an id that there is not."""
    if owner is None or "@" not in owner:
        return owner
    async with control.db.look() as conn:
        user = await users.by_typed_email(conn, owner)
    return owner if user is None else user.id


def _expiry(text: str | None) -> float | None:
    return None if text is None else moment_after(text, time.time(), "expires")


def issued_out(issued: IssuedKey) -> KeyIssued:
    return KeyIssued(
        id=issued.id, key=issued.key, name=issued.name, scopes=list(issued.scopes), expires_at=moment_or_none(issued.expires_at)
    )


async def shown(conn: Connection, found: Sequence[ListedKey]) -> list[KeyOut]:
    limits = await shown_limits(conn, {one.key.id: one.key.limits for one in found})
    return [_out(one, limits[one.key.id]) for one in found]


def _out(found: ListedKey, limits: dict[str, Any]) -> KeyOut:
    key = found.key
    expired = key.expires_at is not None and key.expires_at <= time.time()
    return KeyOut(
        id=key.id,
        name=key.name,
        description=key.description,
        prefix=key.begins,
        owner=key.user_id,
        owner_email=found.owner_email,
        team=found.team_id,
        models=list(key.models),
        scopes=list(key.scopes),
        networks=list(key.networks),
        state="revoked" if key.revoked_at is not None else "expired" if expired else "active",
        created_at=moment(key.created_at),
        created_by=key.created_by,
        held=list(key.held),
        expires_at=moment_or_none(key.expires_at),
        revoked_at=moment_or_none(key.revoked_at),
        last_used_at=moment_or_none(found.last_used_at),
        content_log=key.content_log,
        **limits,
    )
