"""`/v1/usage` (the caller's own) and `/admin/usage` (everybody's; of a manager: the team's), from the hourly roll-ups; by arm from rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from gateway.api.context import Caller, TheControl
from gateway.api.moments import before, moment, moment_or_none
from gateway.api.paging import NO_NUL
from gateway.api.reach import TheReach
from gateway.errors import InvalidRequest
from gateway.limits.budget import format_usd
from gateway.store import usage
from gateway.store.engine import Connection
from gateway.store.usage import UsageLine

By = Literal["key", "model", "user", "day", "arm"]
Since = Annotated[str, Query(max_length=60, description="A duration back from now (7d) or an RFC 3339 time; to the hour.", examples=["7d"])]
Until = Annotated[str, Query(max_length=60, description="As `since`; absent: now.")]
_NAMES = {"key": "key_id", "model": "model", "user": "user_id", "day": "day", "arm": "arm"}


class UsageOut(BaseModel):
    """One group's totals. As asked for: `key_id` (null: login tokens), `model`, `user_id` or `day`; or `experiment` and `arm`."""

    key_id: str | None = Field(None, examples=["k3v9x0q2m7ab"])
    model: str | None = Field(None, examples=["chat"])
    user_id: str | None = Field(None, examples=["usr_9f2c1a7be04d5566"])
    day: str | None = Field(None, examples=["2026-11-20"])
    experiment: str | None = Field(None, description="The experiment, or the model whose canary it is.", examples=["summer"])
    arm: str | None = Field(None, examples=["candidate"])
    requests: int = Field(examples=[128])
    prompt_tokens: int = Field(examples=[20_480])
    completion_tokens: int = Field(examples=[9_011])
    cost: str = Field(description="USD, exact.", examples=["0.0123"])


class UsageReport(BaseModel):
    object: Literal["list"] = "list"
    by: By
    since: datetime
    until: datetime | None
    data: list[UsageOut]


async def own_usage(
    control: TheControl,
    caller: Caller,
    by: Annotated[Literal["model", "day", "key", "arm"], Query()] = "model",
    since: Since = "30d",
    until: Until = "",
) -> UsageReport:
    """Your own: a key sees what was used with it, a login what was used with all keys of the user."""
    start_s, end_s = _window(since, until)
    async with control.db.read() as conn:
        lines = await _totals(conn, by, start_s, end_s, caller.user_id, caller.key_id or "")
    return _report(by, start_s, end_s, lines)


async def all_usage(
    control: TheControl,
    reach: TheReach,
    by: Annotated[By, Query()] = "key",
    since: Since = "30d",
    until: Until = "",
    user: Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Only this user's (user id).")] = "",
    key: Annotated[str, Query(max_length=100, pattern=NO_NUL, description="Only this key's (key id).")] = "",
) -> UsageReport:
    """Everybody's; a manager sees what those used who are of their team now."""
    start_s, end_s = _window(since, until)
    async with control.db.read() as conn:
        lines = await _totals(conn, by, start_s, end_s, user, key, reach.team_id)
    return _report(by, start_s, end_s, lines)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    options: dict[str, Any] = {"methods": ["GET"], "response_model": UsageReport, "response_model_exclude_unset": True, "tags": ["usage"]}
    app.add_api_route("/v1/usage", own_usage, **options)
    app.add_api_route("/admin/usage", all_usage, **options)


async def _totals(
    conn: Connection, by: By, since_s: float, until_s: float | None, user_id: str, key_id: str, team_id: str | None = None
) -> list[UsageLine]:
    if by == "arm":
        return await usage.usage_by_arm(conn, since_s=since_s, until_s=until_s, user_id=user_id, key_id=key_id, team_id=team_id)
    return await usage.usage_by(conn, by, since_s=since_s, until_s=until_s, user_id=user_id, key_id=key_id, team_id=team_id)


def _window(since: str, until: str) -> tuple[float, float | None]:
    now_s = time.time()
    start_s, end_s = max(0.0, before(since, now_s, "since")), before(until, now_s, "until") if until else None
    if end_s is not None and end_s <= start_s:
        raise InvalidRequest("'until' lies before 'since'.", param="until")
    return start_s, end_s


def _report(by: By, start_s: float, end_s: float | None, lines: Sequence[UsageLine]) -> UsageReport:
    return UsageReport(object="list", by=by, since=moment(start_s), until=moment_or_none(end_s), data=[_line(by, line) for line in lines])


def _line(by: str, line: UsageLine) -> UsageOut:
    group: dict[str, Any] = {_NAMES[by]: line.group or None}
    if by == "arm":
        group["experiment"] = line.experiment
    return UsageOut(
        **group,
        requests=line.requests,
        prompt_tokens=line.prompt_tokens,
        completion_tokens=line.completion_tokens,
        cost=format_usd(line.cost_pusd),
    )
