"""What limits of a key, a user or a team may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from auth.principal import Limits
from gateway.changes.bounds import LIMITS
from gateway.errors import Conflict, InvalidRequest
from gateway.limits.budget import MAX_PUSD, MAX_TOKENS, WINDOWS, format_budget, format_token_budget, next_reset

FIELDS = frozenset(LIMITS)
_COUNTS = ("rpm", "tpm", "rpd", "tpd", "concurrency")
_WINDOWS = (None, *WINDOWS)


def edited(limits: Limits, fields: Mapping[str, Any]) -> Limits:
    """With those of `fields` that are limits; None takes one away. When budgets were set back stays. Raises `InvalidRequest`."""
    after = replace(limits, **{name: fields[name] for name in FIELDS & fields.keys()})
    check_limits(after)
    return after


def set_back(limits: Limits, now_s: float) -> Limits:
    """Budgets count from now on. Raises `Conflict` where there are none."""
    if limits.budget is None and limits.token_budget is None:
        raise Conflict("There is no budget to reset.")
    return replace(limits, since=next_reset(now_s, limits.since))


def check_limits(limits: Limits) -> None:
    """Raises `InvalidRequest`, which names the field."""
    for name in _COUNTS:
        value = getattr(limits, name)
        if value is not None and not 1 <= value <= MAX_PUSD:
            raise InvalidRequest(f"{name} is a whole number of at least 1.", param=name)
    budget, tokens = limits.budget, limits.token_budget
    if budget is not None and not (0 <= budget.amount_pusd <= MAX_PUSD and budget.window in _WINDOWS):
        raise InvalidRequest("A budget is USD[/day|week|month].", param="budget")
    if tokens is not None and not (0 <= tokens.tokens <= MAX_TOKENS and tokens.window in _WINDOWS):
        raise InvalidRequest("A budget in tokens is TOKENS[/day|week|month].", param="token_budget")
    if limits.soft is not None and not 1 <= limits.soft <= 100:
        raise InvalidRequest("soft is a percentage from 1 to 100.", param="soft")


def shown_limits(limits: Limits) -> dict[str, int | float | str]:
    """Those that there are, as the audit log shows them."""
    values = {name: getattr(limits, name) for name in (*_COUNTS, "soft")}
    values["budget"] = format_budget(limits.budget) if limits.budget else None
    values["token_budget"] = format_token_budget(limits.token_budget) if limits.token_budget else None
    values["budget_since"] = limits.since
    return {name: value for name, value in values.items() if value is not None}
