"""`gateway keys`: API keys, shown once and stored as a digest."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.key_rows import listed, show_issued, show_one, shown, used
from gateway.cli.limits import COUNTS, Concurrency, Money, Rpd, Rpm, Soft, Tokens, Tpd, Tpm, given, in_words, money, spent, tokens
from gateway.cli.moments import duration_s, rfc3339, until
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table

if TYPE_CHECKING:
    from auth.principal import Limits
    from gateway.changes import IssuedKey

app = typer.Typer(help="API keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id: the 12 characters after sk-gw-.")]
Name = Annotated[str, typer.Option("--name", metavar="N", help="What the key is for.")]
Description = Annotated[str, typer.Option(metavar="TEXT", help="More about it: who uses it, where, whom to ask.")]
Owner = Annotated[str, typer.Option(metavar="EMAIL", help="Whose key it is; without it the first admin's.")]
Models = Annotated[str, typer.Option(metavar="GLOBS", help="Models it may use: ids or patterns, separated by commas.")]
Scopes = Annotated[str, typer.Option(metavar="S,..", help="Of inference, usage, metrics, admin, content.")]
Networks = Annotated[str | None, typer.Option(metavar="CIDR,..", help="Where it may be used from; without it anywhere.")]
Expires = Annotated[str, typer.Option(metavar="30d", help="When it ends: a duration or an RFC 3339 time.")]
ContentLog = Annotated[bool, typer.Option("--content-log", help="Keep its requests and their answers, encrypted (gateway contents).")]
_NONE = "none"  # takes a limit away


@app.command()
def create(
    name: Name,
    description: Description = "",
    owner: Owner = "",
    models: Models = "*",
    scopes: Scopes = "inference",
    networks: Networks = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    tpd: Tpd = None,
    concurrency: Concurrency = None,
    budget: Money = "",
    token_budget: Tokens = "",
    soft: Soft = None,
    expires: Expires = "",
    content_log: ContentLog = False,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    from gateway.changes import create_key

    limits = _limits(given(rpm, tpm, rpd, tpd, concurrency, budget, token_budget, soft))
    expires_at = until(expires, time.time()) if expires else None

    async def work(ctx: Context) -> IssuedKey:
        return await create_key(
            ctx.db,
            ctx.generation,
            ctx.actor,
            name=name,
            owner_id=await _owner_id(ctx, owner),
            models=_parts(models),
            scopes=_parts(scopes),
            limits=limits,
            expires_at=expires_at,
            description=description,
            networks=_cidrs(networks),
            content_log=content_log,
            box=await ctx.box() if content_log else None,
        )

    show_issued(in_context(work), as_json)


@app.command("import")
def import_(
    name: Name,
    description: Description = "",
    owner: Owner = "",
    models: Models = "*",
    scopes: Scopes = "inference",
    networks: Networks = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    tpd: Tpd = None,
    concurrency: Concurrency = None,
    budget: Money = "",
    token_budget: Tokens = "",
    soft: Soft = None,
    expires: Expires = "",
    content_log: ContentLog = False,
    as_json: Json = False,
) -> None:
    """Let a key that was made elsewhere work here. Reads it from stdin; only its digest is kept."""
    from gateway import changes

    limits = _limits(given(rpm, tpm, rpd, tpd, concurrency, budget, token_budget, soft))
    expires_at = until(expires, time.time()) if expires else None
    text = sys.stdin.readline().strip()
    if not text:
        fail("Give the key on stdin: gateway keys import --name N < key.txt")

    async def work(ctx: Context) -> dict[str, Any]:
        owner_id = await _owner_id(ctx, owner)
        grant = changes.Grant(
            name, owner_id, _parts(scopes), _parts(models), limits, expires_at, description, _cidrs(networks), content_log
        )
        box = await ctx.box() if content_log else None
        key = await changes.import_key(ctx.db, ctx.generation, ctx.actor, text, grant, box=box)
        return await shown(ctx, key.id)

    show_one(in_context(work), as_json)


@app.command()
def update(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(metavar="N", help="What the key is for.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="More about it.")] = None,
    models: Annotated[str | None, typer.Option(metavar="GLOBS", help="Models it may use; * for all.")] = None,
    scopes: Annotated[str | None, typer.Option(metavar="S,..", help="Of inference, usage, metrics, admin, content.")] = None,
    networks: Annotated[str | None, typer.Option(metavar="CIDR,..", help="Where it may be used from; none: anywhere.")] = None,
    rpm: Annotated[str | None, typer.Option(metavar="N", help="Requests per minute, or none.")] = None,
    tpm: Annotated[str | None, typer.Option(metavar="N", help="Tokens per minute, or none.")] = None,
    rpd: Annotated[str | None, typer.Option(metavar="N", help="Requests per day, or none.")] = None,
    tpd: Annotated[str | None, typer.Option(metavar="N", help="Tokens per day, or none.")] = None,
    concurrency: Annotated[str | None, typer.Option(metavar="N", help="Requests at the same time, or none.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD[/day|week|month]", help="Money it may spend, or none.")] = None,
    token_budget: Annotated[str | None, typer.Option(metavar="N[/day|week|month]", help="Tokens it may use, or none.")] = None,
    soft: Annotated[str | None, typer.Option(metavar="PERCENT", help="Warn when so much of a budget is spent, or none.")] = None,
    expires: Annotated[str | None, typer.Option(metavar="30d", help="When it ends, or none.")] = None,
    content_log: Annotated[
        bool | None, typer.Option("--content-log/--no-content-log", help="Keep its requests and their answers, encrypted, or no longer.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change a key; its text goes on working. What is not named stays as it is."""
    from gateway.changes import update_key

    fields: dict[str, Any] = {"name": name, "description": description}
    for option, text in (("models", models), ("scopes", scopes)):
        fields[option] = None if text is None else _parts(text)
    fields = {option: value for option, value in fields.items() if value is not None}
    if networks is not None:
        fields["networks"] = _cidrs(networks)
    for option, text in zip((*COUNTS, "soft"), (rpm, tpm, rpd, tpd, concurrency, soft), strict=True):
        if text is not None:
            fields[option] = _count(text, f"--{option}")
    if budget is not None:
        fields["budget"] = None if budget == _NONE else money(budget)
    if token_budget is not None:
        fields["token_budget"] = None if token_budget == _NONE else tokens(token_budget)
    if expires is not None:
        fields["expires_at"] = None if expires == _NONE else until(expires, time.time())
    if content_log is not None:
        fields["content_log"] = content_log
    if not fields:
        raise typer.BadParameter("Name at least one thing to change.")

    async def work(ctx: Context) -> dict[str, Any]:
        box = await ctx.box() if content_log else None
        key = await update_key(ctx.db, ctx.generation, ctx.actor, bare_id(key_id), fields, box=box)
        return await shown(ctx, key.id)

    show_one(in_context(work), as_json)


