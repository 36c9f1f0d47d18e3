from __future__ import annotations

from gateway.cli.form import FORM_VARIABLE, other_form


def test_a_process_of_another_form_than_its_supervisors_says_so() -> None:
    told = other_form({FORM_VARIABLE: "c"}, "plain")
    assert told is not None
    assert "form 'plain'" in told
    assert "form 'c'" in told
    assert other_form({FORM_VARIABLE: "c"}, "c") is None
    assert other_form({}, "plain") is None
