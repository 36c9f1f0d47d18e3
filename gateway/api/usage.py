"""`/v1/usage` (the caller's own) and `/admin/usage` (everybody's; of a manager: the team's), from roll-ups alone: as JSON in pages, or
whole as CSV or JSON lines.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from gateway.api.context import Caller, TheControl
from gateway.api.moments import before, moment, moment_or_none
from gateway.api.paging import NO_NUL
from gateway.api.reach import TheReach
from gateway.errors import InvalidRequest
from gateway.runtime import Control
from gateway.store import usage
from gateway.store.lines import as_csv, as_json_lines, fields
from gateway.store.pieces import in_pieces
from gateway.store.usage import By, UsageLine, Wanted

Format = Literal["json", "jsonl", "csv"]
Since = Annotated[str, Query(max_length=60, description="A duration back from now (7d) or an RFC 3339 time; to the hour.", examples=["7d"])]
Until = Annotated[str, Query(max_length=60, description="As `since`; absent: now.")]
Only = Annotated[str, Query(max_length=200, pattern=NO_NUL)]
_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson"}
_MOST = 1000
_MOST_OF_MANY = 50  # keys and users, as in other lists, where nothing else is asked for


class UsageOut(BaseModel):
    """One group's totals. Its first member says what it is, as asked for; an arm is two of them: `experiment` and `arm`."""

    key_id: str | None = Field(None, description="null: login tokens.", examples=["k3v9x0q2m7ab"])
    model: str | None = Field(None, examples=["chat"])
    user_id: str | None = Field(None, examples=["usr_9f2c1a7be04d5566"])
    team_id: str | None = Field(None, description="Of the user when it was used; null: of none.", examples=["team_09a1b2c3d4e5f607"])
    backend: str | None = Field(None, description="null: none was reached.", examples=["vllm-1"])
    ending: str | None = Field(None, examples=["success"])
    revision: int | None = Field(None, description="The version of the routing table.", examples=[12])
    day: str | None = Field(None, examples=["2026-11-20"])
    hour: str | None = Field(None, examples=["2026-11-20T13:00:00Z"])
    experiment: str | None = Field(None, description="The experiment, or the model whose canary it is.", examples=["summer"])
    arm: str | None = Field(None, examples=["candidate"])
    requests: int = Field(examples=[128])
    prompt_tokens: int = Field(examples=[20_480])
    completion_tokens: int = Field(examples=[9_011])
    cached_tokens: int = Field(description="Part of the prompt tokens.", examples=[4_096])
    reasoning_tokens: int = Field(description="Part of the completion tokens.", examples=[512])
    cost: str = Field(description="USD, exact.", examples=["0.0123"])


class UsageReport(BaseModel):
    """A page of lines, sorted by what they are of. `next` is given as `after` to get the following page; null: this was the last."""

    object: Literal["list"] = "list"
    by: By
    since: datetime
    until: datetime | None
    data: list[UsageOut]
    next: str | None = None


class Asked(BaseModel):
    """What both reports are asked with."""

    since_s: float
    until_s: float | None
    model: str
    after: str
    limit: int | None
    format: Format


async def asked_of(
    request: Request,
    since: Since = "30d",
    until: Until = "",
    model: Annotated[Only, Query(description="Only this model's.")] = "",
    after: Annotated[str, Query(max_length=300, pattern=NO_NUL, description="`next` of the page before; empty for the first page.")] = "",
    limit: Annotated[int | None, Query(ge=1, le=_MOST, description="Lines per page; absent: 50 of keys and users, 1000 of others.")] = None,
    format: Annotated[Format | None, Query(description="csv and jsonl: the whole report. Absent: as `Accept` says, else json.")] = None,
) -> Asked:
    """Raises `InvalidRequest`."""
    start_s, end_s = window(since, until)
    return Asked(since_s=start_s, until_s=end_s, model=model, after=after, limit=limit, format=format or _accepted(request))


TheAsked = Annotated[Asked, Depends(asked_of)]


