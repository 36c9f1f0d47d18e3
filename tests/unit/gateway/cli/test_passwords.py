"""`gateway users password-link`, and what new passwords are refused for."""

from __future__ import annotations

import re

import pytest

from .conftest import Gateway


def test_a_link_is_one_line_on_stdout(ready: Gateway) -> None:
    typed = ready("users", "password-link", "admin@localhost")
    assert typed.code == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:8000/auth/password/reset#usr_[0-9a-f]+\.[\w-]{43}\n", typed.out)
    assert "once" in typed.err
    as_json = ready("users", "password-link", "--email", "ADMIN@localhost", "--json").json
    assert set(as_json) == {"id", "email", "url", "token", "expires_at"}
    assert as_json["url"].endswith(f"#{as_json['token']}")


def test_the_public_address_stands_in_front(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_OIDC_PUBLIC_URL", "https://models.example.com/")
    assert ready("users", "password-link", "admin@localhost").out.startswith("https://models.example.com/auth/password/reset#")


def test_who_gets_none(ready: Gateway) -> None:
    assert ready("users", "password-link").code == 2
    assert ready("users", "password-link", "nobody@example.com").code == 1
    ready("users", "create", "--service", "robot", "--role", "member")
    refused = ready("users", "password-link", "robot@service")
    assert refused.code == 1
    assert "service has no password" in refused.err


@pytest.mark.parametrize("password", ["Password123!", "admin@localhost", "short"])
def test_a_weak_first_password_is_refused_in_one_sentence(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_PASSWORD", password)
    typed = gateway("init")
    assert typed.code == 1
    assert typed.err.strip().splitlines()[-1].endswith(".")
    assert password not in typed.err
    monkeypatch.setenv("GATEWAY_ADMIN_PASSWORD", "given-by-the-operator")
    assert gateway("init").code == 0
