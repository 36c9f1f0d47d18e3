"""`gateway users`: the people and services that own keys."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.limits import Clear, Concurrency, Money, Rpd, Rpm, Soft, Tokens, Tpd, Tpm, fields_of, given, limits_line, spent
from gateway.cli.moments import rfc3339
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store.users import User

app = typer.Typer(help="People and services that own keys.", no_args_is_help=True)

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="The user's e-mail.", show_default=False)]
EmailOption = Annotated[str, typer.Option("--email", metavar="E", help="The same, as an option.", show_default=False)]
RoleOption = Annotated[str, typer.Option("--role", metavar="ROLE", help="admin, manager, member or viewer.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin; otherwise one is made and shown.")]

_PAGE = 500


@app.command()
def create(
    email: Annotated[str, typer.Option("--email", metavar="E", help="A person's e-mail.")] = "",
    role: RoleOption = "member",
    service: Annotated[str, typer.Option(metavar="NAME", help="Instead of --email: a service account, which only holds keys.")] = "",
    team: Annotated[str, typer.Option(metavar="TEAM", help="Name or id of the team.")] = "",
    name: Annotated[str, typer.Option(metavar="N", help="A person's name, to show.")] = "",
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    tpd: Tpd = None,
    concurrency: Concurrency = None,
    budget: Money = "",
    token_budget: Tokens = "",
    soft: Soft = None,
    password_stdin: FromStdin = False,
    as_json: Json = False,
) -> None:
    """Create a user: a person with a password, or a service account. The limits are of all that they do, with any key or login."""
    if bool(email) == bool(service):
        raise typer.BadParameter("Give either a person's --email or a --service.", param_hint="--email / --service")
    limits = given(rpm, tpm, rpd, tpd, concurrency, budget, token_budget, soft)
    if service:
        if name or password_stdin:
            raise typer.BadParameter("A service account has neither a password nor another name.", param_hint="--service")
        _show_user(in_context(lambda ctx: _new_service(ctx, service, role, team, limits)), None, as_json)
        return
    password, made = _password(password_stdin)
    person = in_context(lambda ctx: _new_person(ctx, email, role, team, name, limits, password))
    _show_user(person, password if made else None, as_json)


@app.command("list")
def list_users(
    search: Annotated[str, typer.Option(help="Only those with this in their e-mail or name.")] = "",
    team: Annotated[str, typer.Option(metavar="TEAM", help="Only those of this team.")] = "",
    as_json: Json = False,
) -> None:
    """List users by e-mail."""
    found, names = in_context(lambda ctx: _listed(ctx, search, team))
    if as_json:
        show_json([_fields(user) | {"team_name": names.get(user.team_id or "")} for user in found])
        return
    rows = [
        (user.email, user.role.value, names.get(user.team_id or ""), user.id, "enabled" if user.enabled else "disabled", _login(user))
        for user in found
    ]
    show_table(("email", "role", "team", "id", "state", "last login"), rows, empty="There are no such users.")


@app.command()
def disable(email: Email = "", email_option: EmailOption = "", as_json: Json = False) -> None:
    """Refuse the user's keys and logins from now on."""
    from gateway.changes import disable_user

    _change(email or email_option, lambda ctx, user: disable_user(ctx.db, ctx.generation, ctx.actor, user.id), as_json)


@app.command()
def enable(email: Email = "", email_option: EmailOption = "", as_json: Json = False) -> None:
    """Accept the user's keys and logins again."""
    from gateway.changes import enable_user

    _change(email or email_option, lambda ctx, user: enable_user(ctx.db, ctx.generation, ctx.actor, user.id), as_json)


@app.command("set-role")
def set_role(
    role: RoleOption,
    email: Email = "",
    email_option: EmailOption = "",
    as_json: Json = False,
) -> None:
    """Give the user another role."""
    from gateway import changes

    _change(email or email_option, lambda ctx, user: changes.set_role(ctx.db, ctx.generation, ctx.actor, user.id, role), as_json)


@app.command("set-team")
def set_team(
    team: Annotated[str, typer.Option("--team", metavar="TEAM", help="Name or id of the team; empty: of no team.")],
    email: Email = "",
    email_option: EmailOption = "",
    as_json: Json = False,
) -> None:
    """Move the user to another team, or to none."""
    from gateway import changes

    _change(email or email_option, lambda ctx, user: changes.set_team(ctx.db, ctx.generation, ctx.actor, user.id, team or None), as_json)


@app.command()
def limits(
    email: Email = "",
    email_option: EmailOption = "",
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    tpd: Tpd = None,
    concurrency: Concurrency = None,
    budget: Money = "",
    token_budget: Tokens = "",
    soft: Soft = None,
    clear: Clear = "",
    as_json: Json = False,
) -> None:
    """Set limits of all that the user does, with any key or login; or show them. Keys have limits of their own besides."""
    from gateway.changes import update_user

    fields = given(rpm, tpm, rpd, tpd, concurrency, budget, token_budget, soft, clear)

    async def change(ctx: Context, user: User) -> User:
        return await update_user(ctx.db, ctx.generation, ctx.actor, user.id, fields) if fields else user

    _show_limits(email or email_option, change, as_json)


