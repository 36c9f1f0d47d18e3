"""What many rows add at once is what they add one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.store.days import COLUMNS
from gateway.store.rollups import BUCKET, HOUR_S, Cells, hours_of

NAMES = ("user_id", "key_id", "model", "backend", "ending", "team_id", "revision", "experiment", "arm")
COUNTED = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_pusd")
NAME = st.sampled_from((None, "", "a", "b"))
ROW = st.fixed_dictionaries(
    {
        "started_at": st.sampled_from((0.0, 3599.999999, 3600.0, 90_000.5)),
        **dict.fromkeys(NAMES, NAME),
        "revision": st.sampled_from((None, 0, 7)),
        **dict.fromkeys(COUNTED, st.integers(0, 2**62)),
    }
)


def one_by_one(rows: list[dict[str, Any]]) -> Cells:
    cells: Cells = {}
    for row in rows:
        named = {
            "at": int(row["started_at"] // HOUR_S) * HOUR_S,
            **{name: row[name] or "" for name in NAMES},
            "revision": row["revision"] or 0,
        }
        bucket = tuple(named[name] for name in BUCKET)
        cell = cells.setdefault(bucket, [0] * (1 + len(COUNTED)))
        for place, more in enumerate((1, *(row[name] for name in COUNTED))):
            cell[place] += more
    return cells


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(ROW, max_size=12), st.lists(st.sampled_from((*NAMES, *COUNTED)), max_size=12), st.lists(ROW, max_size=2))
def test_they_add_what_each_adds(rows: list[dict[str, Any]], common: list[str], before: list[dict[str, Any]]) -> None:
    rows = [row | {name: rows[0][name] for name in common} for row in rows]
    required = [row | {name: row[name] or "x" for name in ("user_id", "model", "ending")} for row in rows]
    there = [row | {name: row[name] or "x" for name in ("user_id", "model", "ending")} for row in before]
    assert hours_of([[row.get(name) for row in required] for name in COLUMNS], one_by_one(there)) == one_by_one(there + required)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_no_number_is_refused(rows: int) -> None:
    row = {"started_at": 1.0, "user_id": "u", "model": "m", "ending": "success", **dict.fromkeys(COUNTED, 1), "prompt_tokens": "5"}
    with pytest.raises(TypeError):
        hours_of([[row.get(name)] * rows for name in COLUMNS], {})
