"""`gateway contents`: what was logged of requests and answers. Reading and forgetting leave their reason in the audit log."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339, since
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, show_table, tell

if TYPE_CHECKING:
    from gateway.changes import Said
    from gateway.store.contents import About

app = typer.Typer(help="Logged requests and answers; only of keys and models whose content is logged.", no_args_is_help=True)

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept in the audit log.")]
_PAGE = 500


@app.command("list")
def list_contents(
    key: Annotated[str, typer.Option("--key", metavar="ID", help="Only this key's.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Only this user's.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Only of this model.")] = "",
    since_text: Annotated[str, typer.Option("--since", metavar="7d", help="From when: 90s, 1h, 7d or an RFC 3339 time.")] = "",
    until_text: Annotated[str, typer.Option("--until", metavar="1d", help="Before when: the same.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List logged requests, newest first, without what was said."""
    from gateway.store.contents import Wanted

    now_s = time.time()
    since_s = since(since_text, now_s) if since_text else None
    until_s = since(until_text, now_s, "--until") if until_text else None
    found = in_context(lambda ctx: _listed(ctx, Wanted(key, user, model, since_s, until_s), limit))
    if as_json:
        show_json([_fields(about) for about in found])
        return
    rows = [
        (one.request_id, rfc3339(one.at), one.key_id, one.user_id, one.model, one.operation, one.status, one.ending, _kept(one))
        for one in found
    ]
    show_table(
        ("request", "at", "key", "user", "model", "operation", "status", "ending", "kept"),
        rows,
        empty="Nothing is logged of such requests.",
    )


@app.command("show")
def show_content(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="x-request-id of the answer.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Show what one request said and was answered. That it was read is written into the audit log first."""

    async def work(ctx: Context) -> Said:
        from gateway import changes
        from gateway.store.secret_key import CONTENTS
        from gateway.store.secrets import SecretBox

        box = SecretBox.of(await ctx.secret_keys(), CONTENTS)
        await _ship(ctx)
        return await changes.read_content(ctx.db, ctx.generation, ctx.actor, request_id, reason, box=box)

    said = in_context(work)
    shown = _said(said)
    if as_json:
        show_json(shown)
        return
    about = said.about
    tell(f"{about.request_id}  {rfc3339(about.at)}  {about.model}  {about.operation}  {about.status} {about.ending}  {_kept(about)}")
    show(_clean(shown["request"]))
    show("")
    show("\n\n".join(_clean(text) for text in shown["words"]) if shown["words"] else _clean(shown["answer"]))


@app.command("delete")
def delete_contents(
    reason: Reason,
    key: Annotated[str, typer.Option("--key", metavar="ID", help="All of this key's.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="EMAIL or ID", help="All of this user's.")] = "",
    request: Annotated[str, typer.Option("--request", metavar="ID", help="This one.")] = "",
    as_json: Json = False,
) -> None:
    """Forget all that was logged of one key, one user or one request until now."""
    chosen = [(kind, value) for kind, value in (("key", key), ("user", user), ("request", request)) if value]
    if len(chosen) != 1:
        raise typer.BadParameter("Name one of --key, --user and --request.")
    kind, entity_id = chosen[0]

    async def work(ctx: Context) -> int:
        from gateway import changes

        await _ship(ctx)
        return await changes.erase_contents(ctx.db, ctx.generation, ctx.actor, kind, entity_id, reason)

    erased = in_context(work)
    if as_json:
        show_json({kind: entity_id, "erased": erased})
    else:
        show(f"{kind} {entity_id}: what was logged of {erased} requests is gone")


async def _ship(ctx: Context) -> None:
    """What waits on this host's disk is in the database first."""
    from gateway.keeper.contents import ContentShipper

    await ContentShipper(ctx.db, ctx.settings.run_dir / "content", ctx.settings.content_kept_days * 86_400.0, ctx.secret_keys).ship()


async def _listed(ctx: Context, wanted: Any, limit: int) -> list[About]:
    from gateway.store import contents

    await _ship(ctx)
    found: list[About] = []
    async with ctx.db.read() as conn:
        while len(found) < limit:
            last = (found[-1].at, found[-1].request_id) if found else None
            page = await contents.page(conn, wanted, before=last, limit=min(_PAGE, limit - len(found)))
            found += page
            if not page:
                break
    return found


def _said(said: Said) -> dict[str, Any]:
    from gateway.relay.content import words_of

    about, answer = said.about, said.answer
    return _fields(about) | {
        "request": None if said.request is None else said.request.decode("utf-8", "replace"),
        "answer": None if answer is None else answer.decode("utf-8", "replace"),
        "words": None if answer is None else words_of(about.operation, about.answer_type, answer),
    }


def _fields(about: About) -> dict[str, Any]:
    return asdict(about) | {"at": rfc3339(about.at)}


def _kept(about: About) -> str:
    if about.not_kept is not None:
        return f"not kept ({about.not_kept})"
    cut = [side for side, truncated in (("request", about.request_truncated), ("answer", about.answer_truncated)) if truncated]
    return f"{' and '.join(cut)} truncated" if cut else "all"


def _clean(text: str | None) -> str:
    """For a terminal: what others have written must not move its cursor."""
    if text is None:
        return "(not kept)"
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
