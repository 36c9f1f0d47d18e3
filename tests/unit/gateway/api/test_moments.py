from __future__ import annotations

import pytest

from gateway.api.moments import after, before, moment
from gateway.errors import InvalidRequest


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.9999Z", "10000-01-01", "never", ""])
def test_what_could_not_be_shown_again_is_refused(text: str) -> None:
    for reading in (after, before):
        with pytest.raises(InvalidRequest, match="expires"):
            reading(text, 1.0, "expires")


@pytest.mark.parametrize("text", ["0001-01-01", "2026-01-31T12:00:00Z", "9998-12-31T23:59:59-12:00", "999999999w", "7d"])
def test_what_is_taken_can_be_shown(text: str) -> None:
    assert moment(after(text, 1e9, "expires")).year >= 1
