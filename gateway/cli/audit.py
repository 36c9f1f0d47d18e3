"""`gateway audit`: who changed what, when and from where; and whether the log still says what was written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339, since
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table

if TYPE_CHECKING:
    from gateway.store.chain import Verdict
    from gateway.store.trail import AuditEntry, Wanted

app = typer.Typer(help="Who changed what, when and from where.", no_args_is_help=True)

Since = Annotated[str, typer.Option("--since", metavar="7d", help="From when: 90s, 1h, 7d or an RFC 3339 time. Without it: all.")]
Until = Annotated[str, typer.Option("--until", metavar="1d", help="Before when: the same. Without it: now.")]
Actor = Annotated[str, typer.Option("--actor", metavar="E", help="By whom or with which key: an e-mail, a user id or a key id.")]
Action = Annotated[str, typer.Option("--action", metavar="A", help="create, revoke, set_role, login ...")]
Entity = Annotated[str, typer.Option("--entity", metavar="KIND", help="user, team, key, revision, secret ...")]
EntityId = Annotated[str, typer.Option("--id", metavar="ID", help="Of which user, key ...")]
Search = Annotated[str, typer.Option("--search", metavar="TEXT", help="Part of what, whom or where; at least 3 characters.")]


@app.command("list")
def list_entries(
    since_text: Since = "",
    until_text: Until = "",
    actor: Actor = "",
    action: Action = "",
    entity: Entity = "",
    entity_id: EntityId = "",
    search: Search = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="How many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """Show changes, newest first."""
    wanted = _wanted(since_text, until_text, actor, action, entity, entity_id, search)
    found = in_context(lambda ctx: _newest(ctx, wanted, limit))
    if as_json:
        show_json([asdict(entry) | {"at": rfc3339(entry.at)} for entry in found])
        return
    rows = [(e.id, rfc3339(e.at), _who(e), e.address, e.action, e.entity, e.entity_id, _difference(e)) for e in found]
    show_table(("id", "at", "who", "from", "action", "what", "which", "change"), rows, empty="Nothing was changed.")


@app.command()
def export(
    since_text: Since = "",
    until_text: Until = "",
    actor: Actor = "",
    action: Action = "",
    entity: Entity = "",
    entity_id: EntityId = "",
    search: Search = "",
) -> None:
    """Print one JSON line per change, oldest first. Kept on another machine it is what `verify --file` and `--anchor` work with."""
    wanted = _wanted(since_text, until_text, actor, action, entity, entity_id, search)

    async def work(ctx: Context) -> None:
        from gateway.store.chain import canonical
        from gateway.store.trail import exported

        async for entry in _oldest(ctx, wanted):
            show(canonical(exported(entry)).decode())

    in_context(work)


@app.command()
def verify(
    anchor: Annotated[
        str, typer.Option("--anchor", metavar="ID:HASH", help="An entry and its hash, as an earlier `verify` printed them.")
    ] = "",
    file: Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="Check an export (- for stdin) instead of the database.")] = "",
    as_json: Json = False,
) -> None:
    """Is the log whole? Finds entries that were removed, altered or put in.

    Whoever owns the database could write the whole log anew; keep what this prints elsewhere and give it as --anchor the next time.
    """
    kept = _anchor(anchor)
    verdict = _verify_file(file, kept) if file else in_context(lambda ctx: _verify(ctx, kept))
    if as_json:
        show_json({"valid": not verdict.faults} | asdict(verdict))
    else:
        _show(verdict)
    if verdict.faults:
        raise typer.Exit(1)


async def _verify(ctx: Context, anchor: tuple[int, str] | None) -> Verdict:
    from gateway.store import trail

    return await trail.verify(ctx.db, anchor)


def _verify_file(name: str, anchor: tuple[int, str] | None) -> Verdict:
    with _opened(name) as lines:
        return verify_lines(lines, anchor)


def verify_lines(lines: Iterable[str], anchor: tuple[int, str] | None = None) -> Verdict:
    """Check an export that begins with the first entry; it may end anywhere. `CommandFailed` for what is no export."""
    from gateway.store.chain import Walk

    walk = Walk(anchor)
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            entry_id, digest = int(fields["id"]), bytes.fromhex(fields.pop("hash"))
        except (ValueError, TypeError, KeyError, AttributeError):
            fail(f"Line {number} is not one of an export.")
        walk.feed(entry_id, fields, digest)
    return walk.finish()


def _show(verdict: Verdict) -> None:
    for fault in verdict.faults:
        show(fault.message)
    if verdict.faults:
        show(f"The audit log is not whole: {len(verdict.faults)} fault(s) in {verdict.entries} entries.")
    elif verdict.entries:
        show(f"The audit log is whole: {verdict.entries} entries. Its newest, to keep as an anchor: {verdict.last_id}:{verdict.last_hash}")
    else:
        show("The audit log is whole: it is empty.")


async def _newest(ctx: Context, wanted: Wanted, limit: int) -> list[AuditEntry]:
    from gateway.store import trail

    found: list[AuditEntry] = []
    place: int | None = None
    while len(found) < limit:
        async with ctx.db.read() as conn:
            page, place = await trail.newest(conn, wanted, before_id=place, limit=min(limit - len(found), 500))
        found += page
        if place is None:
            break
    return found


async def _oldest(ctx: Context, wanted: Wanted) -> AsyncIterator[AuditEntry]:
    from gateway.store import trail

    place: int | None = 0
    while place is not None:
        async with ctx.db.read() as conn:  # a transaction for each page: a long export must not hold one open
            page, place = await trail.oldest(conn, wanted, after_id=place)
        for entry in page:
            yield entry


def _wanted(since_text: str, until_text: str, actor: str, action: str, entity: str, entity_id: str, search: str) -> Wanted:
    from gateway.store.trail import MIN_WORDS, Wanted

    now_s, words = time.time(), search.strip()
    if search and len(words) < MIN_WORDS:
        raise typer.BadParameter(f"Search for at least {MIN_WORDS} characters.", param_hint="--search")
    since_s = since(since_text, now_s) if since_text else None
    until_s = since(until_text, now_s, "--until") if until_text else None
    return Wanted(entity, entity_id, action, actor, words, since_s, until_s)


def _anchor(text: str) -> tuple[int, str] | None:
    if not text:
        return None
    number, _, digest = text.strip().partition(":")
    if not (number.isascii() and number.isdigit() and len(digest) == 64 and set(digest.lower()) <= set("0123456789abcdef")):
        raise typer.BadParameter("It is an entry's number, a colon and 64 hexadecimal digits.", param_hint="--anchor")
    return int(number), digest.lower()


def _who(entry: AuditEntry) -> str:
    who = entry.actor_email or entry.actor_user_id or entry.via
    return who if entry.actor_key_id is None else f"{who} (key {entry.actor_key_id})"


def _difference(entry: AuditEntry) -> str:
    """What became different, in short: `role member -> viewer`; of something made or deleted what it is or was."""
    before, after = entry.before, entry.after
    if isinstance(before, dict) and isinstance(after, dict):
        changed = [name for name in (before | after) if before.get(name) != after.get(name)]
        return ", ".join(f"{name} {_short(before.get(name))} -> {_short(after.get(name))}" for name in changed)
    value = after if after is not None else before
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items() if part not in (None, "", [], {}))
    return _short(value) if value is not None else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextmanager
def _opened(name: str) -> Iterator[Iterable[str]]:
    if name == "-":
        yield sys.stdin
        return
    with Path(name).open(encoding="utf-8") as lines:
        yield lines
