"""Raw rows of the ledger as they are booked: values in one form, and a digest that says whether a row still is what was booked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import repeat
from typing import Any

import orjson

from gateway.metering.record import MAX_COST_PUSD
from gateway.store.days import COLUMNS

DIGEST_BYTES = 16
_EMPTY = blake2b(digest_size=DIGEST_BYTES)
_FLOATS = tuple(COLUMNS.index(name) for name in ("started_at", "duration_ms", "ttft_ms", "queue_ms", "connect_ms"))
_COUNTED = tuple(COLUMNS.index(name) for name in ("cached_tokens", "reasoning_tokens"))

Columns = list[list[Any]]
"""Rows, a list for each of COLUMNS."""


def normal(columns: Columns) -> Columns:
    """Rows as the database will give them back: whole times as doubles, tokens that nobody counted as 0. In place."""
    for at in _FLOATS:
        if int in set(map(type, columns[at])):
            columns[at] = [value if value is None else float(value) for value in columns[at]]
    for at in _COUNTED:
        if None in columns[at]:
            columns[at] = [value or 0 for value in columns[at]]
    return columns


def repeated(columns: Columns) -> dict[int, Any]:
    """The value of each column that has but one, by its place."""
    rows = len(columns[0])
    return {at: column[0] for at, column in enumerate(columns) if column[0] == column[-1] and column.count(column[0]) == rows}


def digest(row: Sequence[Any]) -> bytes:
    """BLAKE2b over the canonical JSON of a row's values, in the order of COLUMNS.

    Nulls at the end are left out: columns that a later version adds change no digest.
    """
    end = len(row)
    while row[end - 1] is None:
        end -= 1
    return _hashed(orjson.dumps(row[:end]))


def digests(columns: Columns, shared: Mapping[int, Any]) -> list[bytes]:
    """That of each row. `shared`: the value of columns that have but one, by place; not of all of them."""
    end = len(columns)
    while end - 1 in shared and shared[end - 1] is None:
        end -= 1
    rows = zip(*(repeat(shared[at]) if at in shared else columns[at] for at in range(end)), strict=False)
    if end - 1 not in shared and None in columns[end - 1]:
        return [digest(row) for row in rows]
    return [_hashed(text) for text in map(orjson.dumps, rows)]  # no row ends in a null: none need be looked through for that


def _hashed(text: bytes) -> bytes:
    hashed = _EMPTY.copy()  # half of what making one costs
    hashed.update(text)
    return hashed.digest()


def recomputed_pusd(price: str, prompt: int, completion: int, cached: int) -> int:
    """What a row costs by the price that it names: INPUT/OUTPUT/CACHED, USD per million tokens, that is 1e6 pusd a token.

    Without a price of their own cached tokens cost what others do. Raises `ValueError` for what is no such price.
    """
    of_input, of_output, of_cached = price.split("/")
    input_pusd = _pusd(of_input)
    cached_pusd = _pusd(of_cached) if of_cached else input_pusd
    return min((prompt - cached) * input_pusd + cached * cached_pusd + completion * _pusd(of_output), MAX_COST_PUSD)


def _pusd(usd_per_million: str) -> int:
    whole, _, decimals = usd_per_million.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(decimals) <= 6 and (decimals or "0").isdigit()):
        raise ValueError("not a price in USD per million tokens")
    return int(whole + decimals.ljust(6, "0"))
