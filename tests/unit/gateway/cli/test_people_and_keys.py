"""init, users, keys, secrets."""

from __future__ import annotations

import io
import re
import sqlite3
import stat
from pathlib import Path

import pytest

from auth.keys import looks_like_key

from .conftest import Gateway


def test_init_makes_everything_once(gateway: Gateway, tmp_path: Path) -> None:
    first = gateway("init")
    assert first.code == 0
    password = re.search(r"password (\S+)", first.err)
    assert password
    assert password[1] not in first.out
    home = tmp_path / "home"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in ("secret.key", "gateway.sqlite3")} == {0o600}
    again = gateway("init", "--json")
    assert again.json == {"home": str(home), "admin": "admin@localhost", "created": False, "migrated": False}
    assert again.err == ""


def test_init_with_a_given_password_shows_none(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_PASSWORD", "given-by-the-operator")
    monkeypatch.setenv("GATEWAY_ADMIN_EMAIL", "Boss@Example.com")
    typed = gateway("init", "--json")
    assert (typed.json["admin"], typed.json["created"], typed.err) == ("Boss@Example.com", True, "")


def test_an_address_of_before_is_found_however_it_is_typed(ready: Gateway, tmp_path: Path) -> None:
    """Earlier versions stored every letter in lower case; new addresses are ASCII."""
    assert ready("users", "create", "--email", "muller@x.de", "--role", "member").code == 0
    with sqlite3.connect(tmp_path / "home" / "gateway.sqlite3") as database:
        database.execute("UPDATE users SET email = 'm\u00fcller@x.de' WHERE email = 'muller@x.de'")
    database.close()
    assert ready("users", "disable", "M\u00fcller@x.de", "--json").json["email"] == "m\u00fcller@x.de"
    assert ready("users", "create", "--email", "M\u00fcller@x.de", "--role", "member").code == 1


def test_init_never_changes_an_admin(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_EMAIL", "other@example.com")
    assert ready("init", "--json").json["created"] is False
    assert [user["email"] for user in ready("users", "list", "--json").json] == ["admin@localhost"]


def test_init_with_another_secret_key_is_refused(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SECRET_KEY", "0123456789abcdefghijklmnopqrstuvwxyzABCD")
    typed = ready("init")
    assert typed.code == 1
    assert "not the one that this database was set up with" in typed.err


def test_the_key_alone_and_the_five_fields(ready: Gateway) -> None:
    plain = ready("keys", "create", "--name", "one")
    assert plain.out.endswith("\n")
    assert looks_like_key(plain.out.strip().encode())
    five = ready("keys", "create", "--name", "two", "--scopes", "inference, usage", "--expires", "30d", "--json").json
    assert list(five) == ["id", "key", "name", "scopes", "expires_at"]
    assert looks_like_key(five["key"].encode())
    assert five["key"].startswith(f"sk-gw-{five['id']}-")
    assert (five["name"], five["scopes"]) == ("two", ["inference", "usage"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", five["expires_at"])
    assert ready("keys", "create", "--name", "three", "--json").json["expires_at"] is None


def test_a_key_keeps_what_it_was_made_with(ready: Gateway) -> None:
    assert ready("users", "create", "--email", "kim@example.com", "--role", "member").code == 0
    options = ("--models", "chat*, embed", "--rpm", "5", "--tpm", "1000", "--concurrency", "2", "--budget", "2.50/day")
    key = ready("keys", "create", "--name", "limited", "--owner", "Kim@example.com", *options, "--json").json
    (listed,) = ready("keys", "list", "--owner", "kim@example.com", "--json").json
    wanted = {
        "id": key["id"],
        "owner": "kim@example.com",
        "models": ["chat*", "embed"],
        "rpm": 5,
        "tpm": 1000,
        "concurrency": 2,
        "budget": "2.5/day",
    }
    assert {name: listed[name] for name in wanted} == wanted
    assert "rpm=5 tpm=1000 concurrency=2 budget=2.5/day" in ready("keys", "list").out
    assert key["key"].rpartition("-")[2] not in ready("keys", "list").out


def test_revoking_and_rotating(ready: Gateway) -> None:
    first, second = (ready("keys", "create", "--name", name, "--json").json for name in ("a", "b"))
    rotated = ready("keys", "rotate", first["id"], "--grace", "1h", "--json").json
    assert rotated["id"] == first["id"]
    assert rotated["key"] != first["key"]
    assert looks_like_key(ready("keys", "rotate", second["key"]).out.strip().encode())  # the whole key names itself too
    assert ready("keys", "revoke", first["id"], "--json").json["revoked_at"]
    assert [key["name"] for key in ready("keys", "list", "--json").json] == ["b"]
    assert [key["state"] for key in ready("keys", "list", "--all", "--json").json] == ["revoked", "active"]
    assert ready("keys", "rotate", first["id"]).code == 1


def test_a_key_is_changed_field_by_field(ready: Gateway) -> None:
    made = ready("keys", "create", "--name", "k", "--rpm", "5", "--budget", "2/day", "--networks", "10.0.0.0/8", "--json").json
    options = (
        "--name",
        "n",
        "--description",
        "what for",
        "--rpm",
        "none",
        "--tpm",
        "70",
        "--scopes",
        "inference,usage",
        "--expires",
        "30d",
    )
    changed = ready("keys", "update", made["id"], *options, "--models", "chat*", "--networks", "192.0.2.7, ::1", "--json").json
    wanted = {
        "name": "n", "description": "what for", "rpm": None, "tpm": 70, "budget": "2/day", "scopes": ["inference", "usage"],
        "models": ["chat*"], "networks": ["192.0.2.7/32", "::1/128"], "prefix": f"sk-gw-{made['id']}", "created_by": "cli",
        "last_used_at": None, "owner": "admin@localhost",
    }  # fmt: skip
    assert {name: changed[name] for name in wanted} == wanted
    assert changed["expires_at"]
    cleared = ready("keys", "update", made["key"], "--networks", "none", "--expires", "none", "--budget", "none", "--json").json
    assert (cleared["networks"], cleared["expires_at"], cleared["budget"], cleared["tpm"]) == ([], None, None, 70)
    assert "tpm=70" in ready("keys", "update", made["id"], "--concurrency", "3").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "at least one"),
        (("--rpm", "0"), 2, "whole number"),
        (("--rpm", "many"), 2, "whole number"),
        (("--budget", "5/year"), 2, "budget window"),
        (("--expires", "3y"), 2, "not a duration"),
        (("--networks", "10.0.0.1/8"), 1, "10.0.0.0/8"),
        (("--networks", ""), 2, "at least one network"),
        (("--networks", "10.0.0.0/8,"), 1, "blank"),
        (("--scopes", "root"), 1, "Scopes are"),
        (("--scopes", ""), 1, "Scopes are"),
    ],
)
def test_a_change_that_makes_no_sense(ready: Gateway, arguments: tuple[str, ...], code: int, says: str) -> None:
    made = ready("keys", "create", "--name", "k", "--json").json
    typed = ready("keys", "update", made["id"], *arguments)
    assert typed.code == code, typed
    assert says in typed.err


def test_an_existing_key_is_read_from_stdin(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "sk-proj-Vq8Zr2mVx7Lw0Yc4Nh6Ks9Pd1Gt5Bf3Jx"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))
    taken = ready("keys", "import", "--name", "old", "--rpm", "5", "--json")
    assert (taken.json["name"], taken.json["prefix"], taken.json["rpm"]) == ("old", "sk-proj-", 5)
    assert text not in taken.out + taken.err
    for given, says in ((text, "already"), ("sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sample"), ("short", "20 to 512"), ("", "stdin")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{given}\n"))
        refused = ready("keys", "import", "--name", "again")
        assert (refused.code, refused.out) == (1, "")
        assert says in refused.err
        assert not given or given not in refused.err
    assert looks_like_key(ready("keys", "rotate", taken.json["id"]).out.strip().encode())


def test_keys_are_found(ready: Gateway) -> None:
    assert ready("teams", "create", "Search").code == 0
    assert ready("users", "create", "--email", "kim@example.com", "--role", "member", "--team", "Search").code == 0
    first = ready("keys", "create", "--name", "indexer", "--owner", "kim@example.com", "--description", "nightly", "--json").json
    ready("keys", "create", "--name", "other")
    for options, found in (
        (("--search", "NIGHT"), ["indexer"]), (("--search", "kim@"), ["indexer"]), (("--search", first["id"]), ["indexer"]),
        (("--team", "search"), ["indexer"]), (("--owner", "kim@example.com"), ["indexer"]), (("--search", "nothing"), []),
    ):  # fmt: skip
        assert [key["name"] for key in ready("keys", "list", *options, "--json").json] == found, options
    assert "never" in ready("keys", "list").out
    assert ready("keys", "list", "--team", "none").code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--name", "x", "--budget", "5/year"), 2, "budget window"),
        (("--name", "x", "--budget", "much"), 2, "not an amount"),
        (("--name", "x", "--expires", "3y"), 2, "not a duration"),
        (("--name", "x", "--rpm", "0"), 2, "--rpm"),
        (("--name", "x", "--scopes", "everything"), 1, "Scopes are"),
        (("--name", "x", "--owner", "nobody@example.com"), 1, "no user"),
        (("--name", " "), 1, "needs a name"),
        (("--name", "x", "--networks", " "), 2, "at least one network"),
        ((), 2, "--name"),
    ],
)
def test_a_key_that_cannot_be_made(ready: Gateway, arguments: tuple[str, ...], code: int, says: str) -> None:
    typed = ready("keys", "create", *arguments)
    assert (typed.code, typed.out) == (code, "")
    assert says in typed.err
    assert ready("keys", "list", "--json").json == []


