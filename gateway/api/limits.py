"""Limits of keys and users in bodies."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from auth.principal import Budget, Limits
from gateway.errors import InvalidRequest
from gateway.limits.budget import MAX_PUSD, format_budget, parse_budget

_BUDGET = r"^[0-9]{1,12}(\.[0-9]{1,12})?(/(day|week|month))?$"

Count = Annotated[int, Field(ge=1, le=MAX_PUSD, strict=True)]
BudgetText = Annotated[
    str, Field(max_length=60, pattern=_BUDGET, description="USD[/day|week|month], UTC; without a window: in all.", examples=["25/month"])
]


class LimitsOut(BaseModel):
    """A limit that is null is none."""

    rpm: int | None = Field(description="Requests per minute.", examples=[60])
    tpm: int | None = Field(description="Tokens per minute, prompt and completion.", examples=[100_000])
    concurrency: int | None = Field(description="Requests at the same time.", examples=[8])
    budget: str | None = Field(description="USD[/day|week|month].", examples=["25/month"])


class LimitsIn(BaseModel):
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None
    budget: BudgetText | None = None

    def limits(self) -> Limits:
        return Limits(self.rpm, self.tpm, self.concurrency, budget_of(self.budget))


def budget_of(text: str | None) -> Budget | None:
    """Raises `InvalidRequest`."""
    try:
        return parse_budget(text) if text is not None else None
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="budget") from None


def shown(limits: Limits) -> dict[str, Any]:
    """The fields of `LimitsOut`."""
    budget = format_budget(limits.budget) if limits.budget else None
    return {"rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency, "budget": budget}


def no_defaults(schema: dict[str, Any]) -> None:
    """What is absent from a change is not set to any default, so the documentation must not name one."""
    for field in schema["properties"].values():
        field.pop("default", None)
