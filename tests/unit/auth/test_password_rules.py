from __future__ import annotations

import pytest

from auth.errors import PasswordUnsuitable
from auth.password_rules import MAX_BYTES, MIN_CHARS, check_password, common_passwords


def refusal(password: str, email: str = "") -> str:
    try:
        check_password(password, email)
    except PasswordUnsuitable as error:
        return error.message
    return ""


def test_the_list_is_whole() -> None:
    common = common_passwords()
    assert len(common) >= 10_000
    assert {"password", "iloveyou", "12345678", "qwertyuiop"} <= common
    assert all(word == word.casefold() for word in common)


@pytest.mark.parametrize(
    "password",
    [
        "password",
        "PASSWORD",
        "Password1!",
        "p@ssw0rd",
        "P4$$w0rd2024",
        "qwertyuiop",
        "1q2w3e4r5t",
        "iloveyou!!",
        "!!Football99",
        "123456789",
    ],
)
def test_common_ones_and_their_disguises_are_refused(password: str) -> None:
    assert "most common" in refusal(password)


@pytest.mark.parametrize("password", ["aaaaaaaaaaaa", "abababababab", "1 1 1 1 1 1 1"])
def test_few_different_characters(password: str) -> None:
    assert "different" in refusal(password)


@pytest.mark.parametrize(("password", "words"), [("x" * (MIN_CHARS - 1), "at least"), ("short", "at least"), ("가나다라" * 100, "at most")])
def test_lengths(password: str, words: str) -> None:
    assert words in refusal(password)
    assert MAX_BYTES == 1024


@pytest.mark.parametrize(
    ("password", "email"),
    [
        ("dana@example.com", "dana@example.com"),
        ("dana.kim@example.com1", "Dana.Kim@Example.com "),
        ("kim-dana-2024", "dana.kim@example.com"),
        ("example1234", "dana@example.com"),
        ("xdanax2024", "dana@example.com"),
    ],
)
def test_the_e_mail_is_no_password(password: str, email: str) -> None:
    assert "e-mail" in refusal(password, email)
    assert refusal(password) == ""


@pytest.mark.parametrize(
    ("password", "email"),
    [
        ("correct horse battery 9", "admin@localhost"),
        ("bench-admin-password-0", "admin@localhost"),
        ("nothing like al", "al@example.com"),
        ("가나다라마바사아", "dana@example.com"),
        ("J0b5xKq2mWv", "dana@example.com"),
    ],
)
def test_good_ones(password: str, email: str) -> None:
    assert refusal(password, email) == ""
