"""`/admin/backends`: the state of every target of every route."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from gateway.api.context import TheControl
from gateway.api.moments import moment
from gateway.routing.health import Health, State
from gateway.routing.table import Target
from gateway.routing.verdict import Verdict
from gateway.runtime import Control

ProbeState = Literal["alive", "dead", "unknown"]


class ProbeOut(BaseModel):
    """What the probe says that the keeper of this host makes (`probe` in the configuration)."""

    state: ProbeState = Field(
        description="Dead: two failures in a row, and it gets no requests while another can serve. "
        "Unknown: the keeper has not been heard of for three intervals."
    )
    since: datetime = Field(description="When it became alive or dead.")
    reason: str | None = Field(description="Why the last probe failed: a status, timeout, unreachable, failed.", examples=["503"])


class FailureOut(BaseModel):
    """The last attempt that failed through the backend's fault."""

    reason: str = Field(description="One word, as in the metric gateway_backend_attempts_total.", examples=["refused"])
    at: datetime


class HealthOut(BaseModel):
    """What attempts and probes say of it, in the process that answers: each server process judges by its own attempts.

    Targets of several models with the same backend and upstream model share it.
    """

    state: State = Field(
        description="closed: well. open: left out after failures or while its probe fails. half_open: one request at a time tries it. "
        "resting: it asked for a pause (429). Where all are left out, the one that is back soonest is tried all the same."
    )
    since: datetime | None = Field(description="When this state began; null: it has been well ever since.")
    consecutive_failures: int = Field(description="5 open it; so does half of at least 20 attempts within 30 s.", examples=[0])
    back_at: datetime | None = Field(description="When it may be tried again; null: now.")
    last_failure: FailureOut | None = Field(description="null: none since this process or this backend began.")
    probe: ProbeOut | None = Field(description="null: it is not probed, or not yet long enough to tell.")


class TargetOut(BaseModel):
    """One backend of one model."""

    model: str = Field(examples=["chat"])
    backend: str = Field(description="Its name in records and metrics.", examples=["custom-1"])
    type: str = Field(examples=["custom"])
    upstream_model: str = Field(examples=["llama-3.1-8b"])
    weight: int = Field(description="0: drained.", examples=[3])
    priority: int = Field(description="Lower numbers are tried first.", examples=[0])
    ready: bool = Field(description="Is it there to serve? Local models: loaded. Remote ones: always true; `health` says more.")
    health: HealthOut
    in_flight: int = Field(description="Requests running at it, of the process that answers.")
    path: str | None = Field(description="Local models: as configured.")
    local: dict[str, Any] | None = Field(
        description="Local models: the worker's `state` (starting, loading, ready, backoff, failed) and more."
    )


class BackendList(BaseModel):
    revision: int = Field(description="The revision in force in the process that answers.")
    problems: list[str] = Field(description="Targets that had to be left out, and why.")
    data: list[TargetOut]


async def list_backends(control: TheControl) -> BackendList:
    """Every backend of every model in the revision in force."""
    table = control.relay.table
    data = [_shown(control, route.id, target) for route in table.routes.values() for target in route.targets]
    return BackendList(revision=table.revision, problems=list(table.problems), data=data)


def add_routes(app: FastAPI) -> None:
    """Register it."""
    app.add_api_route("/admin/backends", list_backends, methods=["GET"], response_model=BackendList, tags=["backends"])


def _health(health: Health, now_s: float, wall_s: float) -> HealthOut:
    """`now_s`: monotonic, as in `health`; `wall_s`: the same moment in Unix seconds."""
    ahead_s = wall_s - now_s
    since_s, back_at_s = health.since_s(now_s), health.back_at_s(now_s)
    failure = FailureOut(reason=health.last_failure, at=moment(ahead_s + health.last_failure_at_s)) if health.last_failure else None
    return HealthOut(
        state=health.state(now_s),
        since=None if since_s is None else moment(ahead_s + since_s),
        consecutive_failures=health.failures,
        back_at=moment(ahead_s + back_at_s) if back_at_s > now_s else None,
        last_failure=failure,
        probe=_probe(health.verdict, now_s, ahead_s),
    )


def _probe(verdict: Verdict, now_s: float, ahead_s: float) -> ProbeOut | None:
    """`ahead_s`: of monotonic time."""
    since_s, alive = verdict.since_s(), verdict.alive(now_s)
    if since_s is None:
        return None
    state: ProbeState = "unknown" if alive is None else "alive" if alive else "dead"
    return ProbeOut(state=state, since=moment(ahead_s + since_s), reason=verdict.reason or None)


def _shown(control: Control, model: str, target: Target) -> TargetOut:
    state = control.local_state.get(target.path) if target.path is not None else None
    return TargetOut(
        model=model,
        backend=target.id,
        type=target.type,
        upstream_model=target.upstream_model,
        weight=target.weight,
        priority=target.priority,
        ready=target.backend.ready,
        health=_health(target.health, time.monotonic(), time.time()),
        in_flight=control.relay.load.in_flight(target),
        path=target.path,
        local=state.public() if state is not None else None,
    )
