"""Money, tokens, and their windows. Amounts are whole numbers of 1e-12 USD (`pusd`); windows are UTC, and a week starts on Monday."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from auth.principal import Budget, TokenBudget

PUSD_PER_USD = 10**12
MAX_PUSD = 2**63 - 1  # what a BIGINT holds: 9.2 million USD
MAX_TOKENS = 10**15
WINDOWS = ("day", "week", "month")
_RESETS = 62
_DECIMALS = 12
_WHOLE = re.compile(r"[0-9]{1,20}", re.ASCII)
_AMOUNT = re.compile(r"([0-9]{1,12})(?:\.([0-9]+))?", re.ASCII)


def parse_usd(text: str) -> int:
    """A decimal string in USD, exactly. Raises `ValueError` with a sentence: not a decimal, more than 12 decimals, too large."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an amount in USD such as 25 or 0.50")
    whole, decimals = match[1], (match[2] or "").rstrip("0")
    if len(decimals) > _DECIMALS:
        raise ValueError(f"{text!r} has more than {_DECIMALS} decimals")
    pusd = int(whole) * PUSD_PER_USD + int(decimals.ljust(_DECIMALS, "0"))
    if pusd > MAX_PUSD:
        raise ValueError(f"{text!r} is more than this gateway can count ({format_usd(MAX_PUSD)} USD)")
    return pusd


def format_usd(pusd: int) -> str:
    """The amount as a decimal string, without trailing zeros: "0.0000015"."""
    whole, rest = divmod(abs(pusd), PUSD_PER_USD)
    decimals = f"{rest:0{_DECIMALS}d}".rstrip("0")
    return ("-" if pusd < 0 else "") + str(whole) + ("." + decimals if decimals else "")


def parse_budget(text: str) -> Budget:
    """`USD[/day|week|month]`. Raises `ValueError` with a sentence."""
    amount, window = _parts(text)
    return Budget(parse_usd(amount), window)


def format_budget(budget: Budget) -> str:
    """What `parse_budget` reads."""
    return format_usd(budget.amount_pusd) + (f"/{budget.window}" if budget.window else "")


def parse_token_budget(text: str) -> TokenBudget:
    """`TOKENS[/day|week|month]`. Raises `ValueError` with a sentence."""
    amount, window = _parts(text)
    if _WHOLE.fullmatch(amount) is None:
        raise ValueError(f"{amount!r} is not a number of tokens such as 1000000")
    tokens = int(amount)
    if tokens > MAX_TOKENS:
        raise ValueError(f"{amount!r} is more than this gateway can count ({MAX_TOKENS} tokens)")
    return TokenBudget(tokens, window)


def format_token_budget(budget: TokenBudget) -> str:
    """What `parse_token_budget` reads."""
    return str(budget.tokens) + (f"/{budget.window}" if budget.window else "")


def _parts(text: str) -> tuple[str, str | None]:
    amount, slash, window = text.strip().partition("/")
    if slash and window not in WINDOWS:
        raise ValueError(f"{window!r} is not a budget window: it is one of {', '.join(WINDOWS)}, or none for ever")
    return amount, window or None


def reset_number(since_s: float | None) -> int:
    """Tells budgets that were set back at this moment from what they were before: 0 = never, else 1 to 62. `next_reset` is never alike."""
    return 0 if since_s is None else int(since_s * 1000) % _RESETS + 1


def next_reset(now_s: float, last_s: float | None) -> float:
    """The moment at which budgets are set back: now, or a few ms later."""
    while reset_number(now_s) == reset_number(last_s):
        now_s += 0.001
    return now_s


def counts_from(window: str | None, now_s: float, since_s: float | None) -> float:
    """What of the running window counts, Unix seconds: all of it, or what came after the budget was set back."""
    return max(window_start(window, now_s), since_s or 0.0)


def window_start(window: str | None, now_s: float) -> float:
    """Start of the window that `now_s` lies in, Unix seconds; 0 for ever."""
    if window is None:
        return 0.0
    midnight = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "week":
        midnight -= timedelta(days=midnight.weekday())
    elif window == "month":
        midnight = midnight.replace(day=1)
    elif window != "day":
        raise ValueError(f"{window!r} is not a budget window")
    return midnight.timestamp()


def window_end(window: str | None, now_s: float) -> float | None:
    """When the window resets, Unix seconds; None for ever."""
    if window is None:
        return None
    start = datetime.fromtimestamp(window_start(window, now_s), UTC)
    if window == "month":
        return (start + timedelta(days=32)).replace(day=1).timestamp()
    return (start + timedelta(days=7 if window == "week" else 1)).timestamp()
