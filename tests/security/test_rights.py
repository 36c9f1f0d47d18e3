"""No sequence of calls by people who are no admins leads to a right that they were not given. The long form: `make test-security-long`."""

from __future__ import annotations

import pytest

from tests.security.rights import Gang, MembersAndViewers, WithTheirManager, run


@pytest.mark.parametrize(("gang", "least"), [(MembersAndViewers, 3), (WithTheirManager, 15)])
def test_no_sequence_of_calls_gains_a_right(gang: type[Gang], least: int) -> None:
    calls, granted = run(gang, 300)
    assert calls >= 270
    assert granted >= least, "a machine that is granted nothing proves nothing"
