"""`gateway keys`: API keys, shown once and stored as a digest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import duration_s, rfc3339, until
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, show_table

if TYPE_CHECKING:
    from auth.principal import Limits
    from gateway.changes import IssuedKey
    from gateway.store.keys import ApiKey

app = typer.Typer(help="API keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id: the 12 characters after sk-gw-.")]
_PAGE = 500


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="N", help="What the key is for.")],
    owner: Annotated[str, typer.Option(metavar="EMAIL", help="Whose key it is; without it the first admin's.")] = "",
    models: Annotated[str, typer.Option(metavar="GLOBS", help="Models it may use: ids or patterns, separated by commas.")] = "*",
    scopes: Annotated[str, typer.Option(metavar="S,..", help="Of inference, usage, metrics, admin.")] = "inference",
    rpm: Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens per minute, prompt and completion.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests at the same time.")] = None,
    budget: Annotated[str, typer.Option(metavar="USD[/day|week|month]", help="Money it may spend; without a window: in all.")] = "",
    expires: Annotated[str, typer.Option(metavar="30d", help="When it ends: a duration or an RFC 3339 time.")] = "",
    as_json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    from gateway.changes import create_key
    from gateway.cli.users import find_user

    limits = _limits(rpm, tpm, concurrency, budget)
    expires_at = until(expires, time.time()) if expires else None

    async def work(ctx: Context) -> IssuedKey:
        return await create_key(
            ctx.db,
            ctx.generation,
            ctx.actor,
            name=name,
            owner_id=(await find_user(ctx, owner)).id if owner else None,
            models=_parts(models),
            scopes=_parts(scopes),
            limits=limits,
            expires_at=expires_at,
        )

    _show_issued(in_context(work), as_json)


@app.command("list")
def list_keys(
    owner: Annotated[str, typer.Option(metavar="EMAIL", help="Only this user's.")] = "",
    revoked: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
    as_json: Json = False,
) -> None:
    """List keys, oldest first."""
    listed = in_context(lambda ctx: _listed(ctx, owner, revoked))
    if as_json:
        show_json(listed)
        return
    rows = [
        (row["id"], row["name"], row["owner"], ",".join(row["models"]), ",".join(row["scopes"]), _limits_text(row), row["state"])
        for row in listed
    ]
    show_table(("id", "name", "owner", "models", "scopes", "limits", "state"), rows, empty="There are no such keys.")


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
    _show_issued(issued, as_json)


def bare_id(text: str) -> str:
    """The id, also where someone pastes the whole key."""
    from auth.keys import looks_like_key

    return text.split("-")[2] if looks_like_key(text.encode()) else text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _limits(rpm: int | None, tpm: int | None, concurrency: int | None, budget: str) -> Limits:
    from auth.principal import Limits
    from gateway.limits.budget import parse_budget

    try:
        return Limits(rpm, tpm, concurrency, parse_budget(budget) if budget else None)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--budget") from None


async def _listed(ctx: Context, owner: str, revoked: bool) -> list[dict[str, Any]]:
    from gateway.cli.users import all_users, find_user
    from gateway.store import keys

    user_id = (await find_user(ctx, owner)).id if owner else ""
    emails = {user.id: user.email for user in await all_users(ctx)}
    found: list[ApiKey] = []
    async with ctx.db.read() as conn:
        while page := await keys.page(conn, after=found[-1] if found else None, limit=_PAGE, user_id=user_id, revoked=revoked):
            found += page
    return [_fields(key, emails.get(key.user_id, key.user_id), time.time()) for key in found]


def _fields(key: ApiKey, owner: str, now_s: float) -> dict[str, Any]:
    from gateway.limits.budget import format_budget

    over = key.expires_at is not None and key.expires_at <= now_s
    return {
        "id": key.id,
        "name": key.name,
        "owner": owner,
        "models": list(key.models),
        "scopes": list(key.scopes),
        "rpm": key.limits.rpm,
        "tpm": key.limits.tpm,
        "concurrency": key.limits.concurrency,
        "budget": format_budget(key.limits.budget) if key.limits.budget else None,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339(key.expires_at),
        "revoked_at": rfc3339(key.revoked_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if over else "active",
    }


def _limits_text(row: dict[str, Any]) -> str | None:
    return " ".join(f"{name}={row[name]}" for name in ("rpm", "tpm", "concurrency", "budget") if row[name] is not None) or None


def _show_issued(issued: IssuedKey, as_json: bool) -> None:
    if as_json:
        show_json({
            "id": issued.id,
            "key": issued.key,
            "name": issued.name,
            "scopes": list(issued.scopes),
            "expires_at": rfc3339(issued.expires_at),
        })  # fmt: skip
    else:
        show(issued.key)
