"""Keys made elsewhere: what is plainly no secret is refused, what vendors mint is not."""

from __future__ import annotations

import secrets
import string

import pytest

from auth.existing import MAX_CHARS, MIN_CHARS, beginning, unfit
from auth.keys import mint


@pytest.mark.parametrize(
    "text",
    [
        "sk-" + "T3BlbkFJq8Zr2mVx7Lw0Yc4Nh6Ks9Pd1",
        "sk-proj-Vq8Zr2mVx7Lw0Yc4Nh6Ks9Pd1Gt5Bf3Jx",
        "hf_QwErTzUiOpLkJhGfDsYxCvBnM1029384756",
        "sk-ant-api03-k7Qp2mVx7Lw0Yc4Nh6Ks9Pd1-Zz8Rr",
        "9f86d081884c7d659a2feaa0c55ad015",
        "1f2e7b44-9c3d-4a85-b6f0-77d2c81e03a9",
        "gw.team-search.n4Lq0Zs8Vb2Xy6Wc",
    ],
)
def test_what_others_mint_is_fit(text: str) -> None:
    assert unfit(text) is None


def test_what_another_installation_minted_is_fit() -> None:
    assert all(unfit(mint()[1]) is None for _ in range(2000))
    assert unfit(mint("a" * 12)[1]) is None  # the id is no secret


@pytest.mark.parametrize(
    "secret",
    [
        "a" * 43,
        "x" * 42 + "7",
        "ab" * 21 + "a",
        "ChangeMe" * 5 + "abc",
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ",
        "Kq7Zr2mV" * 5 + "Kq7",
    ],
)
def test_our_own_form_does_not_make_a_secret(secret: str) -> None:
    assert len(secret) == 43
    problem = unfit(f"sk-gw-k3v9x0q2m7ab-{secret}")
    assert problem is not None
    assert "easy to guess" in problem


def test_a_damaged_key_of_ours_is_told_apart_from_somebody_elses() -> None:
    """Taken in, it would be a key that nobody has, listed under an id that is not in its text."""
    whole = mint()[1]
    for damaged in (whole[:-1], whole + "A", whole.replace("sk-gw-", "sk-gw-X"), whole[:20], whole[:-1] + "_", whole[:12] + whole[13:]):
        problem = unfit(damaged)
        assert problem is not None, damaged
        assert "not all of it" in problem


def test_random_texts_are_not_taken_for_samples() -> None:
    for length, alphabet in (
        (24, string.ascii_letters + string.digits),
        (32, string.ascii_letters + string.digits),
        (40, "0123456789abcdef"),
    ):
        refused = sum(unfit("".join(secrets.choice(alphabet) for _ in range(length))) is not None for _ in range(500))
        assert refused <= 2, (length, refused)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "characters"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt", "20 to 512"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt5" * 30, "20 to 512"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt5 f3", "without spaces"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt5\nf3", "without spaces"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt5é", "ASCII"),
        ("x7Lw0Yc4Nh6Ks9Pd1Gt5\x00", "printable"),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "login token"),
        ("a" * 40, "easy to guess"),
        ("sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sample"),
        ("your-api-key-here-your-api-key-here", "sample"),
        ("sk-your-openai-api-key-0123456789", "sample"),
        ("abcdefghijklmnopqrstuvwxyz", "easy to guess"),
        ("12345678901234567890", "easy to guess"),
        ("changeme-changeme-changeme", "sample"),
        ("x7Lw0Yc4x7Lw0Yc4x7Lw0Yc4x7Lw0Yc4", "easy to guess"),
        ("master-password-for-the-gateway", "sample"),
        ("00000000-0000-0000-0000-000000000000", "easy to guess"),
    ],
)
def test_what_anyone_could_guess_or_none_could_send_is_refused(text: str, says: str) -> None:
    problem = unfit(text)
    assert problem is not None
    assert says in problem
    assert not text or text not in problem


def test_what_is_shown_of_it_is_a_fifth_at_most() -> None:
    assert beginning("x7Lw0Yc4Nh6Ks9Pd1Gt5") == "x7Lw"
    assert len("x7Lw0Yc4Nh6Ks9Pd1Gt5") == MIN_CHARS
    assert beginning("sk-proj-" + "x" * MAX_CHARS) == "sk-proj-"
