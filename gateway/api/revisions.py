"""`/admin/revisions`: the routing table as documents, one of which is live."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.context import By, TheControl
from gateway.api.moments import moment
from gateway.api.paging import AfterNumber, Limit, Page, cut
from gateway.changes import apply_revision, rollback
from gateway.errors import NotFound
from gateway.routing.document import LocalEntry, RevisionDocument, take_secrets
from gateway.routing.faults import DocumentInvalid, Fault
from gateway.routing.reading import check_document
from gateway.routing.stored import read_stored
from gateway.runtime import Control
from gateway.store import revisions
from gateway.store.revisions import Revision, RevisionInfo

_EXAMPLE = {
    "models": [
        {
            "id": "chat",
            "backends": [
                {"type": "custom", "base_url": "http://10.0.0.5:8000/v1", "model": "llama-3.1-8b", "weight": 3},
                {"type": "local", "path": "my-chat-model", "weight": 1},
            ],
        }
    ]
}
Document = Annotated[
    dict[str, Any],
    Field(
        description="As in the configuration file: {models: [{id, backends: [...]}]}, camelCase or snake_case. A key given as text moves "
        'to the secret store; {"secret": NAME} refers to one that is there.',
        examples=[_EXAMPLE],
    ),
]
Number = Annotated[int, Path(ge=1, le=2**63 - 1)]


class RevisionOut(BaseModel):
    """One version of the routing table, without its content."""

    id: int = Field(examples=[12])
    live: bool
    parent: int | None = Field(description="The revision that was live when this one was made.", examples=[11])
    created_at: datetime
    author: str = Field(description="A user id, or the way it came in: cli, file, init.", examples=["usr_9f2c1a7be04d5566"])
    note: str = Field(examples=["more weight on the new machine"])
    digest: str = Field(description="SHA-256 of the content.")


class RevisionFull(RevisionOut):
    document: dict[str, Any] = Field(description="Keys of upstream services are references, never text.", examples=[_EXAMPLE])


class RevisionIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    document: Document
    note: str = Field("", max_length=1000, description="Why; kept with the revision.")
    expected: int | None = Field(None, strict=True, description="The revision believed live: 409 if another one is.")


class CheckIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    document: Document


class DocumentFault(BaseModel):
    path: str = Field(examples=["models[0].backends[1].weight"])
    message: str = Field(examples=["must be a whole number"])


class CheckOut(BaseModel):
    valid: bool
    faults: list[DocumentFault]


class RollbackIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    revision: int | None = Field(None, ge=1, le=2**63 - 1, strict=True, description="Absent: the one live before the present one.")


async def list_revisions(control: TheControl, after: AfterNumber = None, limit: Limit = 50) -> Page[RevisionOut]:
    """Revisions, newest first."""
    async with control.db.look() as conn:
        live = await revisions.live_id(conn)
        found = await revisions.page(conn, before=after, limit=limit + 1)
    page, more = cut(found, limit)
    return Page(data=[RevisionOut(**_fields(info, live)) for info in page], next=str(page[-1].id) if more else None)


async def get_live(control: TheControl) -> RevisionFull:
    """The revision in force."""
    async with control.db.look() as conn:
        found = await revisions.live_revision(conn)
    if found is None:
        raise NotFound("There is no revision yet.")
    return _full(found, found.id)


async def get_revision(control: TheControl, revision_id: Number) -> RevisionFull:
    """One revision with its document."""
    async with control.db.look() as conn:
        found = await revisions.by_id(conn, revision_id)
        live = await revisions.live_id(conn)
    if found is None:
        raise NotFound(f"There is no revision {revision_id}.")
    return _full(found, live)


async def check(control: TheControl, body: CheckIn) -> CheckOut:
    """Look for faults in a document without applying it."""
    _, faults = await _check(control, body.document)
    return CheckOut(valid=not faults, faults=[DocumentFault(path=fault.place, message=fault.message) for fault in faults])


async def apply(control: TheControl, by: By, body: RevisionIn) -> RevisionFull:
    """Write a document as a new revision and make it live, without a restart. Running requests finish as they began."""
    document, faults = await _check(control, body.document)
    if document is None or faults:
        raise DocumentInvalid(faults)
    stored, new_secrets = take_secrets(document)
    revision = await apply_revision(
        control.db,
        control.generation,
        by,
        stored.as_dict(),
        body.note,
        box=control.secret_box,
        new_secrets=new_secrets,
        expected=body.expected,
    )
    return _full(revision, revision.id)


async def roll_back(control: TheControl, by: By, body: RollbackIn | None = None) -> RevisionFull:
    """Make an earlier revision live again."""
    revision = await rollback(control.db, control.generation, by, body.revision if body else None, box=control.secret_box)
    return _full(revision, revision.id)


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["revisions"]
    app.add_api_route("/admin/revisions", list_revisions, methods=["GET"], response_model=Page[RevisionOut], tags=tags)
    app.add_api_route("/admin/revisions", apply, methods=["POST"], response_model=RevisionFull, status_code=201, tags=tags)
    app.add_api_route("/admin/revisions/check", check, methods=["POST"], response_model=CheckOut, tags=tags)
    app.add_api_route("/admin/revisions/rollback", roll_back, methods=["POST"], response_model=RevisionFull, tags=tags)
    app.add_api_route("/admin/revisions/live", get_live, methods=["GET"], response_model=RevisionFull, tags=tags)
    app.add_api_route("/admin/revisions/{revision_id:int}", get_revision, methods=["GET"], response_model=RevisionFull, tags=tags)


async def _check(control: Control, data: dict[str, Any]) -> tuple[RevisionDocument | None, list[Fault]]:
    """Absolute paths come from the configuration file alone; those that are live already may stay, so that the rest can be edited."""
    async with control.db.look() as conn:
        live = await revisions.live_revision(conn)
    known = _absolute_paths(read_stored(live.document).document) if live else {}
    document, faults = check_document(data, absolute_paths=bool(known))
    if document is not None:
        places = [place for path, found in _absolute_paths(document).items() if path not in known for place in found]
        message = "must not be absolute here: absolute paths are taken from the configuration file only"
        faults = [Fault(("models", model, "backends", backend, "path"), message) for model, backend in places]
    return document, faults


def _absolute_paths(document: RevisionDocument) -> dict[str, list[tuple[int, int]]]:
    """Path -> (position of the model, position of the backend)."""
    found: dict[str, list[tuple[int, int]]] = {}
    for position, model in enumerate(document.models):
        for index, entry in enumerate(model.backends):
            if isinstance(entry, LocalEntry) and entry.path.startswith("/"):
                found.setdefault(entry.path, []).append((position, index))
    return found


def _fields(info: RevisionInfo, live: int | None) -> dict[str, Any]:
    return {
        "id": info.id,
        "live": info.id == live,
        "parent": info.parent_id,
        "created_at": moment(info.created_at),
        "author": info.author,
        "note": info.note,
        "digest": info.digest,
    }


def _full(revision: Revision, live: int | None) -> RevisionFull:
    return RevisionFull(**_fields(revision.info, live), document=revision.document)
