"""`gateway secrets`: upstream keys that backends refer to by name. They are stored encrypted and never shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table, tell

if TYPE_CHECKING:
    from gateway.store.secrets import SecretInfo

app = typer.Typer(help="Upstream keys, stored encrypted, named by backends.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("set")
def set_secret(name: Name, as_json: Json = False) -> None:
    """Store a secret under this name. Its value is read from stdin, never from the command line."""
    from gateway import changes

    if sys.stdin.isatty():
        tell("Type or paste the value, then press Enter.")
    value = sys.stdin.readline().rstrip("\r\n")
    if not value:
        fail("The value is empty: give it on stdin.")

    async def work(ctx: Context) -> bool:
        return await changes.set_secret(ctx.db, ctx.generation, ctx.actor, name, value, box=await ctx.box())

    changed = in_context(work)
    if as_json:
        show_json({"name": name, "changed": changed})
    else:
        show(f"{name}  {'stored' if changed else 'unchanged'}")


@app.command("list")
def list_secrets(as_json: Json = False) -> None:
    """List the names of stored secrets."""

    async def work(ctx: Context) -> list[SecretInfo]:
        from gateway.store import secrets

        async with ctx.db.read() as conn:
            return await secrets.names(conn)

    found = in_context(work)
    if as_json:
        show_json([{"name": info.name, "updated_at": rfc3339(info.updated_at)} for info in found])
        return
    show_table(("name", "updated"), [(info.name, rfc3339(info.updated_at)) for info in found], empty="No secrets are stored.")


@app.command("delete")
def delete_secret(name: Name, as_json: Json = False) -> None:
    """Forget a secret that the live revision does not use."""
    from gateway import changes

    in_context(lambda ctx: changes.delete_secret(ctx.db, ctx.generation, ctx.actor, name))
    if as_json:
        show_json({"name": name, "deleted": True})
    else:
        show(f"{name}  deleted")


@app.command()
def rotate(
    signing: Annotated[bool, typer.Option("--signing", help="Make a new key for signing login tokens. Nobody is logged out.")] = False,
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="With --signing: tokens of the old keys are refused now; logins go on by their refresh tokens."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Encrypt every secret and signing key anew with the present GATEWAY_SECRET_KEY, after it was replaced.

    Put the old key into GATEWAY_SECRET_KEY_PREVIOUS (or the file secret.key.previous in GATEWAY_HOME), the new one in its place, and
    restart every server; then run this, until it names no logged requests any more; then forget the old one.
    """
    if at_once and not signing:
        raise typer.BadParameter("--at-once is for --signing.")
    if signing:
        _rotate_signing(at_once, as_json)
    else:
        _reseal(as_json)


def _reseal(as_json: bool) -> None:
    from gateway import changes

    async def work(ctx: Context) -> tuple[int, int, int, int]:
        from gateway.keeper.contents import ContentShipper
        from gateway.store.secret_key import CONTENTS
        from gateway.store.secrets import SecretBox

        keys, settings = await ctx.secret_keys(), ctx.settings
        await ContentShipper(ctx.db, settings.run_dir / "content", settings.content_kept_days * 86_400.0, ctx.secret_keys).ship()
        # first, for it goes by parts: while any is left, the old key is not forgotten
        said = await changes.reseal_contents(ctx.db, ctx.generation, ctx.actor, box=SecretBox.of(keys, CONTENTS))
        return *await changes.reseal_secrets(ctx.db, ctx.generation, ctx.actor, keys=keys), *said

    stored, keys, contents, unreadable = in_context(work)
    if as_json:
        show_json({"secrets": stored, "signing_keys": keys, "contents": contents, "contents_unreadable": unreadable})
    else:
        also = f", {contents} logged requests" if contents else ""
        show(f"encrypted with the present GATEWAY_SECRET_KEY: {stored} secrets, {keys} signing keys{also}; {_then(contents)}")
        if unreadable:
            tell(f"{unreadable} logged requests are encrypted with neither of the two keys, and stay as they are.")


def _then(contents: int) -> str:
    if not contents:
        return "the old one can be forgotten"
    return (
        "more logged requests may wait on the disks of hosts: when every server has the present key, and what its host had waiting "
        "in GATEWAY_HOME/run/content is gone, run this again until it names none; then the old one can be forgotten"
    )


def _rotate_signing(at_once: bool, as_json: bool) -> None:
    from gateway import changes

    async def work(ctx: Context) -> tuple[str, str]:
        algorithm, box = ctx.settings.jwt_algorithm, await ctx.box()
        kid = await changes.rotate_signing_key(ctx.db, ctx.generation, ctx.actor, box=box, algorithm=algorithm, at_once=at_once)
        return kid, algorithm

    kid, algorithm = in_context(work)
    if as_json:
        show_json({"kid": kid, "algorithm": algorithm, "at_once": at_once})
    else:
        show(
            f"{kid}  {algorithm}, signs from now on; tokens of the key before it {'are refused' if at_once else 'stay good until they end'}"
        )
