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
    assert said == "lee@example.com  rpm=60 concurrency=4 budget=2.5/day  spent=0\n"
    assert ready("users", "limits", "lee@example.com", "--clear", "rpm,budget", "--tpm", "9", "--json").json["tpm"] == 9
    assert ready("users", "limits", "lee@example.com").out == "lee@example.com  tpm=9 concurrency=4\n"
    assert ready("users", "limits", "lee@example.com", "--clear", "all").out == "lee@example.com  no limits\n"


def test_limits_of_a_team_and_of_a_service(ready: Gateway) -> None:
    ready("teams", "create", "Search")
    assert ready("teams", "limits", "search").out == "Search  no limits\n"
    more = ("--rpd", "500", "--tpd", "9", "--token-budget", "2000/day", "--soft", "80", "--budget", "5")
    said = ready("teams", "limits", "search", *more).out
    assert said == "Search  rpd=500 tpd=9 budget=5 token_budget=2000/day soft=80%  spent=0  tokens-spent=0\n"
    assert "rpd=500" in ready("teams", "list").out
    shown = ready("teams", "limits", "search", "--clear", "rpd,token-budget", "--json").json
    assert (shown["tpd"], shown["rpd"], shown["token_budget"], shown["spent"]) == (9, None, None, {"budget": "0"})
    assert ready("teams", "reset-budget", "search").out == "Search  tpd=9 budget=5 soft=80%  spent=0\n"
    assert ready("users", "create", "--service", "indexer", "--rpd", "7", "--json").json["rpd"] == 7
    ready("users", "limits", "indexer@service", "--budget", "1/day")
    assert ready("users", "reset-budget", "indexer@service").out == "indexer@service  rpd=7 budget=1/day  spent=0\n"


def test_limits_of_a_key(ready: Gateway) -> None:
    more = ("--rpd", "5", "--tpd", "6", "--token-budget", "7/week", "--soft", "50", "--budget", "2")
    made = ready("keys", "create", "--name", "k", *more, "--json").json
    shown = ready("keys", "show", made["key"], "--json").json
    assert {name: shown[name] for name in ("rpd", "tpd", "token_budget", "soft", "budget")} == {
        "rpd": 5, "tpd": 6, "token_budget": "7/week", "soft": 50, "budget": "2",
    }  # fmt: skip
    assert shown["spent"] == {"budget": "0", "token_budget": 0}
    after = ready("keys", "update", made["id"], "--rpd", "none", "--tpd", "60", "--token-budget", "none", "--soft", "none", "--json").json
    assert {name: after[name] for name in ("rpd", "tpd", "token_budget", "soft", "budget")} == {
        "rpd": None, "tpd": 60, "token_budget": None, "soft": None, "budget": "2",
    }  # fmt: skip
    assert "spent=0" in ready("keys", "reset-budget", made["id"]).out
    assert ready("keys", "update", made["id"], "--token-budget", "x").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("users", "create"), 2, "--service"),
        (("users", "create", "--email", "a@b.c", "--service", "x"), 2, "--service"),
        (("users", "create", "--service", "x", "--name", "X"), 2, "--service"),
        (("users", "limits", "admin@localhost", "--token-budget", "1.5"), 2, "--token-budget"),
        (("users", "limits", "admin@localhost", "--soft", "101"), 2, "--soft"),
        (("users", "reset-budget", "admin@localhost"), 1, "no budget"),
        (("teams", "limits", "none", "--rpm", "5"), 1, "no team"),
        (("keys", "show", "none"), 1, "no such key"),
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
