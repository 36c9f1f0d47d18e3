"""A few thousand cases of each fuzz target; `make bench-fuzz` runs a million."""

from __future__ import annotations

import pytest

from tests.faults.fuzz import TARGETS, run

CASES = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes(name: str) -> None:
    assert max(run(name, 20, 0, CASES)) == CASES
