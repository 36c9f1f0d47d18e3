"""Single requests as they were booked: one by its id, or those of one key in a short time, in pages. Nothing else shows raw rows."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from gateway.api.context import Caller, TheControl
from gateway.api.moments import before, moment
from gateway.api.paging import NO_NUL, Limit, Page, place_of, place_text
from gateway.api.reach import TheReach
from gateway.errors import InvalidRequest, NotFound
from gateway.runtime import Control
from gateway.store import requests
from gateway.store.pieces import in_pieces

Since = Annotated[str, Query(max_length=60, description="A duration back from now (1h) or an RFC 3339 time.", examples=["1h"])]
Until = Annotated[str, Query(max_length=60, description="As `since`; at most 24 hours after it. Absent: now.")]
After = Annotated[str, Query(max_length=300, pattern=NO_NUL, description="`next` of the page before; empty for the first page.")]
Key = Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Of which key (key id).")]
RequestId = Annotated[str, Path(max_length=100, pattern=NO_NUL, description="`x-request-id` of the answer.")]


class RequestOut(BaseModel):
    """One admitted request, as in `gateway ledger export`."""

    request_id: str = Field(examples=["req-5f0c9a1b2c3d4e5f00000001"])
    started_at: datetime
    key_id: str | None = Field(description="null: a login token.")
    user_id: str
    team_id: str | None = Field(description="Of the user when it was admitted.")
    model: str
    backend: str | None = Field(description="null: none was reached.")
    revision: int | None = Field(description="The version of the routing table that it was routed by.")
    operation: str = Field(examples=["chat"])
    attempts: int
    tried: list[Any] | None = Field(description="[backend, outcome, ms] of each attempt that failed.")
    status: int = Field(description="As sent to the client; 499 if it left before.")
    ending: str = Field(examples=["success"])
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    token_source: str = Field(examples=["backend"])
    price: str | None = Field(description="INPUT/OUTPUT/CACHED, USD per million tokens; null: it has none.", examples=["0.15/0.60/"])
    cost: str = Field(description="USD, exact.")
    duration_ms: float | None
    ttft_ms: float | None
    queue_ms: float | None
    connect_ms: float | None
    client_request_id: str | None
    experiment: str | None
    arm: str | None


async def own_requests(
    control: TheControl, caller: Caller, key: Key = "", since: Since = "1h", until: Until = "", after: After = "", limit: Limit = 50
) -> Response:
    """Your own, newest first: those of one key of yours; of a login without `key`: those made with login tokens."""
    if caller.key_id and key not in ("", caller.key_id):
        return await _page([], None)
    return await _found(control, caller.key_id or key or None, {"user_id": caller.user_id}, since, until, after, limit)


async def all_requests(
    control: TheControl, reach: TheReach, key: Key = "", user: Key = "", since: Since = "1h", until: Until = "", after: After = "",
    limit: Limit = 50,
) -> Response:  # fmt: skip
    """Those of one key, newest first; with `user` in its place, what that user did with login tokens. A manager: the team's."""
    if not key and not user:
        raise InvalidRequest("Name a key, or a user whose requests with login tokens are wanted.", param="key")
    only = {"user_id": user} if user else {}
    if reach.team_id is not None:
        only["team_id"] = reach.team_id
    return await _found(control, key or None, only, since, until, after, limit)


async def own_request(control: TheControl, caller: Caller, request_id: RequestId) -> RequestOut:
    """One of your own."""
    row = await _row(control, request_id)
    if row["user_id"] != caller.user_id or (caller.key_id and row["key_id"] != caller.key_id):
        raise NotFound(_ABSENT)
    return _shown(row)


async def any_request(control: TheControl, reach: TheReach, request_id: RequestId) -> RequestOut:
    """Of a manager: one of the team."""
    row = await _row(control, request_id)
    if reach.team_id is not None and (not reach.team_id or row["team_id"] != reach.team_id):
        raise NotFound(_ABSENT)
    return _shown(row)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["usage"]
    app.add_api_route("/v1/usage/requests", own_requests, methods=["GET"], response_model=Page[RequestOut], tags=tags)
    app.add_api_route("/v1/usage/requests/{request_id}", own_request, methods=["GET"], response_model=RequestOut, tags=tags)
    app.add_api_route("/admin/usage/requests", all_requests, methods=["GET"], response_model=Page[RequestOut], tags=tags)
    app.add_api_route("/admin/usage/requests/{request_id}", any_request, methods=["GET"], response_model=RequestOut, tags=tags)


_ABSENT = "There is no such request, or it is older than what is kept."


async def _row(control: Control, request_id: str) -> dict[str, Any]:
    async with control.db.look() as conn:
        row = await requests.usage_row(conn, request_id)
    if row is None:
        raise NotFound(_ABSENT)
    return row


async def _found(control: Control, key_id: str | None, only: dict[str, str], since: str, until: str, after: str, limit: int) -> Response:
    start_s, end_s = _window(since, until)
    place = place_of(after)
    async with control.db.look() as conn:
        found = await requests.of_key(conn, key_id, start_s, end_s, only=only, before=place, limit=limit + 1)
    following = place_text(found[limit - 1]["started_at"], found[limit - 1]["request_id"]) if len(found) > limit else None
    return await _page(found[:limit], following)


async def _page(rows: list[dict[str, Any]], following: str | None) -> Response:
    """A `Page[RequestOut]`, not through the model: 500 requests would hold up the loop, and with it what is relayed, for 50 ms."""
    page = {"data": await in_pieces(_fields, rows), "next": following}
    return Response(orjson.dumps(page, option=orjson.OPT_UTC_Z), media_type="application/json")


def _window(since: str, until: str) -> tuple[float, float]:
    now_s = time.time()
    start_s, end_s = max(0.0, before(since, now_s, "since")), before(until, now_s, "until") if until else now_s + 1
    if end_s <= start_s:
        raise InvalidRequest("'until' lies before 'since'.", param="until")
    if end_s - start_s > requests.LONGEST_S + 1:
        raise InvalidRequest("Between 'since' and 'until' are at most 24 hours here; reports have no such bound.", param="since")
    return start_s, end_s


def _shown(row: dict[str, Any]) -> RequestOut:
    return RequestOut(**_fields(row))


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Those of `RequestOut`."""
    return requests.exported(row) | {"started_at": moment(row["started_at"])}
