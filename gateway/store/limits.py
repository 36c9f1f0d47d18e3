"""Limits as keys and users store them: five columns, null = none."""

from __future__ import annotations

from typing import Any

from auth.principal import Budget, Limits

NAMES = ("rpm", "tpm", "concurrency", "budget_pusd", "budget_window")


def limits_of(rpm: int | None, tpm: int | None, concurrency: int | None, budget_pusd: int | None, budget_window: str | None) -> Limits:
    return Limits(rpm, tpm, concurrency, None if budget_pusd is None else Budget(budget_pusd, budget_window))


def limit_values(limits: Limits) -> dict[str, Any]:
    """The columns' values."""
    budget = limits.budget
    amounts = {"rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency}
    return amounts | {"budget_pusd": budget and budget.amount_pusd, "budget_window": budget and budget.window}