@app.command("list")
def list_keys(
    owner: Annotated[str, typer.Option(metavar="EMAIL", help="Only this user's.")] = "",
    team: Annotated[str, typer.Option(metavar="NAME", help="Only those of this team's users.")] = "",
    search: Annotated[str, typer.Option(metavar="TEXT", help="Part of the name, description, prefix, or owner.")] = "",
    revoked: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
    as_json: Json = False,
) -> None:
    """List keys, oldest first."""
    found = in_context(lambda ctx: listed(ctx, owner, team, search, revoked))
    if as_json:
        show_json(found)
        return
    rows = [
        (
            row["id"],
            row["name"],
            row["owner"],
            ",".join(row["models"]),
            ",".join(row["scopes"]),
            in_words(row),
            used(row),
            row["state"],
        )
        for row in found
    ]
    show_table(("id", "name", "owner", "models", "scopes", "limits", "last used", "state"), rows, empty="There are no such keys.")


@app.command()
def revoke(key_id: KeyId, as_json: Json = False) -> None:
    """Refuse this key from now on; requests already running finish."""
    from gateway.changes import revoke_key

    key = in_context(lambda ctx: revoke_key(ctx.db, ctx.generation, ctx.actor, bare_id(key_id)))
    if as_json:
        show_json({"id": key.id, "name": key.name, "revoked_at": rfc3339(key.revoked_at)})
    else:
        show(f"{key.id}  {key.name}  revoked")


@app.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(metavar="1h", help="How long the old text still works.")] = "0s",
    as_json: Json = False,
) -> None:
    """Give this key a new text, and print it. Id, limits and budget stay."""
    from gateway.changes import rotate_key

    grace_s = duration_s(grace, "--grace")
    issued = in_context(lambda ctx: rotate_key(ctx.db, ctx.generation, ctx.actor, bare_id(key_id), grace_s=grace_s))
    show_issued(issued, as_json)


@app.command("reset-budget")
def reset_budget(key_id: KeyId, as_json: Json = False) -> None:
    """Let what this key has spent so far count against its budgets no more."""
    from gateway.changes import reset_key_budget

    async def work(ctx: Context) -> dict[str, Any]:
        return await _with_spent(ctx, (await reset_key_budget(ctx.db, ctx.generation, ctx.actor, bare_id(key_id))).id)

    show_one(in_context(work), as_json)


@app.command("show")
def show_key(key_id: KeyId, as_json: Json = False) -> None:
    """Show one key, and how far its budgets are spent. The ledger may be a few seconds behind."""
    show_one(in_context(lambda ctx: _with_spent(ctx, bare_id(key_id))), as_json)


def bare_id(text: str) -> str:
    """The id, also where someone pastes the whole key."""
    from auth.keys import looks_like_key

    return text.split("-")[2] if looks_like_key(text.encode()) else text


async def _owner_id(ctx: Context, email: str) -> str | None:
    from gateway.cli.users import find_user

    return (await find_user(ctx, email)).id if email else None


def _count(text: str, option: str) -> int | None:
    if text == _NONE:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a whole number of at least 1 nor {_NONE}.", param_hint=option)
    return int(text)


def _cidrs(text: str | None) -> list[str]:
    """A blank is not "anywhere": it may be a variable that somebody forgot to set."""
    if text is None or text.strip() == _NONE:
        return []
    if not text.strip():
        raise typer.BadParameter(f"Name at least one network; {_NONE} stands for anywhere.", param_hint="--networks")
    return text.split(",")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _limits(fields: dict[str, Any]) -> Limits:
    from auth.principal import Limits

    return Limits(**fields)


async def _with_spent(ctx: Context, key_id: str) -> dict[str, Any]:
    from gateway.store import keys

    async with ctx.db.read() as conn:
        key = await keys.by_id(conn, key_id)
    if key is None:
        fail("There is no such key; `gateway keys list --all` shows all.")
    return await shown(ctx, key_id) | {"spent": await spent(ctx, key_id, key.limits)}
