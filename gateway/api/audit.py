"""`/admin/audit`: who changed what, when and from where; to page through, to search, and whole as JSON lines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from gateway.api.context import TheControl
from gateway.api.moments import before, moment
from gateway.api.paging import AfterNumber, Limit, Page
from gateway.errors import InvalidRequest
from gateway.store import trail
from gateway.store.chain import canonical
from gateway.store.engine import Database
from gateway.store.trail import AuditEntry, Wanted

_LINES = "application/x-ndjson"
_EXPORT_PAGE = 200  # few enough that other requests hardly wait while they are written out
_NO_NUL = r"^[^\x00]*$"  # PostgreSQL takes no text with a NUL


class AuditOut(BaseModel):
    """One change. `before` and `after` hold what can be shown, never a key, a password or a secret."""

    id: int
    at: datetime
    actor_user_id: str | None = Field(description="null: whoever holds the machine.")
    actor_email: str | None = Field(None, description="As it is now.", examples=["dana@example.com"])
    actor_key_id: str | None = Field(None, description="The key that was used; null: a login, or no user.", examples=["k3v9x0q2m7ab"])
    via: str = Field(description="cli, api, file or init.", examples=["api"])
    address: str | None
    action: str = Field(examples=["revoke"])
    entity: str = Field(examples=["key"])
    entity_id: str = Field(examples=["k3v9x0q2m7ab"])
    before: Any = None
    after: Any = None
    hash: str = Field(description="Over this entry and the hash of the one before it; hex.")


async def wanted_of(
    entity: Annotated[str, Query(max_length=50, pattern=_NO_NUL, description="user, team, key, revision, secret ...")] = "",
    entity_id: Annotated[str, Query(max_length=300, pattern=_NO_NUL)] = "",
    action: Annotated[str, Query(max_length=50, pattern=_NO_NUL, description="create, revoke, set_role, login, logout ...")] = "",
    actor: Annotated[str, Query(max_length=254, pattern=_NO_NUL, description="User id, e-mail or key id.")] = "",
    q: Annotated[str, Query(max_length=100, pattern=_NO_NUL, description="Part of what, whom or where; at least 3 characters.")] = "",
    since: Annotated[str, Query(max_length=60, description="A duration back from now (7d) or an RFC 3339 time.", examples=["7d"])] = "",
    until: Annotated[str, Query(max_length=60, description="As `since`; before that time.")] = "",
) -> Wanted:
    """Raises `InvalidRequest`."""
    words, now_s = q.strip(), time.time()
    if q and len(words) < trail.MIN_WORDS:
        raise InvalidRequest(f"Search for at least {trail.MIN_WORDS} characters.", param="q")
    since_s = before(since, now_s, "since") if since else None
    until_s = before(until, now_s, "until") if until else None
    if since_s is not None and until_s is not None and until_s <= since_s:
        raise InvalidRequest("until lies before since.", param="until")
    return Wanted(entity, entity_id, action, actor, words, since_s, until_s)


TheWanted = Annotated[Wanted, Depends(wanted_of)]


async def list_audit(control: TheControl, wanted: TheWanted, after: AfterNumber = None, limit: Limit = 50) -> Page[AuditOut]:
    """Changes, newest first. With `q` a page can be short and have a `next`: one call looks at so many entries only."""
    async with control.db.look() as conn:
        found, following = await trail.newest(conn, wanted, before_id=after, limit=limit)
    shown = [AuditOut(**asdict(entry) | {"at": moment(entry.at)}) for entry in found]
    return Page(data=shown, next=None if following is None else str(following))


async def export_audit(control: TheControl, wanted: TheWanted) -> StreamingResponse:
    """Changes as JSON lines, oldest first: each line is what was hashed of the entry, and its hash."""
    async with control.db.look() as conn:  # before the answer begins: a database that is away is a 503, not half a file
        first = await trail.oldest(conn, wanted, limit=_EXPORT_PAGE)
    headers = {"content-disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(_export(control.db, wanted, first), media_type=_LINES, headers=headers)


async def _export(db: Database, wanted: Wanted, page: tuple[Sequence[AuditEntry], int | None]) -> AsyncIterator[bytes]:
    """No transaction is open while a slow client reads."""
    found, following = page
    while True:
        if found:
            yield b"".join(canonical(trail.exported(entry)) + b"\n" for entry in found)
        if following is None:
            return
        async with db.look() as conn:
            found, following = await trail.oldest(conn, wanted, after_id=following, limit=_EXPORT_PAGE)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["audit"]
    lines: dict[int | str, dict[str, Any]] = {200: {"content": {_LINES: {"schema": {"type": "string"}}}, "description": "One entry a line"}}
    app.add_api_route("/admin/audit", list_audit, methods=["GET"], response_model=Page[AuditOut], tags=tags)
    app.add_api_route("/admin/audit/export", export_audit, methods=["GET"], response_class=StreamingResponse, responses=lines, tags=tags)
