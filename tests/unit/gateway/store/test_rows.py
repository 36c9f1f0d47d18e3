"""Digests of many rows at once are those of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.store.days import COLUMNS
from gateway.store.rows import digest, digests, repeated

VALUES = st.none() | st.integers(-5, 5) | st.floats(-1, 1) | st.text(max_size=3)
NAMED = st.integers(1, 40).flatmap(lambda rows: st.tuples(st.just(rows), *(st.lists(VALUES, min_size=rows, max_size=rows) | VALUES,) * 6))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NAMED, st.booleans())
def test_they_are_those_of_each_row(drawn: tuple[Any, ...], told: bool) -> None:
    rows, *last = drawn
    columns: list[list[Any]] = [[f"r{number}" for number in range(rows)]]
    columns += [[1] * rows for _ in range(len(COLUMNS) - 1 - len(last))]
    columns += [value if isinstance(value, list) else [value] * rows for value in last]
    shared = {at: value for at, value in repeated(columns).items() if at > 0} if told else {}
    assert digests(columns, shared) == [digest(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("told", [False, True])
def test_nulls_at_the_end_change_none(told: bool) -> None:
    columns: list[list[Any]] = [["a", "b"], [1, 2], [None, "x"], [None, None]]
    shared = {3: None} if told else {}
    assert digests(columns, shared) == [digest(("a", 1)), digest(("b", 2, "x"))]
