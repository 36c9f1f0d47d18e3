"""`/admin/backends`: the state of every target of every route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from gateway.api.context import TheControl
from gateway.routing.table import Target
from gateway.runtime import Control


class TargetOut(BaseModel):
    """One backend of one model."""

    model: str = Field(examples=["chat"])
    backend: str = Field(description="Its name in records and metrics.", examples=["custom-1"])
    type: str = Field(examples=["custom"])
    upstream_model: str = Field(examples=["llama-3.1-8b"])
    weight: int = Field(description="0: drained.", examples=[3])
    priority: int = Field(description="Lower numbers are tried first.", examples=[0])
    ready: bool = Field(description="Can it serve now? A remote one is always tried.")
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
        in_flight=control.relay.load.in_flight(target),
        path=target.path,
        local=state.public() if state is not None else None,
    )
