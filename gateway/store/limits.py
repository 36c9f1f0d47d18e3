"""Limits as keys, users and teams store them: columns, null = none."""

from __future__ import annotations

from typing import Any

from auth.principal import Budget, Limits, TokenBudget

NAMES = (
    "rpm", "tpm", "concurrency", "budget_pusd", "budget_window", "rpd", "tpd", "token_budget", "token_budget_window", "soft",
    "budget_since",
)  # fmt: skip
_UNLIMITED = Limits()  # most have none: they share it


def limits_of(
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    budget_pusd: int | None,
    budget_window: str | None,
    rpd: int | None,
    tpd: int | None,
    tokens: int | None,
    tokens_window: str | None,
    soft: int | None,
    since: float | None,
) -> Limits:
    """Of the columns' values, in the order of `NAMES`."""
    budget = None if budget_pusd is None else Budget(budget_pusd, budget_window)
    token_budget = None if tokens is None else TokenBudget(tokens, tokens_window)
    limits = Limits(rpm, tpm, concurrency, budget, rpd, tpd, token_budget, soft, since)
    return _UNLIMITED if limits == _UNLIMITED else limits


def limit_values(limits: Limits) -> dict[str, Any]:
    """The columns' values."""
    budget, tokens = limits.budget, limits.token_budget
    rates = {name: getattr(limits, name) for name in ("rpm", "tpm", "rpd", "tpd", "concurrency", "soft")}
    money = {"budget_pusd": budget and budget.amount_pusd, "budget_window": budget and budget.window}
    in_tokens = {"token_budget": tokens and tokens.tokens, "token_budget_window": tokens and tokens.window}
    return rates | money | in_tokens | {"budget_since": limits.since}
