"""`/admin/secrets`: keys of upstream services. They go in and are never shown again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.context import By, TheControl
from gateway.api.moments import moment
from gateway.changes import delete_secret, set_secret
from gateway.changes.revisions import secret_names
from gateway.store import revisions, secrets

Name = Annotated[str, Path(max_length=300, description="May hold slashes.", examples=["chat/custom-1"])]


class SecretOut(BaseModel):
    name: str = Field(examples=["chat/custom-1"])
    updated_at: datetime
    used: bool = Field(description="Does the live revision refer to it?")


class SecretList(BaseModel):
    data: list[SecretOut]


class SecretIn(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    value: str = Field(min_length=1, max_length=8192, description="One line of printable characters.", examples=["..."])


class SecretSet(BaseModel):
    name: str
    changed: bool = Field(description="False: it had this value already.")


async def list_secrets(control: TheControl) -> SecretList:
    """The names of all secrets."""
    async with control.db.look() as conn:
        found = await secrets.names(conn)
        live = await revisions.live_revision(conn)
    used = secret_names(live.document) if live else set()
    return SecretList(data=[SecretOut(name=info.name, updated_at=moment(info.updated_at), used=info.name in used) for info in found])


async def put_secret(control: TheControl, by: By, name: Name, body: SecretIn) -> SecretSet:
    """Store a secret. Backends that use it send the new value from now on."""
    changed = await set_secret(control.db, control.generation, by, name, body.value, box=control.secret_box)
    return SecretSet(name=name, changed=changed)


async def remove_secret(control: TheControl, by: By, name: Name) -> None:
    """Delete a secret. 409 while the live revision refers to it."""
    await delete_secret(control.db, control.generation, by, name)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["secrets"]
    app.add_api_route("/admin/secrets", list_secrets, methods=["GET"], response_model=SecretList, tags=tags)
    app.add_api_route("/admin/secrets/{name:path}", put_secret, methods=["PUT"], response_model=SecretSet, tags=tags)
    app.add_api_route("/admin/secrets/{name:path}", remove_secret, methods=["DELETE"], status_code=204, tags=tags)
