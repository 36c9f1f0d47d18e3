"""What is routed where: `gateway check`, `apply`, `export`, `revisions`, `rollback`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, config_environment, in_context
from gateway.cli.moments import rfc3339
from gateway.cli.options import File, Json
from gateway.cli.output import CommandFailed, fail, show, show_json, show_table, tell
from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from gateway.routing.document import RevisionDocument
    from gateway.routing.faults import Fault
    from gateway.routing.file import Check
    from gateway.store.revisions import Revision, RevisionInfo

MAX_REVISION = 2**63 - 1


def check(file: File, as_json: Json = False) -> None:
    """Validate a configuration file: every fault with its line. Looks at the folders of local models too."""
    settings = load_settings()
    faults = _faults(file, settings)
    if as_json:
        show_json({"valid": not faults, "faults": [{"line": f.line, "path": f.place, "message": f.message} for f in faults]})
    elif faults:
        for line in _lines(faults, file):
            show(line)
    else:
        show(f"{_shown_name(file)} is valid.")
    if faults:
        raise typer.Exit(1)


def apply(
    file: File,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the revision.")] = "",
    as_json: Json = False,
) -> None:
    """Make this file the live revision. Keys given as text move to the secret store."""
    settings = load_settings()
    document = read_config(file, settings)
    revision = in_context(lambda ctx: apply_document(ctx, document, note or f"applied from {_shown_name(file)}"))
    if as_json:
        show_json(_fields(revision.info, revision.id))
    else:
        show(f"Revision {revision.id} is live.")


def export(
    revision: Annotated[
        int | None, typer.Argument(metavar="[REV]", max=MAX_REVISION, help="A revision's number; without it the live one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a revision as a file that `apply` accepts. Keys are printed as references, never as text."""
    from gateway.routing.file import export_yaml
    from gateway.routing.reading import check_document

    found = in_context(lambda ctx: revision_or_live(ctx, revision))
    document, faults = check_document(found.document)
    for fault in faults:
        tell(f"Revision {found.id} would be refused today: {fault}")
    if as_json:
        show_json(found.document)
    else:
        show(export_yaml(found.document if document is None else document.as_dict()).rstrip("\n"))


def revisions(
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many, newest first.")] = 20, as_json: Json = False
) -> None:
    """List revisions, newest first."""

    async def work(ctx: Context) -> tuple[list[RevisionInfo], int | None]:
        from gateway.store import revisions as store

        async with ctx.db.read() as conn:
            return await store.page(conn, limit=limit), await store.live_id(conn)

    found, live = in_context(work)
    if as_json:
        show_json([_fields(info, live) for info in found])
        return
    rows = [(info.id, "live" if info.id == live else "", rfc3339(info.created_at), info.author, info.note) for info in found]
    show_table(("id", "state", "created", "author", "note"), rows, right=frozenset({"id"}), empty="There is no revision yet.")


