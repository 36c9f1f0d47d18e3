from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import Budget, TokenBudget
from gateway.limits.budget import (
    MAX_PUSD,
    MAX_TOKENS,
    format_budget,
    format_token_budget,
    format_usd,
    parse_budget,
    parse_token_budget,
    parse_usd,
    window_end,
    window_start,
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "pusd"),
    [("0", 0), ("25", 25 * 10**12), ("0.50", 5 * 10**11), ("0.000000000001", 1), ("1.0000000000000000", 10**12), (" 7 ", 7 * 10**12)],
)
def test_amounts_are_exact(text: str, pusd: int) -> None:
    assert parse_usd(text) == pusd


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0.0000000000001", ".5", "5.", "1,000", "٣", "NaN", "$5", "9223373", "1_0", "1 0"])
def test_what_is_not_an_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"USD|decimals"):
        parse_usd(text)


@given(st.integers(0, MAX_PUSD))
def test_formatting_loses_nothing(pusd: int) -> None:
    assert parse_usd(format_usd(pusd)) == pusd
    assert Decimal(format_usd(pusd)) * 10**12 == pusd


def test_budgets() -> None:
    assert parse_budget("20/month") == Budget(20 * 10**12, "month")
    assert parse_budget("0.5") == Budget(5 * 10**11, None)
    for text in ("20/month", "0.5", "3/day", "1.25/week"):
        assert format_budget(parse_budget(text)) == text
    for bad in ("20/", "20/year", "20/day/day", "/day", "20/Day"):
        with pytest.raises(ValueError, match=r"window|amount"):
            parse_budget(bad)


def test_budgets_in_tokens() -> None:
    assert parse_token_budget(" 1000000/week ") == TokenBudget(10**6, "week")
    assert parse_token_budget("5") == TokenBudget(5, None)
    for text in ("1000000/week", "0", f"{MAX_TOKENS}/day"):
        assert format_token_budget(parse_token_budget(text)) == text
    for bad in ("", "1.5", "-1", "1e6", "5/", "5/year", "1_000", "\u0663", str(MAX_TOKENS + 1)):
        with pytest.raises(ValueError, match=r"window|tokens"):
            parse_token_budget(bad)


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("day", "2026-03-01", "2026-03-02"),
        ("week", "2026-02-23", "2026-03-02"),  # 2026-03-01 is a Sunday
        ("month", "2026-03-01", "2026-04-01"),
    ],
)
def test_windows_are_utc_and_weeks_start_on_monday(window: str, start: str, end: str) -> None:
    for now in (at("2026-03-01"), at("2026-03-01T23:59:59.999")):
        assert window_start(window, now) == at(start)
        assert window_end(window, now) == at(end)
    assert window_start(window, at(end)) == at(end)


def test_december_and_for_ever() -> None:
    assert window_end("month", at("2026-12-31T12:00:00")) == at("2027-01-01")
    assert window_start(None, at("2026-12-31")) == 0
    assert window_end(None, at("2026-12-31")) is None
    with pytest.raises(ValueError, match="window"):
        window_start("year", 0)