async def own_usage(
    control: TheControl,
    caller: Caller,
    asked: TheAsked,
    by: Annotated[Literal["model", "day", "key", "arm", "hour", "backend", "ending", "version"], Query()] = "model",
    key: Annotated[Only, Query(description="Only this key's (key id).")] = "",
) -> Any:
    """Your own: a key sees what was used with it, a login what was used with all keys of the user."""
    if caller.key_id and key not in ("", caller.key_id):
        return await _answer(control, by, asked, None)
    return await _answer(control, by, asked, _wanted(asked, user_id=caller.user_id, key_id=caller.key_id or key))


async def all_usage(
    control: TheControl,
    reach: TheReach,
    asked: TheAsked,
    by: Annotated[By, Query()] = "key",
    user: Annotated[Only, Query(description="Only this user's (user id).")] = "",
    key: Annotated[Only, Query(description="Only this key's (key id).")] = "",
    team: Annotated[Only, Query(description="Only what was used while its user was of this team (team id).")] = "",
) -> Any:
    """Everybody's; a manager sees what was used by who was of their team then."""
    if reach.team_id is not None and team not in ("", reach.team_id):
        return await _answer(control, by, asked, None)
    team_id = (team or None) if reach.team_id is None else reach.team_id
    return await _answer(control, by, asked, _wanted(asked, user_id=user, key_id=key, team_id=team_id))


def add_routes(app: FastAPI) -> None:
    """Register them."""
    content = {_TYPES["csv"]: {"schema": {"type": "string"}}, _TYPES["jsonl"]: {"schema": {"type": "string"}}}
    options: dict[str, Any] = {
        "methods": ["GET"],
        "response_model": UsageReport,
        "responses": {200: {"content": content}},
        "tags": ["usage"],
    }
    app.add_api_route("/v1/usage", own_usage, **options)
    app.add_api_route("/admin/usage", all_usage, **options)


def window(since: str, until: str) -> tuple[float, float | None]:
    """Unix seconds. Raises `InvalidRequest`."""
    now_s = time.time()
    start_s, end_s = max(0.0, before(since, now_s, "since")), before(until, now_s, "until") if until else None
    if end_s is not None and end_s <= start_s:
        raise InvalidRequest("'until' lies before 'since'.", param="until")
    return start_s, end_s


def _accepted(request: Request) -> Format:
    accepted = request.headers.get("accept", "")
    if _TYPES["csv"] in accepted:
        return "csv"
    return "jsonl" if _TYPES["jsonl"] in accepted else "json"


def _wanted(asked: Asked, **who: Any) -> Wanted:
    return Wanted(asked.since_s, asked.until_s, model=asked.model, **who)


async def _answer(control: Control, by: By, asked: Asked, wanted: Wanted | None) -> Any:
    """`wanted` None: nothing that the caller may see."""
    limit = asked.limit or (_MOST_OF_MANY if by in ("key", "user") and asked.format == "json" else _MOST)

    async def page(after: str) -> tuple[list[UsageLine], str | None]:
        if wanted is None:
            return [], None
        async with control.db.look() as conn:
            try:
                return await usage.report(conn, by, wanted, after=after, limit=limit)
            except ValueError:
                raise InvalidRequest("'after' is not the 'next' of a page.", param="after") from None

    lines, following = await page(asked.after)
    if asked.format == "json":
        start, end = moment(asked.since_s), moment_or_none(asked.until_s)
        data = await in_pieces(partial(fields, by), lines)
        report = {"object": "list", "by": by, "since": start, "until": end, "data": data, "next": following}
        # not through the model: that takes five times as long
        return Response(orjson.dumps(report, option=orjson.OPT_UTC_Z), media_type="application/json")
    headers = {"content-disposition": f'attachment; filename="usage-by-{by}.{asked.format}"'}
    return StreamingResponse(_written(by, asked.format, lines, following, page), media_type=_TYPES[asked.format], headers=headers)


async def _written(by: By, form: str, lines: Sequence[UsageLine], following: str | None, page: Callable[[str], Any]) -> AsyncIterator[str]:
    """Page by page: no transaction is open while a slow client reads."""
    write = as_csv if form == "csv" else as_json_lines
    yield write(by, lines, True)
    while following is not None:
        lines, following = await page(following)
        yield write(by, lines, False)
