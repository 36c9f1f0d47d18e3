"""Prices as a document says them: one mapping, or a list of mappings that each count from a time on.

    prices: {input: "0.15", output: "0.60", cached: "0.075"}

    prices:
      - {input: "0.15", output: "0.60"}
      - {from: "2027-01-01T00:00:00Z", input: "0.12", output: "0.50"}

Of a list the latest counts whose time has come. One without `from` counts from the beginning; without such a one there is no price before
the first. `routing.table` makes of both what the relay reads.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from gateway.routing.values import Part, Price, Text

_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII)


def normal_moment(value: str) -> str:
    """RFC 3339 in UTC with a Z, to the microsecond and no longer than it needs to be. `ValueError` says what is wrong."""
    try:
        found = datetime.fromisoformat(value.upper()) if _MOMENT.fullmatch(value) else None
        at = found.astimezone(UTC) if found is not None else None
    except (ValueError, OverflowError):
        at = None
    if at is None:
        raise ValueError("must be a time with its zone (RFC 3339), such as 2027-01-31T00:00:00Z")
    return at.replace(tzinfo=None).isoformat().removesuffix("000" if at.microsecond else "") + "Z"


def seconds_of(moment: str) -> float:
    """Unix seconds of a normal moment."""
    return datetime.fromisoformat(moment).timestamp()


class PricesEntry(Part):
    """USD per million tokens, decimal strings."""

    input: Price
    output: Price
    cached: Price | None = None


class DatedPricesEntry(PricesEntry):
    """Prices that count from a time on; without one, from the beginning."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[Text, AfterValidator(normal_moment)] | None = Field(None, alias="from")


def _in_order(entries: list[DatedPricesEntry]) -> list[DatedPricesEntry]:
    seen: set[str | None] = set()
    for entry in entries:
        if entry.from_ in seen:
            raise ValueError(f"has two entries from {entry.from_}" if entry.from_ else 'has two entries without "from"')
        seen.add(entry.from_)
    return sorted(entries, key=lambda entry: seconds_of(entry.from_) if entry.from_ else float("-inf"))


PRICE_TAGS = frozenset({"always", "dated"})
PricesValue = Annotated[
    Annotated[PricesEntry, Tag("always")]
    | Annotated[list[DatedPricesEntry], Field(min_length=1, max_length=1000), AfterValidator(_in_order), Tag("dated")],
    Discriminator(lambda value: "dated" if isinstance(value, list | tuple) else "always"),
]


def entries_of(prices: PricesEntry | list[DatedPricesEntry] | None) -> tuple[tuple[str | None, PricesEntry], ...]:
    """Earliest first: (from, prices); from None: from the beginning."""
    if prices is None:
        return ()
    return ((None, prices),) if isinstance(prices, PricesEntry) else tuple((entry.from_, entry) for entry in prices)