def rollback(
    revision: Annotated[
        int | None, typer.Argument(metavar="[REV]", max=MAX_REVISION, help="A revision's number; without it the one before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an earlier revision live again."""
    from gateway import changes

    async def work(ctx: Context) -> Revision:
        from gateway.store.errors import SecretKeyRefused

        try:
            box = await ctx.box()
        except SecretKeyRefused:  # most revisions need none
            box = None
        return await changes.rollback(ctx.db, ctx.generation, ctx.actor, revision, box=box)

    target = in_context(work)
    if as_json:
        show_json(_fields(target.info, target.id))
    else:
        show(f"Revision {target.id} is live.")


def read_config(file: str, settings: Settings) -> RevisionDocument:
    """The document in this file (- for stdin); `CommandFailed` with one line per fault."""
    from gateway.routing.faults import DocumentInvalid

    try:
        return _read(file, settings)
    except DocumentInvalid as invalid:
        raise CommandFailed("\n".join(_lines(invalid.faults, file))) from None


async def apply_document(ctx: Context, document: RevisionDocument, note: str) -> Revision:
    """Write what came from a file as the live revision, with its keys in the secret store."""
    from gateway.changes import apply_revision
    from gateway.routing.document import fingerprint, take_secrets

    stored, taken = take_secrets(document)
    sealing = bool(taken) or any(model.content_log for model in document.models)
    return await apply_revision(
        ctx.db,
        ctx.generation,
        ctx.actor,
        stored.as_dict(),
        note,
        box=await ctx.box() if sealing else None,
        new_secrets=taken,
        file_digest=fingerprint(document),
    )


async def apply_if_new(ctx: Context, document: RevisionDocument, note: str) -> Revision | None:
    """As `apply_document`, unless this content is what was last applied from a file; None then.

    If the live revision is of this very content, and keys of it are gone from the secret store, they are stored again.
    """
    from gateway.routing.document import fingerprint
    from gateway.store import revisions as store

    digest = fingerprint(document)
    async with ctx.db.read() as conn:
        last, live = await store.last_file_digest(conn), await store.live_revision(conn)
    if last != digest:
        return await apply_document(ctx, document, note)
    if live is not None and live.info.file_digest == digest:
        await _restore_secrets(ctx, document, live)
    return None


async def _restore_secrets(ctx: Context, document: RevisionDocument, live: Revision) -> None:
    """What `live` names and is not stored, as far as `document`, which it was made of, has it as text (`secrets forget` was run)."""
    from gateway.changes import set_secret
    from gateway.routing.document import take_secrets
    from gateway.store import secrets

    async with ctx.db.read() as conn:
        known = {info.name for info in await secrets.names(conn)}
    referring, taken = take_secrets(document)
    for name, wanted in sorted(set(_names(live.document, referring.as_dict()))):
        if name not in known and wanted in taken:
            await set_secret(ctx.db, ctx.generation, ctx.actor, name, taken[wanted], box=await ctx.box())
            tell(f"The secret {name} was not stored any more: it is again, from the file.")


def _names(live: Any, referring: Any) -> Iterator[tuple[str, str]]:
    """Each name that `live` refers to with the one in the same place of `referring`: not the same where that had another value already."""
    if isinstance(live, list) and isinstance(referring, list):
        for pair in zip(live, referring, strict=False):
            yield from _names(*pair)
    elif isinstance(live, dict) and isinstance(referring, dict):
        if live.keys() == referring.keys() == {"secret"}:
            yield live["secret"], referring["secret"]
            return
        for key in live.keys() & referring.keys():
            yield from _names(live[key], referring[key])


async def revision_or_live(ctx: Context, revision: int | None) -> Revision:
    """This revision, or the live one; `CommandFailed` if there is none."""
    from gateway.store import revisions as store

    async with ctx.db.read() as conn:
        found = await (store.live_revision(conn) if revision is None else store.by_id(conn, revision))
    if found is None:
        fail("There is no revision yet: `gateway apply -f FILE` writes one." if revision is None else f"There is no revision {revision}.")
    return found


def _read(file: str, settings: Settings, further: Check | None = None) -> RevisionDocument:
    from gateway.routing.file import read_file, read_text

    environ = config_environment(settings)
    return read_text(sys.stdin.read(), environ, further) if file == "-" else read_file(Path(file), environ, further)


def _faults(file: str, settings: Settings) -> Sequence[Fault]:
    from gateway.cli.folders import folder_faults
    from gateway.routing.faults import DocumentInvalid

    try:
        _read(file, settings, lambda document: folder_faults(document, settings))
    except DocumentInvalid as invalid:
        return invalid.faults
    return ()


def _lines(faults: Sequence[Fault], file: str) -> list[str]:
    from gateway.routing.file import fault_lines

    return fault_lines(faults, _shown_name(file))


def _shown_name(file: str) -> str:
    return "stdin" if file == "-" else os.fspath(file)


def _fields(info: RevisionInfo, live: int | None) -> dict[str, Any]:
    return {
        "id": info.id,
        "live": info.id == live,
        "created_at": rfc3339(info.created_at),
        "author": info.author,
        "note": info.note,
        "parent_id": info.parent_id,
    }
