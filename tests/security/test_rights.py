"""No sequence of calls gains a right, for who is no admin or has a narrowed key of one. The long form: `make test-security-long`."""

from __future__ import annotations

import pytest

from tests.security.rights import Gang, MembersAndViewers, WithAFoundKey, WithTheirManager, run


@pytest.mark.parametrize(("gang", "least"), [(MembersAndViewers, 3), (WithTheirManager, 15), (WithAFoundKey, 60)])
def test_no_sequence_of_calls_gains_a_right(gang: type[Gang], least: int) -> None:
    calls, granted = run(gang, 300)
    assert calls >= 270
    assert granted >= least, "a machine that is granted nothing proves nothing"
