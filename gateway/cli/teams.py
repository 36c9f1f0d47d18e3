"""`gateway teams`: whose members their managers see and manage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.limits import Clear, Concurrency, Money, Rpd, Rpm, Soft, Tokens, Tpd, Tpm, fields_of, given, in_words, limits_line, spent
from gateway.cli.moments import rfc3339
from gateway.cli.options import Json
from gateway.cli.output import fail, show, show_json, show_table

if TYPE_CHECKING:
    from gateway.store.teams import Heads, Team

app = typer.Typer(help="Teams, whose managers manage their members.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(metavar="TEAM", help="The team's name or id.")]
_PAGE = 500


@app.command()
def create(name: Annotated[str, typer.Argument(metavar="NAME", help="What the team is called.")], as_json: Json = False) -> None:
    """Create a team."""
    from gateway.changes import create_team

    _show(in_context(lambda ctx: create_team(ctx.db, ctx.generation, ctx.actor, name=name)), as_json)


@app.command("list")
def list_teams(search: Annotated[str, typer.Option(help="Only those with this in their name.")] = "", as_json: Json = False) -> None:
    """List teams by name, and how many are of each."""
    found = in_context(lambda ctx: _listed(ctx, search))
    if as_json:
        show_json([_fields(team) | {"people": heads.people, "services": heads.services} for team, heads in found])
        return
    rows = [
        (team.name, heads.people, heads.services, in_words(fields_of(team.limits)), team.id, rfc3339(team.created_at))
        for team, heads in found
    ]
    right = frozenset({"people", "services"})
    show_table(("name", "people", "services", "limits", "id", "created"), rows, right=right, empty="There are no such teams.")


@app.command()
def rename(
    team: Named, name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called from now on.")], as_json: Json = False
) -> None:
    """Give a team another name."""
    from gateway.changes import rename_team

    async def work(ctx: Context) -> Team:
        return await rename_team(ctx.db, ctx.generation, ctx.actor, (await find_team(ctx, team)).id, name)

    _show(in_context(work), as_json)


@app.command()
def limits(
    team: Named,
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
    """Set limits of all that the team's users do together, or show them."""
    from gateway.changes import update_team

    fields = given(rpm, tpm, rpd, tpd, concurrency, budget, token_budget, soft, clear)

    async def change(ctx: Context, found: Team) -> Team:
        return await update_team(ctx.db, ctx.generation, ctx.actor, found.id, fields) if fields else found

    _show_limits(team, change, as_json)


@app.command("reset-budget")
def reset_budget(team: Named, as_json: Json = False) -> None:
    """Let what the team has spent so far count against its budgets no more. Those of its users and keys stay as they are."""
    from gateway.changes import reset_team_budget

    async def change(ctx: Context, found: Team) -> Team:
        return await reset_team_budget(ctx.db, ctx.generation, ctx.actor, found.id)

    _show_limits(team, change, as_json)


@app.command()
def delete(team: Named, as_json: Json = False) -> None:
    """Delete a team that nobody is of."""
    from gateway.changes import delete_team

    async def work(ctx: Context) -> Team:
        found = await find_team(ctx, team)
        await delete_team(ctx.db, ctx.generation, ctx.actor, found.id)
        return found

    gone = in_context(work)
    if as_json:
        show_json(_fields(gone) | {"deleted": True})
    else:
        show(f"{gone.name}  deleted")


async def find_team(ctx: Context, text: str) -> Team:
    """The team with this name or id; `CommandFailed` if there is none."""
    from gateway.store import teams

    async with ctx.db.read() as conn:
        team = await teams.by_id(conn, text) or await teams.by_name(conn, text)
    return team if team is not None else fail(f"There is no team {text!r}; `gateway teams list` shows all.")


async def team_names(ctx: Context) -> dict[str, str]:
    """Id -> name, of all teams."""
    return {team.id: team.name for team, _ in await _listed(ctx, "")}


async def _listed(ctx: Context, search: str) -> list[tuple[Team, Heads]]:
    from gateway.store import teams

    found: list[tuple[Team, Heads]] = []
    async with ctx.db.read() as conn:
        while page := await teams.page(conn, after=found[-1][0].name if found else "", limit=_PAGE, search=search):
            heads = await teams.heads(conn, [team.id for team in page])
            found += [(team, heads.get(team.id, teams.Heads())) for team in page]
    return found


def _show_limits(text: str, change: Callable[[Context, Team], Awaitable[Team]], as_json: bool) -> None:
    async def work(ctx: Context) -> tuple[Team, dict[str, str | int]]:
        team = await change(ctx, await find_team(ctx, text))
        return team, await spent(ctx, f"team:{team.id}", team.limits)

    team, used = in_context(work)
    if as_json:
        show_json(_fields(team) | {"spent": used})
    else:
        show(limits_line(team.name, team.limits, used))


def _show(team: Team, as_json: bool) -> None:
    if as_json:
        show_json(_fields(team))
    else:
        show(f"{team.name}  {team.id}")


def _fields(team: Team) -> dict[str, Any]:
    return {"id": team.id, "name": team.name, "created_at": rfc3339(team.created_at)} | fields_of(team.limits)
