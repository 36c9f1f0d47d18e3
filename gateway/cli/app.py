"""The tree of commands. Each module imports what is heavy inside its commands, so that `--help` and `keys create` start quickly."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import (
    audit,
    contents,
    doctor,
    explain,
    init,
    keys,
    ledger,
    login,
    lost_key,
    metrics,
    passwords,
    prices,
    revisions,
    secrets,
    serve,
    teams,
    usage,
    users,
)

app = typer.Typer(
    name="gateway",
    help="A self-hosted gateway for language models that speaks OpenAI's protocol.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # entry.py says what went wrong, in one sentence
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from gateway.cli.output import show

        show(version("model-gateway"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    del version


app.command()(serve.serve)
app.command()(init.init)
users.app.command("password-link")(passwords.password_link)
app.add_typer(users.app, name="users")
app.add_typer(teams.app, name="teams")
app.add_typer(keys.app, name="keys")
secrets.app.command("forget")(lost_key.forget)
app.add_typer(secrets.app, name="secrets")
app.command()(revisions.check)
app.command()(revisions.apply)
app.command()(revisions.export)
app.command()(revisions.revisions)
app.command()(revisions.rollback)
app.add_typer(prices.app, name="prices")
app.command()(explain.explain)
app.add_typer(explain.models_app, name="models")
app.command()(usage.usage)
app.add_typer(metrics.app, name="metrics")
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
app.add_typer(contents.app, name="contents")
app.command()(doctor.doctor)
app.command()(login.login)
app.command()(login.whoami)
app.command()(login.logout)
