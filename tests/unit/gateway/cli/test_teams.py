"""`gateway teams`, and what `gateway users` says of teams, services and limits."""

from __future__ import annotations

import pytest

from .conftest import Gateway


def test_teams_come_and_go(ready: Gateway) -> None:
    made = ready("teams", "create", "Search", "--json").json
    assert made["name"] == "Search"
    ready("users", "create", "--email", "lee@example.com", "--team", "search", "--name", "Lee Kim", "--rpm", "60")
    robot = ready("users", "create", "--service", "indexer", "--role", "viewer", "--team", made["id"], "--json").json
    assert (robot["email"], robot["kind"], robot["team"], robot["role"]) == ("indexer@service", "service", made["id"], "viewer")
    assert "password" not in robot
    listed = ready("teams", "list", "--json").json
    assert [(team["name"], team["people"], team["services"]) for team in listed] == [("Search", 1, 1)]
    people = ready("users", "list", "--team", "Search", "--json").json
    assert [(user["email"], user["name"], user["team_name"], user["rpm"]) for user in people] == [
        ("indexer@service", None, "Search", None),
        ("lee@example.com", "Lee Kim", "Search", 60),
    ]
    assert "Search" in ready("users", "list").out
    refused = ready("teams", "delete", "Search")
    assert (refused.code, refused.out) == (1, "")
    assert "users of this team" in refused.err
    assert ready("users", "set-team", "lee@example.com", "--team", "", "--json").json["team"] is None
    assert ready("users", "set-team", "indexer@service", "--team", "").code == 0
    assert ready("teams", "rename", "search", "Finding").out == f"Finding  {made['id']}\n"
    assert ready("teams", "delete", "Finding").out == "Finding  deleted\n"
    assert ready("teams", "list", "--json").json == []


def test_limits_of_a_user_are_set_shown_and_cleared(ready: Gateway) -> None:
    ready("users", "create", "--email", "lee@example.com")
    assert ready("users", "limits", "lee@example.com").out == "lee@example.com  no limits\n"
    said = ready("users", "limits", "lee@example.com", "--rpm", "60", "--budget", "2.5/day", "--concurrency", "4").out
    assert said == "lee@example.com  rpm=60 concurrency=4 budget=2.5/day\n"
    assert ready("users", "limits", "lee@example.com", "--clear", "rpm,budget", "--tpm", "9", "--json").json["tpm"] == 9
    assert ready("users", "limits", "lee@example.com").out == "lee@example.com  tpm=9 concurrency=4\n"
    assert ready("users", "limits", "lee@example.com", "--clear", "all").out == "lee@example.com  no limits\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("users", "create"), 2, "--service"),
        (("users", "create", "--email", "a@b.c", "--service", "x"), 2, "--service"),
        (("users", "create", "--service", "x", "--rpm", "1"), 2, "--service"),
        (("users", "create", "--service", "no spaces"), 1, "service's name"),
        (("users", "create", "--service", "x", "--role", "manager"), 1, "cannot be a manager"),
        (("users", "create", "--email", "a@b.c", "--team", "none"), 1, "no such team"),
        (("users", "create", "--email", "a@service"), 1, "service accounts"),
        (("users", "list", "--team", "none"), 1, "no team"),
        (("users", "limits", "admin@localhost", "--clear", "speed"), 2, "speed"),
        (("users", "limits", "admin@localhost", "--budget", "much"), 2, "--budget"),
        (("teams", "create", " "), 1, "name"),
        (("teams", "rename", "none", "x"), 1, "no team"),
        (("teams", "delete", "none"), 1, "no team"),
    ],
)
def test_what_cannot_be(ready: Gateway, arguments: tuple[str, ...], code: int, says: str) -> None:
    typed = ready(*arguments)
    assert (typed.code, typed.out) == (code, "")
    assert says in typed.err
