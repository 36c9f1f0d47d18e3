"""Limits of keys, users and teams in bodies, and how far their budgets are spent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from auth.principal import Budget, Limits, TokenBudget
from gateway.api.moments import moment, moment_or_none
from gateway.errors import InvalidRequest
from gateway.limits.budget import (
    MAX_PUSD,
    counts_from,
    format_budget,
    format_token_budget,
    format_usd,
    parse_budget,
    parse_token_budget,
    window_end,
)
from gateway.store.engine import Connection
from gateway.store.spending import spent_in_windows

_BUDGET = r"^[0-9]{1,12}(\.[0-9]{1,12})?(/(day|week|month))?$"
_TOKEN_BUDGET = r"^[0-9]{1,16}(/(day|week|month))?$"

Count = Annotated[int, Field(ge=1, le=MAX_PUSD, strict=True)]
Percent = Annotated[int, Field(ge=1, le=100, strict=True)]
BudgetText = Annotated[
    str, Field(max_length=60, pattern=_BUDGET, description="USD[/day|week|month], UTC; without a window: in all.", examples=["25/month"])
]
TokenBudgetText = Annotated[
    str,
    Field(
        max_length=60,
        pattern=_TOKEN_BUDGET,
        description="TOKENS[/day|week|month], prompt and completion, UTC; without a window: in all.",
        examples=["2000000/day"],
    ),
]


class MoneyOut(BaseModel):
    """Of a budget in money, as the ledger has it: a few seconds may be missing, and what running requests have reserved."""

    spent: str = Field(description="USD.", examples=["3.5"])
    left: str = Field(description="USD.", examples=["21.5"])
    since: datetime | None = Field(description="What counts began then: the window, or a reset inside it; null: all there ever was.")
    resets_at: datetime | None = Field(description="When the next window begins; null: never.")


class TokensOut(BaseModel):
    """The same of a budget in tokens."""

    spent: int = Field(examples=[150_000])
    left: int = Field(examples=[1_850_000])
    since: datetime | None
    resets_at: datetime | None


class SpentOut(BaseModel):
    """Of each budget that there is."""

    budget: MoneyOut | None
    token_budget: TokensOut | None


class LimitsOut(BaseModel):
    """A limit that is null is none."""

    rpm: int | None = Field(description="Requests per minute.", examples=[60])
    tpm: int | None = Field(description="Tokens per minute, prompt and completion.", examples=[100_000])
    rpd: int | None = Field(description="Requests per day.", examples=[5000])
    tpd: int | None = Field(description="Tokens per day, prompt and completion.", examples=[5_000_000])
    concurrency: int | None = Field(description="Requests at the same time.", examples=[8])
    budget: str | None = Field(description="USD[/day|week|month].", examples=["25/month"])
    token_budget: str | None = Field(description="TOKENS[/day|week|month].", examples=["2000000/day"])
    soft: int | None = Field(description="Percent of a budget from which on answers warn, and a webhook is told.", examples=[80])
    spent: SpentOut | None = Field(description="How far the budgets are spent in their running windows; null: there is none.")


class LimitsIn(BaseModel):
    rpm: Annotated[Count | None, Field(description="Requests per minute.")] = None
    tpm: Annotated[Count | None, Field(description="Tokens per minute, prompt and completion.")] = None
    rpd: Annotated[Count | None, Field(description="Requests per day: a bucket of so many that refills within a day.")] = None
    tpd: Annotated[Count | None, Field(description="Tokens per day, prompt and completion.")] = None
    concurrency: Annotated[Count | None, Field(description="Requests at the same time.")] = None
    budget: BudgetText | None = None
    token_budget: TokenBudgetText | None = None
    soft: Annotated[Percent | None, Field(description="Percent of a budget from which on answers warn, and a webhook is told.")] = None

    def limits(self) -> Limits:
        return Limits(
            self.rpm,
            self.tpm,
            self.concurrency,
            _budget(self.budget),
            self.rpd,
            self.tpd,
            _token_budget(self.token_budget),
            self.soft,
        )

    def fields(self) -> dict[str, Any]:
        """What was named, by field, as changes take it. Raises `InvalidRequest`."""
        fields: dict[str, Any] = self.model_dump(exclude_unset=True)
        if "budget" in fields:
            fields["budget"] = _budget(self.budget)
        if "token_budget" in fields:
            fields["token_budget"] = _token_budget(self.token_budget)
        return fields


async def shown(conn: Connection, limits: Mapping[str, Limits]) -> dict[str, dict[str, Any]]:
    """The fields of `LimitsOut` of each of these, by limit id."""
    now_s = time.time()
    spent = await spent_in_windows(conn, limits, now_s)
    return {limit_id: _fields(of) | {"spent": _spent(limit_id, of, spent, now_s)} for limit_id, of in limits.items()}


def _fields(limits: Limits) -> dict[str, Any]:
    counts = {name: getattr(limits, name) for name in ("rpm", "tpm", "rpd", "tpd", "concurrency", "soft")}
    budget = format_budget(limits.budget) if limits.budget else None
    return counts | {"budget": budget, "token_budget": format_token_budget(limits.token_budget) if limits.token_budget else None}


def _spent(limit_id: str, limits: Limits, found: Mapping[tuple[str, str | None], tuple[int, int]], now_s: float) -> SpentOut | None:
    money, tokens = limits.budget, limits.token_budget
    if money is None and tokens is None:
        return None
    of_money = of_tokens = None
    if money is not None:
        pusd = found[limit_id, money.window][0]
        left = format_usd(max(0, money.amount_pusd - pusd))
        of_money = MoneyOut(spent=format_usd(pusd), left=left, **_window(money, limits, now_s))
    if tokens is not None:
        used = found[limit_id, tokens.window][1]
        of_tokens = TokensOut(spent=used, left=max(0, tokens.tokens - used), **_window(tokens, limits, now_s))
    return SpentOut(budget=of_money, token_budget=of_tokens)


def _window(budget: Budget | TokenBudget, limits: Limits, now_s: float) -> dict[str, Any]:
    start_s = counts_from(budget.window, now_s, limits.since)
    return {"since": moment(start_s) if start_s else None, "resets_at": moment_or_none(window_end(budget.window, now_s))}


def _budget(text: str | None) -> Budget | None:
    try:
        return parse_budget(text) if text is not None else None
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="budget") from None


def _token_budget(text: str | None) -> TokenBudget | None:
    try:
        return parse_token_budget(text) if text is not None else None
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="token_budget") from None


def no_defaults(schema: dict[str, Any]) -> None:
    """What is absent from a change is not set to any default, so the documentation must not name one."""
    for field in schema["properties"].values():
        field.pop("default", None)