def test_users_come_and_go(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready("users", "create", "--email", "lee@example.com", "--role", "manager", "--json").json
    assert len(made.pop("password")) >= 16
    none = dict.fromkeys(("name", "team", "last_login_at", "rpm", "tpm", "rpd", "tpd", "concurrency", "budget", "token_budget", "soft"))
    assert made | {"created_at": ""} == none | {
        "id": made["id"], "email": "lee@example.com", "kind": "person", "role": "manager", "enabled": True, "created_at": "",
    }  # fmt: skip
    assert ready("users", "disable", "lee@example.com", "--json").json["enabled"] is False
    assert ready("users", "enable", "--email", "lee@example.com", "--json").json["enabled"] is True
    assert ready("users", "set-role", "lee@example.com", "--role", "viewer", "--json").json["role"] == "viewer"
    monkeypatch.setattr("sys.stdin", io.StringIO("a new password of mine\n"))
    assert "password" not in ready("users", "reset", "lee@example.com", "--password-stdin").out
    assert "password: " in ready("users", "reset", "lee@example.com").out
    assert "lee@example.com" in ready("users", "list").out
    assert ready("users", "list", "--search", "lee", "--json").json[0]["id"] == made["id"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("create", "--email", "admin@localhost", "--role", "member"), 1, "already"),
        (("create", "--email", "nonsense", "--role", "member"), 1, "e-mail"),
        (("create", "--email", "a@b.c", "--role", "king"), 1, "role"),
        (("disable", "admin@localhost"), 1, "last enabled admin"),
        (("disable", "nobody@example.com"), 1, "no user"),
        (("disable",), 2, "EMAIL"),
    ],
)
def test_a_user_that_cannot_be(ready: Gateway, arguments: tuple[str, ...], code: int, says: str) -> None:
    typed = ready("users", *arguments)
    assert (typed.code, typed.out) == (code, "")
    assert says in typed.err


def test_a_short_password_is_refused_in_words(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    typed = ready("users", "create", "--email", "a@b.c", "--role", "member", "--password-stdin")
    assert typed.code == 1
    assert "at least" in typed.err


def test_secrets_are_stored_and_never_shown(ready: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in ("stored", "unchanged"):
        monkeypatch.setattr("sys.stdin", io.StringIO("sk-upstream\n"))
        assert ready("secrets", "set", "vendor").out == f"vendor  {state}\n"
    listed = ready("secrets", "list", "--json")
    assert [entry["name"] for entry in listed.json] == ["vendor"]
    assert "sk-upstream" not in listed.out
    assert ready("secrets", "delete", "vendor", "--json").json == {"name": "vendor", "deleted": True}
    assert ready("secrets", "delete", "vendor").code == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert ready("secrets", "set", "vendor").code == 1
