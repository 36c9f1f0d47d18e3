"""`/admin/contents`: what was logged of requests and answers. Lists say what there is; to read one takes a reason, which the audit log
keeps.

Listing and reading take the scope `content`, which no role carries; forgetting is for admins.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from auth.principal import Principal
from gateway.api.context import By, Caller, TheControl
from gateway.api.moments import before, moment
from gateway.api.paging import NO_NUL, Limit, Page, place_of, place_text
from gateway.changes import Said, erase_contents, read_content
from gateway.changes.contents import MAX_REASON_CHARS, MIN_REASON_CHARS
from gateway.errors import InvalidRequest
from gateway.relay.content import words_of
from gateway.store import contents
from gateway.store.contents import About, Wanted
from gateway.store.engine import Connection

Id = Annotated[str, Query(max_length=200, pattern=NO_NUL)]
When = Annotated[str, Query(max_length=60, description="A duration back from now (7d) or an RFC 3339 time.", examples=["7d"])]
After = Annotated[str, Query(max_length=300, pattern=NO_NUL, description="`next` of the page before; empty for the first page.")]
RequestId = Annotated[str, Path(max_length=100, pattern=NO_NUL, description="`x-request-id` of the answer.")]
Reason = Annotated[
    str,
    Query(
        min_length=MIN_REASON_CHARS,
        max_length=MAX_REASON_CHARS,
        pattern=NO_NUL,
        description="Why; it is kept in the audit log.",
        examples=["complaint 4711"],
    ),
]


class ContentAbout(BaseModel):
    """One logged request, without what was said. Sizes are those that went over the wire, in bytes."""

    request_id: str = Field(examples=["req-5f0c9a1b2c3d4e5f00000001"])
    at: datetime = Field(description="When it began.")
    key_id: str | None = Field(description="null: a login token.")
    user_id: str
    team_id: str | None
    model: str
    operation: str = Field(examples=["chat"])
    status: int = Field(description="As sent to the client; 499 if it left before.")
    ending: str = Field(examples=["success"])
    not_kept: str | None = Field(
        description="Why nothing is kept of it: full (too much at once), disk (no room), fault; null: it is.", examples=[None]
    )
    request_type: str = Field(examples=["application/json"])
    answer_type: str = Field(description="Empty: no answer began.", examples=["text/event-stream"])
    request_bytes: int
    answer_bytes: int
    request_truncated: bool
    answer_truncated: bool


class ContentOut(ContentAbout):
    """What was said, as it went over the wire. null: not kept (binary, or `not_kept`)."""

    request: str | None
    answer: str | None
    words: list[str] | None = Field(description="What the model said, one text for each choice; null: that cannot be seen in the answer.")


class ErasedOut(BaseModel):
    erased: int = Field(description="Requests.")


async def list_contents(
    control: TheControl,
    caller: Caller,
    key_id: Id = "",
    user_id: Id = "",
    model: Id = "",
    since: When = "",
    until: When = "",
    after: After = "",
    limit: Limit = 50,
) -> Page[ContentAbout]:
    """Logged requests, newest first, without what was said: of the models that your key is for."""
    now_s = time.time()
    since_s = before(since, now_s, "since") if since else None
    until_s = before(until, now_s, "until") if until else None
    if since_s is not None and until_s is not None and until_s <= since_s:
        raise InvalidRequest("'until' lies before 'since'.", param="until")
    place = place_of(after)
    async with control.db.look() as conn:
        wanted = Wanted(key_id, user_id, model, since_s, until_s, await _models(conn, caller))
        found = await contents.page(conn, wanted, before=place, limit=limit + 1)
    following = place_text(found[limit - 1].at, found[limit - 1].request_id) if len(found) > limit else None
    return Page(data=[ContentAbout(**_about(about)) for about in found[:limit]], next=following)


async def read_one(control: TheControl, by: By, request_id: RequestId, reason: Reason) -> Response:
    """What one request said and was answered. That it was read is in the audit log before it is in this answer."""
    async with control.reading:
        said = await read_content(control.db, control.generation, by, request_id, reason, box=control.content_box)
        # Beside the loop, which has requests to serve: it may be tens of megabytes.
        return Response(await asyncio.to_thread(_rendered, said), media_type="application/json")


async def erase(control: TheControl, by: By, reason: Reason, key_id: Id = "", user_id: Id = "", request_id: Id = "") -> ErasedOut:
    """Forget all that was logged of one key, one user (id or e-mail) or one request until now."""
    chosen = [(kind, value) for kind, value in (("key", key_id), ("user", user_id), ("request", request_id)) if value]
    if len(chosen) != 1:
        raise InvalidRequest("Name one of key_id, user_id and request_id.", param="key_id")
    kind, entity_id = chosen[0]
    return ErasedOut(erased=await erase_contents(control.db, control.generation, by, kind, entity_id, reason))


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["contents"]
    app.add_api_route("/admin/contents", list_contents, methods=["GET"], response_model=Page[ContentAbout], tags=tags)
    app.add_api_route("/admin/contents", erase, methods=["DELETE"], response_model=ErasedOut, tags=tags)
    app.add_api_route("/admin/contents/{request_id}", read_one, methods=["GET"], response_model=ContentOut, tags=tags)


def _rendered(said: Said) -> bytes:
    """A `ContentOut`."""
    words = None if said.answer is None else words_of(said.about.operation, said.about.answer_type, said.answer)
    shown = _about(said.about) | {"request": text_of(said.request), "answer": text_of(said.answer), "words": words}
    return orjson.dumps(shown, option=orjson.OPT_UTC_Z)


def text_of(content: bytes | None) -> str | None:
    """A character that was cut through, and what is no UTF-8, is shown as such."""
    return None if content is None else content.decode("utf-8", "replace")


async def _models(conn: Connection, caller: Principal) -> tuple[str, ...] | None:
    """Those that a caller who is for some may read of. Chosen in the query: nothing of a page, its end neither, comes from other rows."""
    if "*" in caller.models:
        return None
    return tuple(model for model in await contents.models(conn) if caller.may_use(model))


def _about(about: About) -> dict[str, Any]:
    return asdict(about) | {"at": moment(about.at)}
