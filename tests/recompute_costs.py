"""What requests cost, worked out again from their exported records alone: `gateway ledger export | python tests/recompute_costs.py`.

Reads JSON lines (of the files named, else of stdin) and shares nothing with the gateway: the standard library's `decimal`, never a float.

    price  INPUT/OUTPUT/CACHED in USD per million tokens. CACHED empty: cached tokens cost as others. null: no price, the cost is 0
    cost = ((prompt_tokens - cached_tokens) x INPUT + cached_tokens x CACHED + completion_tokens x OUTPUT) / 1,000,000,
           at most (2^63 - 1) x 1e-12 USD

Prints how many records there are and their sum, and one line on stderr for each whose `cost` is another. Exit code 1 if there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact, setcontext
from typing import Any

_MILLION = 1_000_000
_MOST = Decimal(2**63 - 1).scaleb(-12)  # what a record can hold


def recomputed(record: dict[str, Any]) -> Decimal:
    """USD, exactly."""
    if record["price"] is None:
        return Decimal(0)
    each, answer, cached = record["price"].split("/")
    of_cache: int = record["cached_tokens"]
    of_prompt: int = record["prompt_tokens"] - of_cache
    of_answer: int = record["completion_tokens"]
    cost = (of_prompt * Decimal(each) + of_cache * Decimal(cached or each) + of_answer * Decimal(answer)) / _MILLION
    return min(cost, _MOST)


def main(lines: Iterable[str]) -> int:
    """The exit code."""
    setcontext(Context(prec=60, traps=[Inexact]))  # what cannot be worked out exactly is no result
    count, wrong, total = 0, 0, Decimal(0)
    for line in lines:
        record = json.loads(line, parse_float=Decimal)
        cost = recomputed(record)
        count, total = count + 1, total + cost
        if not isinstance(record["cost"], str) or Decimal(record["cost"]) != cost:
            wrong += 1
            print(f"{record['request_id']}: the record says {record['cost']}, its tokens and price {cost.normalize():f}", file=sys.stderr)
    print(f"{count} records, {total.normalize():f} USD, {wrong} with another cost")
    return 1 if wrong else 0


def _lines(names: list[str]) -> Iterable[str]:
    if not names:
        yield from sys.stdin
    for name in names:
        with open(name, encoding="utf-8") as file:
            yield from file


if __name__ == "__main__":
    sys.exit(main(_lines(sys.argv[1:])))
