"""Limits as options of a command, and as commands show them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from auth.principal import Budget, Limits, TokenBudget
    from gateway.cli.context import Context

COUNTS = ("rpm", "tpm", "rpd", "tpd", "concurrency")
NAMES = (*COUNTS, "budget", "token_budget", "soft")
Rpm = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens per minute, prompt and completion.")]
Rpd = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests per day.")]
Tpd = Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens per day, prompt and completion.")]
Concurrency = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests at the same time.")]
Money = Annotated[str, typer.Option("--budget", metavar="USD[/day|week|month]", help="Money to spend; without a window: in all.")]
Tokens = Annotated[str, typer.Option("--token-budget", metavar="N[/day|week|month]", help="Tokens to use; without a window: in all.")]
Soft = Annotated[int | None, typer.Option(min=1, max=100, metavar="PERCENT", help="Warn when so much of a budget is spent.")]
Clear = Annotated[str, typer.Option(metavar="LIMIT,..", help=f"Take these away: {', '.join(NAMES)}, or all.")]


def given(
    rpm: int | None,
    tpm: int | None,
    rpd: int | None,
    tpd: int | None,
    concurrency: int | None,
    budget: str,
    token_budget: str,
    soft: int | None,
    clear: str = "",
) -> dict[str, Any]:
    """The limits that were named on the command line, by field; None: to be taken away."""
    words = [word.strip().replace("-", "_") for word in clear.split(",") if word.strip()]
    if unknown := [word for word in words if word not in (*NAMES, "all")]:
        raise typer.BadParameter(f"{unknown[0]!r} is not a limit: {', '.join(NAMES)}, or all.", param_hint="--clear")
    fields: dict[str, Any] = dict.fromkeys(NAMES if "all" in words else words)
    named: dict[str, Any] = {"rpm": rpm, "tpm": tpm, "rpd": rpd, "tpd": tpd, "concurrency": concurrency, "soft": soft}
    named |= {"budget": money(budget) if budget else None, "token_budget": tokens(token_budget) if token_budget else None}
    return fields | {name: value for name, value in named.items() if value is not None}


def money(text: str) -> Budget:
    from gateway.limits.budget import parse_budget

    try:
        return parse_budget(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--budget") from None


def tokens(text: str) -> TokenBudget:
    from gateway.limits.budget import parse_token_budget

    try:
        return parse_token_budget(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--token-budget") from None


def fields_of(limits: Limits) -> dict[str, Any]:
    """As JSON shows them."""
    from gateway.limits.budget import format_budget, format_token_budget

    budget = format_budget(limits.budget) if limits.budget else None
    token_budget = format_token_budget(limits.token_budget) if limits.token_budget else None
    return {name: getattr(limits, name) for name in (*COUNTS, "soft")} | {"budget": budget, "token_budget": token_budget}


def in_words(fields: Mapping[str, Any]) -> str | None:
    """Those that there are, as a table shows them."""
    return " ".join(f"{name}={fields[name]}{'%' if name == 'soft' else ''}" for name in NAMES if fields[name] is not None) or None


async def spent(ctx: Context, limit_id: str, limits: Limits) -> dict[str, str | int]:
    """What of its budgets the ledger has in their running windows: USD as a decimal string, tokens. The ledger may be seconds behind."""
    from gateway.limits.budget import format_usd
    from gateway.store.spending import spent_in_windows

    async with ctx.db.read() as conn:
        found = await spent_in_windows(conn, {limit_id: limits}, time.time())
    shown: dict[str, str | int] = {}
    if limits.budget is not None:
        shown["budget"] = format_usd(found[limit_id, limits.budget.window][0])
    if limits.token_budget is not None:
        shown["token_budget"] = found[limit_id, limits.token_budget.window][1]
    return shown


def spent_words(used: Mapping[str, Any]) -> list[str]:
    return [f"{'spent' if which == 'budget' else 'tokens-spent'}={value}" for which, value in used.items()]


def limits_line(name: str, limits: Limits, used: Mapping[str, Any]) -> str:
    """Whose they are, the limits, what is spent of the budgets."""
    return "  ".join([name, in_words(fields_of(limits)) or "no limits", *spent_words(used)])
