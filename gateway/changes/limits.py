"""What limits of a key or a user may be."""

from __future__ import annotations

from auth.principal import Limits
from gateway.errors import InvalidRequest
from gateway.limits.budget import MAX_PUSD, WINDOWS, format_budget

FIELDS = frozenset({"rpm", "tpm", "concurrency", "budget"})


def check_limits(limits: Limits) -> None:
    """Raises `InvalidRequest`, which names the field."""
    for name in ("rpm", "tpm", "concurrency"):
        value = getattr(limits, name)
        if value is not None and not 1 <= value <= MAX_PUSD:
            raise InvalidRequest(f"{name} is a whole number of at least 1.", param=name)
    if limits.budget is not None and not (0 <= limits.budget.amount_pusd <= MAX_PUSD and limits.budget.window in (None, *WINDOWS)):
        raise InvalidRequest("A budget is USD[/day|week|month].", param="budget")


def shown_limits(limits: Limits) -> dict[str, int | str]:
    """Those that there are, as the audit log shows them."""
    budget = format_budget(limits.budget) if limits.budget else None
    values = {"rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency, "budget": budget}
    return {name: value for name, value in values.items() if value is not None}
