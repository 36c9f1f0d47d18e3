"""explain: who serves whom, and why, for every policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gateway.routing.probes import FILE_NAME, Probed, write_probes

from .conftest import Gateway

ECHOES = "[{type: echo, id: a}, {type: echo, id: b}, {type: echo, id: c}]"


@pytest.fixture
def live(ready: Gateway, tmp_path: Path) -> Gateway:
    """With the models of `MODELS` applied."""
    (tmp_path / "g.yaml").write_text(MODELS)
    assert ready("apply", "-f", "g.yaml").code == 0
    return ready


MODELS = f"""\
models:
  - {{id: draw, backends: {ECHOES}}}
  - {{id: least, policy: least-in-flight, backends: {ECHOES}}}
  - {{id: stick, policy: sticky, sticky: {{by: user}}, backends: {ECHOES}}}
  - {{id: session, policy: sticky, sticky: {{by: header:X-Session}}, backends: {ECHOES}}}
  - {{id: prefix, policy: sticky, sticky: {{by: prefix}}, backends: {ECHOES}}}
  - {{id: bird, policy: canary, canary: {{backends: [c], percent: 50}}, fallback: draw, backends: {ECHOES}}}
  - id: test
    policy: experiment
    experiment: {{name: summer, arms: {{old: {{backends: [a]}}, new: {{weight: 3, backends: [b]}}}}}}
    shadow: {{backend: c, sample: 0.05}}
    backends: {ECHOES}
  - id: groups
    backends: [{{type: echo, id: near, weight: 3}}, {{type: echo, id: near2}}, {{type: echo, id: far, priority: 1}}]
  - {{id: drained, fallback: draw, backends: [{{type: echo, weight: 0}}]}}
  - id: probed
    backends:
      - {{type: custom, id: up, baseURL: "http://10.0.0.5/v1", probe: {{path: /health}}}}
      - {{type: custom, id: down, baseURL: "http://10.0.0.6/v1", probe: {{path: /health}}}}
