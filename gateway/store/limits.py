"""Limits as keys, users and teams store them: columns, null = none."""

from __future__ import annotations

from typing import Any

from auth.principal import Budget, Limits, TokenBudget

NAMES = (
    "rpm", "tpm", "concurrency", "budget_pusd", "budget_window", "rpd", "tpd", "token_budget", "token_budget_window", "soft",
    "budget_since",
)  # fmt: skip
_NOTHING = (None,) * len(NAMES)
_UNLIMITED = Limits()  # most have none: they share it


def limits_of(*values: Any) -> Limits:
    """Of the columns' values, in the order of `NAMES`."""
    if values == _NOTHING:
        return _UNLIMITED
    rpm, tpm, concurrency, pusd, window, rpd, tpd, tokens, tokens_window, soft, since = values
    budget = None if pusd is None else Budget(pusd, window)
    token_budget = None if tokens is None else TokenBudget(tokens, tokens_window)
    return Limits(rpm, tpm, concurrency, budget, rpd, tpd, token_budget, soft, since)


def limit_values(limits: Limits) -> dict[str, Any]:
    """The columns' values."""
    budget, tokens = limits.budget, limits.token_budget
    rates = {name: getattr(limits, name) for name in ("rpm", "tpm", "rpd", "tpd", "concurrency", "soft")}
    money = {"budget_pusd": budget and budget.amount_pusd, "budget_window": budget and budget.window}
    in_tokens = {"token_budget": tokens and tokens.tokens, "token_budget_window": tokens and tokens.window}
    return rates | money | in_tokens | {"budget_since": limits.since}
