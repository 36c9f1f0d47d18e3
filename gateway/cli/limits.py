"""Limits as options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from auth.principal import Limits

NAMES = ("rpm", "tpm", "concurrency", "budget")
Rpm = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens per minute, prompt and completion.")]
Concurrency = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests at the same time.")]
Money = Annotated[str, typer.Option("--budget", metavar="USD[/day|week|month]", help="Money to spend; without a window: in all.")]
Clear = Annotated[str, typer.Option(metavar="LIMIT,..", help="Take these away: rpm, tpm, concurrency, budget, or all.")]


def given(rpm: int | None, tpm: int | None, concurrency: int | None, budget: str, clear: str = "") -> dict[str, Any]:
    """The limits that were named on the command line, by field; None: to be taken away."""
    from gateway.limits.budget import parse_budget

    words = [word.strip() for word in clear.split(",") if word.strip()]
    if unknown := [word for word in words if word not in (*NAMES, "all")]:
        raise typer.BadParameter(f"{unknown[0]!r} is not a limit: {', '.join(NAMES)}, or all.", param_hint="--clear")
    fields: dict[str, Any] = dict.fromkeys(NAMES if "all" in words else words)
    try:
        named = {"rpm": rpm, "tpm": tpm, "concurrency": concurrency, "budget": parse_budget(budget) if budget else None}
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--budget") from None
    return fields | {name: value for name, value in named.items() if value is not None}


def fields_of(limits: Limits) -> dict[str, Any]:
    """As JSON shows them."""
    from gateway.limits.budget import format_budget

    budget = format_budget(limits.budget) if limits.budget else None
    return {"rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency, "budget": budget}


def in_words(fields: Mapping[str, Any]) -> str | None:
    """Those that there are, as a table shows them."""
    return " ".join(f"{name}={fields[name]}" for name in NAMES if fields[name] is not None) or None
