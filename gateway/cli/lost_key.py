"""`gateway secrets forget`: the way out where GATEWAY_SECRET_KEY is lost for good."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from gateway.cli.context import context, database_url
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, tell
from gateway.settings import Settings, load_settings

_LOSES = (
    "Every stored upstream key is forgotten and must be entered again (`gateway secrets set NAME`); until then backends that need one are "
    "left out. Login tokens end now; whoever is logged in gets new ones with their refresh token, or logs in again. "
    "What was logged of requests and answers is gone. "
    "API keys, passwords, people, limits, revisions, usage and the audit log stay."
)


def forget(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a new secret key after the old one was lost: what it encrypted is forgotten. Stop every server first.

    The new one is GATEWAY_SECRET_KEY, or what is in its file, or is made. Refused where the database's own key is still there.
    """
    settings = load_settings()
    tell(_LOSES)
    if not yes and not (sys.stdin.isatty() and typer.confirm("Forget them?", err=True)):
        fail("Nothing was changed: answer yes at a terminal, or give --yes.")
    gone = asyncio.run(_forget(settings))
    if as_json:
        show_json({"forgotten": gone})
    else:
        said = f"forgotten: {', '.join(gone) or 'no secrets'}; a new key signs login tokens."
        show(f"{said} Keep a copy of the new secret key, then start the servers.")


async def _forget(settings: Settings) -> list[str]:
    """Brings the database up to date first: what else does that refuses to, without its key."""
    from gateway.changes import forget_secrets
    from gateway.cli.home_lock import hold_home
    from gateway.cli.init import bring_up_to_date, make_home
    from gateway.store.migrate import known_revision
    from gateway.store.own_key import require_lost, successor_keys

    url = database_url(settings)
    if await known_revision(url) is None:
        fail(f"There is no gateway in {settings.home} yet: run `gateway init` or `gateway serve` first.")
    await require_lost(url, settings.secret_key_sources())  # before anything is changed
    make_home(settings)
    with hold_home(settings.home, settings.run_dir, "stop it, and those of every other host, before anything is forgotten"):
        await bring_up_to_date(url)
        async with context(settings) as ctx:
            keys = await successor_keys(ctx.db, settings.secret_key_sources())
            return await forget_secrets(ctx.db, ctx.generation, ctx.actor, keys=keys, algorithm=settings.jwt_algorithm)
