"""`gateway users password-link`: a one-time link with which a user sets a password that nobody else knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, tell
from gateway.cli.users import Email, EmailOption, find_user

if TYPE_CHECKING:
    from gateway.changes.passwords import PasswordLink

_PATH = "/auth/password/reset"


def password_link(email: Email = "", email_option: EmailOption = "", as_json: Json = False) -> None:
    """Make a link with which the user sets a password. It is good once, for a day."""
    from gateway.changes import issue_password_link

    wanted = email or email_option
    if not wanted:
        raise typer.BadParameter("Give the user's e-mail.", param_hint="EMAIL")

    async def work(ctx: Context) -> tuple[str, PasswordLink]:
        user = await find_user(ctx, wanted)
        return base_url(ctx), await issue_password_link(ctx.db, ctx.generation, ctx.actor, user.id)

    base, link = in_context(work)
    url = f"{base}{_PATH}#{link.token}"
    if as_json:
        show_json({"id": link.user.id, "email": link.user.email, "url": url, "token": link.token, "expires_at": rfc3339(link.expires_at)})
        return
    show(url)
    tell(f"Good once, until {rfc3339(link.expires_at)}; shown only now. Users who reach the gateway at another address put that in front.")


def base_url(ctx: Context) -> str:
    """Where browsers find the gateway: as the settings say, else where it listens."""
    settings = ctx.settings
    if settings.oidc_public_url:
        return settings.oidc_public_url.rstrip("/")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'http' if settings.tls_cert_file is None else 'https'}://{host}:{settings.port}"