"""


def asked(live: Gateway, model: str, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = live("explain", "--model", model, *options, "--json").json
    return found


@pytest.mark.parametrize(
    ("model", "stages", "says"),
    [
        ("draw", [["a", "b", "c"]], "draws by weight (a 33.3%, b 33.3%, c 33.3%); if the first fails before it answers: another of these."),
        ("least", [["a", "b", "c"]], "the one of a, b, c with the fewest running requests per weight serves"),
        ("stick", [["a", "b", "c"]], "all requests of the same user (or else the key) go to one backend (a 33.3%, b 33.3%, c 33.3%)"),
        ("prefix", [["a", "b", "c"]], "all prompts with the same beginning go to one backend"),
        ("bird", [], "50 percent of all users, told apart by user (or else the key), are on the canary side (c)"),
        (
            "bird",
            [],
            "over all users: c 50.0% in canary, a 25.0% in stable, b 25.0% in stable. When none of them serves, the model draw does.",
        ),
        (
            "test",
            [],
            "divides users by user (or else the key) into the arms new (weight 3: b), old (weight 1: a); over all users: b 75.0% in new",
        ),
        ("test", [], "0.05 of the requests are copied to c"),
        (
            "groups",
            [["near", "near2"], ["far"]],
            "(near 75.0%, near2 25.0%); if the first fails before it answers: another of these, then far.",
        ),
        ("drained", [[]], "every weight is 0 (drained); requests go to the model draw."),
    ],
)
def test_for_anyone(live: Gateway, model: str, stages: list[list[str]], says: str) -> None:
    found = asked(live, model)
    assert [stage for stage in found["stages"] if stage] == [stage for stage in stages if stage]
    assert found["asked_by"] is None
    assert says in found["why"]
    assert found["why"] in live("explain", "--model", model).out


def test_for_one_user_it_is_decided(live: Gateway) -> None:
    found = [asked(live, "stick", "--user", f"u{n}") for n in range(12)]
    assert {one["stages"][0][0] for one in found} == {"a", "b", "c"}
    for one in found:
        first, second, third = (stage[0] for stage in one["stages"])
        assert f"{one['asked_by']} belongs on {first}; while that runs more than 1.25 times its fair share" in one["why"]
        assert one["why"].endswith(f"{second}, then {third}.")
    assert asked(live, "stick", "--user", "u1") == found[1]


def test_sides_and_arms_of_users(live: Gateway) -> None:
    sides = {(one := asked(live, "bird", "--user", f"u{n}"))["arm"]: one for n in range(8)}
    assert sides["canary"]["stages"] == [["c"], ["a", "b"]]
    assert sides["stable"]["stages"] == [["a", "b"], ["c"]]
    assert "is on the stable side: each request draws by weight (a 50.0%, b 50.0%)" in sides["stable"]["why"]
    assert "is on the canary side: c serves; if the first fails before it answers: one of a, b." in sides["canary"]["why"]
    arms = {(one := asked(live, "test", "--user", f"u{n}"))["arm"]: one for n in range(12)}
    assert arms["new"]["stages"] == [["b"], ["c"], ["a"]]
    assert "is in the arm old of the experiment summer: a serves" in arms["old"]["why"]
    assert [b["part"] for b in arms["old"]["backends"]] == ["old", "new", None]


def test_without_a_user_it_goes_by_the_key(live: Gateway) -> None:
    issued = live("keys", "create", "--name", "k", "--json").json
    found = asked(live, "stick", "--key", issued["key"])
    assert found["asked_by"] == f"key {issued['id']} (without user)"
    assert len(found["stages"]) == 3
    assert asked(live, "stick", "--key", issued["id"]) == found
    assert asked(live, "prefix", "--key", issued["id"])["asked_by"] is None  # a prompt would have to be known
    with_session = asked(live, "session", "--key", issued["id"], "--header", "x-session: s1")
    assert with_session["asked_by"] == "header:x-session s1"


def test_a_key_that_may_not_is_said(live: Gateway) -> None:
    issued = live("keys", "create", "--name", "k", "--models", "other-*", "--json").json
    refused = live("explain", "--model", "draw", "--key", issued["id"])
    assert (refused.code, refused.out) == (1, "")
    assert "may not use 'draw' (its models: other-*): requests get 404" in refused.err
    live("keys", "revoke", issued["id"])
    assert "is revoked: its requests get 401" in live("explain", "--model", "draw", "--key", issued["id"]).err
    assert "There is no key 'nobody'" in live("explain", "--model", "draw", "--key", "nobody").err
    assert live("explain", "--model", "draw", "--header", "nothing").code == 2


def test_what_probes_found_counts_while_it_is_fresh_and_of_this_revision(live: Gateway, tmp_path: Path) -> None:
    file, now_s = tmp_path / "home" / "run" / FILE_NAME, time.time()
    dead = Probed(False, now_s, 10, 2, "timeout")
    write_probes(file, 1, {"probed/up": Probed(True, now_s, 10, 2), "probed/down": dead})
    found = asked(live, "probed")
    assert [b["state"] for b in found["backends"]] == ["alive", "dead: timeout"]
    assert found["stages"] == [["up"]]
    assert "down (its probe fails: timeout) cannot serve at the moment, so another serves in its place." in found["why"]
    write_probes(file, 1, {"probed/up": dead, "probed/down": dead})
    found = asked(live, "probed")
    assert found["stages"] == [["up", "down"]]
    assert "requests are tried all the same" in found["why"]
    for revision, checked_s in ((2, now_s), (1, now_s - 100)):
        write_probes(file, revision, {"probed/down": Probed(False, checked_s, 10, 2, "timeout")})
        assert [b["state"] for b in asked(live, "probed")["backends"]] == [None, None]


def test_columns_appear_where_they_say_something(live: Gateway) -> None:
    assert live("explain", "--model", "draw").out.splitlines()[0].split() == "BACKEND TYPE WEIGHT SHARE ASKED FOR WHERE STATE".split()
    assert "PRIORITY" in live("explain", "--model", "groups").out
    assert live("explain", "--model", "bird").out.splitlines()[3].split()[:5] == ["c", "echo", "1", "canary", "50.0%"]
