"""How `gateway keys` shows keys: found in the database, as rows and as JSON. Never their texts, but for one just issued."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gateway.cli.context import Context
from gateway.cli.limits import fields_of, in_words, spent_words
from gateway.cli.moments import rfc3339
from gateway.cli.output import fail, show, show_json

if TYPE_CHECKING:
    from gateway.changes import IssuedKey
    from gateway.store.keys import ListedKey

_PAGE = 500


async def listed(ctx: Context, owner: str, team: str, search: str, revoked: bool) -> list[dict[str, Any]]:
    from gateway.cli.users import find_user
    from gateway.store import keys, teams

    user_id = (await find_user(ctx, owner)).id if owner else ""
    found: list[ListedKey] = []
    async with ctx.db.read() as conn:
        chosen = await teams.by_name(conn, team) if team else None
        if team and chosen is None:
            fail(f"There is no team {team!r}; `gateway teams list` shows all.")
        team_id = chosen.id if chosen else None
        while page := await keys.page(
            conn, after=found[-1].key if found else None, limit=_PAGE, user_id=user_id, team_id=team_id, search=search, revoked=revoked
        ):
            found += page
    return [_fields(key, time.time()) for key in found]


async def shown(ctx: Context, key_id: str) -> dict[str, Any]:
    from gateway.store import keys

    async with ctx.db.read() as conn:
        found = await keys.listed(conn, key_id)
    assert found is not None  # keys are never removed
    return _fields(found, time.time())


def _fields(found: ListedKey, now_s: float) -> dict[str, Any]:
    key = found.key
    over = key.expires_at is not None and key.expires_at <= now_s
    return {
        "id": key.id,
        "name": key.name,
        "description": key.description,
        "prefix": key.begins,
        "owner": found.owner_email,
        "models": list(key.models),
        "scopes": list(key.scopes),
        "networks": list(key.networks),
        **fields_of(key.limits),
        "created_at": rfc3339(key.created_at),
        "created_by": key.created_by,
        "last_used_at": rfc3339(found.last_used_at),
        "expires_at": rfc3339(key.expires_at),
        "content_log": key.content_log,
        "revoked_at": rfc3339(key.revoked_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if over else "active",
    }


def used(row: dict[str, Any]) -> str:
    return (row["last_used_at"] or "never")[:16].replace("T", " ")


def show_one(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(row)
        return
    about = (row["id"], row["name"], row["owner"], ",".join(row["models"]), ",".join(row["scopes"]), ",".join(row["networks"]))
    logged = "content logged" if row["content_log"] else ""
    show("  ".join(part for part in (*about, in_words(row), logged, *spent_words(row.get("spent", {})), row["state"]) if part))


def show_issued(issued: IssuedKey, as_json: bool) -> None:
    if as_json:
        show_json({
            "id": issued.id,
            "key": issued.key,
            "name": issued.name,
            "scopes": list(issued.scopes),
            "expires_at": rfc3339(issued.expires_at),
        })  # fmt: skip
    else:
        show(issued.key)
