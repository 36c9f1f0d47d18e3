"""No point without a test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.wire.points import LOCAL_ALONE, POINTS


def test_every_point_has_a_test() -> None:
    names = [name for file in Path(__file__).parent.glob("test_*.py") for name in re.findall(r"def test_(\d\d)_", file.read_text())]
    tested = Counter(map(int, names))
    assert tested.keys() == POINTS.keys() == set(range(1, 61))
    assert LOCAL_ALONE.keys() <= POINTS.keys()


def test_nothing_is_skipped() -> None:
    for file in Path(__file__).parent.glob("test_*.py"):
        assert not re.search(
            r"mark\.skip|pytest\.skip|importorskip", file.read_text().replace(r"mark\.skip|pytest\.skip|importorskip", "")
        ), file.name
