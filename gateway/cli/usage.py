"""`gateway usage`: what requests used, up to the last one that has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.ledger import settle_ledger
from gateway.cli.moments import since
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, show_table

if TYPE_CHECKING:
    from gateway.store.usage import UsageLine, Wanted

Since = Annotated[str, typer.Option("--since", metavar="7d", help="From when: 90s, 1h, 7d or an RFC 3339 time. Without it: all.")]
Until = Annotated[str, typer.Option("--until", metavar="1d", help="Before when: the same. Without it: now.")]
_BYS = ("key", "model", "user", "team", "day", "hour", "backend", "ending", "arm", "version")
_FORMATS = ("table", "json", "jsonl", "csv")
_CONTRACT = ("cached_tokens", "reasoning_tokens")  # what `--json` leaves out: its members are fixed


def usage(
    by: Annotated[str, typer.Option("--by", metavar="|".join(_BYS), help="What to add up; arm: of experiments and canaries.")] = "key",
    since_text: Since = "",
    until_text: Until = "",
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Only this user's.")] = "",
    key: Annotated[str, typer.Option("--key", metavar="ID", help="Only this key's.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Only this model's.")] = "",
    team: Annotated[str, typer.Option("--team", metavar="ID", help="Only this team's, as it was then.")] = "",
    form: Annotated[str, typer.Option("--format", metavar="|".join(_FORMATS), help="How to print it.")] = "table",
    as_csv: Annotated[bool, typer.Option("--csv", help="The same as --format csv.")] = False,
    as_json: Json = False,
) -> None:
    """Requests, tokens and cost, by key, model, user, day and more. Counted by the hour, in UTC."""
    from gateway.store.usage import Wanted

    if by not in _BYS:
        raise typer.BadParameter(f"It is one of {', '.join(_BYS)}.", param_hint="--by")
    if form not in _FORMATS:
        raise typer.BadParameter(f"It is one of {', '.join(_FORMATS)}.", param_hint="--format")
    now_s = time.time()
    since_s = since(since_text, now_s) if since_text else 0.0
    until_s = since(until_text, now_s, "--until") if until_text else None
    if until_s is not None and until_s <= since_s:
        raise typer.BadParameter("It lies before --since.", param_hint="--until")
    wanted = Wanted(since_s, until_s, user, key, model, team or None)
    lines = in_context(lambda ctx: _totals(ctx, by, wanted))
    _print(lines, by, "csv" if as_csv else "json" if as_json else form)


def _print(lines: list[UsageLine], by: str, form: str) -> None:
    from gateway.store.lines import as_csv, as_json_lines, fields

    if form == "csv":
        show(as_csv(by, lines, True).replace("\r\n", "\n").rstrip("\n"))
    elif form == "jsonl":
        if lines:
            show(as_json_lines(by, lines).rstrip("\n"))
    else:
        rows = [{name: value for name, value in fields(by, line).items() if name not in _CONTRACT} for line in lines]
        if form == "json":
            show_json(rows)
            return
        counts = ("requests", "prompt tokens", "completion tokens", "cost (USD)")
        first = ("experiment", "arm") if by == "arm" else (next(iter(rows[0])) if rows else by,)
        show_table((*first, *counts), [tuple(row.values()) for row in rows], right=frozenset(counts), empty="Nothing was used.")


async def _totals(ctx: Context, by: Any, wanted: Wanted) -> list[UsageLine]:
    from gateway.store.usage import whole_report

    await settle_ledger(ctx)
    async with ctx.db.read() as conn:
        return await whole_report(conn, by, wanted)