@app.command("reset-budget")
def reset_budget(email: Email = "", email_option: EmailOption = "", as_json: Json = False) -> None:
    """Let what the user has spent so far count against their budgets no more. Those of their keys stay as they are."""
    from gateway.changes import reset_user_budget

    async def change(ctx: Context, user: User) -> User:
        return await reset_user_budget(ctx.db, ctx.generation, ctx.actor, user.id)

    _show_limits(email or email_option, change, as_json)


@app.command()
def reset(email: Email = "", email_option: EmailOption = "", password_stdin: FromStdin = False, as_json: Json = False) -> None:
    """Set a new password: logins so far end, keys go on."""
    from gateway.changes import reset_password

    password, made = _password(password_stdin)

    async def change(ctx: Context, user: User) -> User:
        password_hash = await hashed(password, user.email, ctx.settings)
        return await reset_password(ctx.db, ctx.generation, ctx.actor, user.id, password_hash=password_hash)

    _change(email or email_option, change, as_json, password if made else None)


async def find_user(ctx: Context, email: str) -> User:
    """The user with this e-mail; `CommandFailed` if there is none."""
    from gateway.store import users

    async with ctx.db.read() as conn:
        user = await users.by_typed_email(conn, email)
    return user if user is not None else fail(f"There is no user {email!r}; `gateway users list` shows all.")


async def all_users(ctx: Context, search: str = "", team_id: str | None = None) -> list[User]:
    """Every user (with `search` in the e-mail or the name; of a team), by e-mail."""
    from gateway.store import users

    found: list[User] = []
    async with ctx.db.read() as conn:
        while page := await users.page(conn, after=found[-1].email if found else "", limit=_PAGE, search=search, team_id=team_id):
            found += page
    return found


async def hashed(password: str, email: str, settings: Settings) -> str:
    """What is stored of a password of the user with this e-mail. Takes its turn beside a running server. Raises `PasswordUnsuitable`."""
    from auth.passwords import Passwords

    passwords = Passwords(settings.password_lock)
    try:
        return await passwords.hash(password, email=email)
    finally:
        passwords.close()


def _change(email: str, change: Callable[[Context, User], Awaitable[User]], as_json: bool, password: str | None = None) -> None:
    _show_user(_changed(email, change), password, as_json)


def _show_limits(email: str, change: Callable[[Context, User], Awaitable[User]], as_json: bool) -> None:
    used: dict[str, str | int] = {}

    async def work(ctx: Context, user: User) -> User:
        after = await change(ctx, user)
        used.update(await spent(ctx, f"user:{after.id}", after.limits))
        return after

    user = _changed(email, work)
    if as_json:
        show_json(_fields(user) | {"spent": used})
    else:
        show(limits_line(user.email, user.limits, used))


def _changed(email: str, change: Callable[[Context, User], Awaitable[User]]) -> User:
    if not email:
        raise typer.BadParameter("Give the user's e-mail.", param_hint="EMAIL")

    async def work(ctx: Context) -> User:
        return await change(ctx, await find_user(ctx, email))

    return in_context(work)


async def _new_person(ctx: Context, email: str, role: str, team: str, name: str, limits: dict[str, Any], password: str) -> User:
    from auth.principal import Limits
    from gateway.changes import create_user

    return await create_user(
        ctx.db,
        ctx.generation,
        ctx.actor,
        email=email,
        role=role,
        password_hash=await hashed(password, email, ctx.settings),
        name=name or None,
        team=team or None,
        limits=Limits(**limits),
    )


async def _new_service(ctx: Context, name: str, role: str, team: str, limits: dict[str, Any]) -> User:
    from auth.principal import Limits
    from gateway.changes import create_service

    return await create_service(ctx.db, ctx.generation, ctx.actor, name=name, role=role, team=team or None, limits=Limits(**limits))


async def _listed(ctx: Context, search: str, team: str) -> tuple[list[User], dict[str, str]]:
    """(the users, names of teams by id)."""
    from gateway.cli.teams import find_team, team_names

    team_id = (await find_team(ctx, team)).id if team else None
    return await all_users(ctx, search, team_id), await team_names(ctx)


def _login(user: User) -> str | None:
    """When they last logged in."""
    return "a service" if user.is_service else rfc3339(user.last_login_at)


def _password(from_stdin: bool) -> tuple[str, bool]:
    """(the password, was it made here)."""
    if not from_stdin:
        return secrets.token_urlsafe(15), True
    return sys.stdin.readline().rstrip("\r\n"), False


def _show_user(user: User, made_password: str | None, as_json: bool) -> None:
    made = {} if made_password is None else {"password": made_password}
    if as_json:
        show_json(_fields(user) | made)
        return
    show(f"{user.email}  {user.role.value}  {'enabled' if user.enabled else 'disabled'}  {user.id}")
    if made_password is not None:
        show(f"password: {made_password}")


def _fields(user: User) -> dict[str, Any]:
    shown = {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "kind": user.kind.value,
        "role": user.role.value,
        "team": user.team_id,
        "enabled": user.enabled,
        "created_at": rfc3339(user.created_at),
        "last_login_at": rfc3339(user.last_login_at),
    }
    return shown | fields_of(user.limits)
