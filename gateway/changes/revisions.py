"""Changes of what is routed where: revisions and the secrets that they refer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.changes.actor import Actor, Change, change
from gateway.changes.sealing import require_box, require_own_key
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.routing.document import numbered, secret_name
from gateway.routing.reading import check_document
from gateway.store import revisions, secrets
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.revisions import Revision
from gateway.store.secrets import SecretBox

_MAX_NOTE_CHARS = 1000
_ENTITY = "revision"


async def apply_revision(
    db: Database,
    generation: Generation,
    actor: Actor,
    document: dict[str, Any],
    note: str = "",
    *,
    box: SecretBox | None = None,
    new_secrets: Mapping[str, str] | None = None,
    file_digest: str | None = None,
    expected: int | None = None,
) -> Revision:
    """Write `document` (validated and normalised) as a new revision and make it live.

    `new_secrets`: values by name, stored in the same transaction with `box`. Every name that the document refers to must exist then.
    Where a name holds another value already, the new one gets a name of its own (`NAME~2`): earlier revisions keep the keys that they
    were written with, and a rollback never sends one backend's key to another.
    A model whose content is logged needs `box` too: nobody could read what another key has encrypted.
    `file_digest`: set where the content came from a config file. `expected`: the id that the caller believes live; `Conflict` if it is not.
    """
    if new_secrets and box is None:
        raise ValueError("secrets need a box")
    async with change(db, generation, actor) as step:
        step.require_admin()
        if logs_content(document):
            await require_box(step, box)
        if new_secrets and box is not None:
            document = await _with_stored(step, box, document, new_secrets)
        if missing := await _missing(step, document):
            raise InvalidRequest(f"The document refers to a secret that is not stored: {missing[0]}.", param=missing[0])
        live = await revisions.live_id(step.conn)
        if expected is not None and live != expected:
            raise Conflict(f"Revision {live} is live now, not {expected}: look at it first, then apply again.")
        revision = await revisions.append(
            step.conn,
            document,
            author=actor.label,
            note=note[:_MAX_NOTE_CHARS],
            parent_id=live,
            file_digest=file_digest,
            now_s=step.now_s,
        )
        await go_live(step, "apply", revision, live)
        return revision


async def rollback(
    db: Database, generation: Generation, actor: Actor, revision_id: int | None = None, *, box: SecretBox | None = None
) -> Revision:
    """Make an earlier revision live again: the given one, else the one that was live when the present one was made.

    It is checked as a new one would be: rules and stored secrets may have changed since it was written. `Conflict` says what is unfit.
    `box`: needed where it asks for content to be logged.
    """
    async with change(db, generation, actor) as step:
        step.require_admin()
        live = await revisions.live_revision(step.conn)
        if live is None:
            raise Conflict("There is no revision yet.")
        target_id = revision_id if revision_id is not None else live.info.parent_id
        if target_id is None:
            raise Conflict("There is no earlier revision.")
        target = await revisions.by_id(step.conn, target_id)
        if target is None:
            raise NotFound(f"There is no revision {target_id}.")
        if target.id != live.id:
            await _require_fit(step, target)
            if logs_content(target.document):
                await require_box(step, box)
            await go_live(step, "rollback", target, live.id)
        return target


async def set_secret(db: Database, generation: Generation, actor: Actor, name: str, value: str, *, box: SecretBox) -> bool:
    """False: it had this value already."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        return await _put_secret(step, box, name, value)


async def delete_secret(db: Database, generation: Generation, actor: Actor, name: str) -> None:
    """`Conflict` while the live revision refers to it."""
    async with change(db, generation, actor) as step:
        step.require_admin()
        live = await revisions.live_revision(step.conn)
        if live is not None and name in secret_names(live.document):
            raise Conflict("The live revision uses this secret.")
        if not await secrets.remove(step.conn, name):
            raise NotFound("There is no such secret.")
        await step.record("delete", "secret", name)


def logs_content(document: Mapping[str, Any]) -> bool:
    """Does it ask for requests and answers of some model to be kept?"""
    models = document.get("models")
    return isinstance(models, list) and any(isinstance(model, dict) and model.get("content_log") for model in models)


def secret_names(document: Any) -> set[str]:
    """Every name that a document refers to, by `{"secret": NAME}`."""
    if isinstance(document, dict):
        if document.keys() == {"secret"} and isinstance(document["secret"], str):
            return {document["secret"]}
        return set().union(*(secret_names(value) for value in document.values()))
    if isinstance(document, list):
        return set().union(*(secret_names(value) for value in document))
    return set()


async def _missing(step: Change, document: Any) -> list[str]:
    """The secrets that a document refers to and that are not stored."""
    return sorted(secret_names(document) - {info.name for info in await secrets.names(step.conn)})


async def _require_fit(step: Change, revision: Revision) -> None:
    _, faults = check_document(revision.document)
    if faults:
        raise Conflict(f"Revision {revision.id} cannot go live again: {'; '.join(map(str, faults))}.")
    if missing := await _missing(step, revision.document):
        raise Conflict(f"Revision {revision.id} cannot go live again: the secret {missing[0]} is not stored any more.")


async def _with_stored(step: Change, box: SecretBox, document: dict[str, Any], new_secrets: Mapping[str, str]) -> dict[str, Any]:
    """The document, referring to the names under which its new secrets were stored."""
    names: dict[str, str] = {}
    for wanted, value in sorted(new_secrets.items()):
        for name in numbered(wanted):
            if await secrets.holds(step.conn, box, name, value) is not False:
                break
        await _put_secret(step, box, name, value)
        names[wanted] = name
    renamed: dict[str, Any] = _renamed(document, names)
    return renamed


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"secret"} and isinstance(value["secret"], str):
        return {"secret": names.get(value["secret"], value["secret"])}
    return {key: _renamed(item, names) for key, item in value.items()}


async def _put_secret(step: Change, box: SecretBox, name: str, value: str) -> bool:
    try:
        secret_name(name)
    except ValueError as error:
        raise InvalidRequest(f"The name of a secret {error}.", param="name") from None
    if not value or not value.isprintable():
        raise InvalidRequest("A secret is one line of printable characters.", param="value")
    await require_own_key(step, box)
    changed = await secrets.put(step.conn, box, name, value)
    if changed:
        await step.record("set", "secret", name)
    return changed


async def go_live(step: Change, action: str, revision: Revision, live: int | None) -> None:
    """Move the pointer from `live` to this revision, and write it down. `Conflict` if it stands elsewhere by now."""
    if not await revisions.set_live(step.conn, revision.id, live, step.now_s):
        raise Conflict("Another revision went live meanwhile.")
    before = None if live is None else {"live": live}
    await step.record(
        action, _ENTITY, str(revision.id), before, {"live": revision.id, "digest": revision.digest, "note": revision.info.note}
    )
