"""The content log of a whole gateway: from the switch to the reader, over kills and through its two doors."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import PASSWORD, PLAIN, Gateway, gateway
from tests.security.marks import forms

CONFIG = """
models:
  - id: m
    backends: [{type: echo}]
  - id: kept
    content_log: true
    backends: [{type: echo, chunk_delay_ms: 5}]
  - id: slow
    content_log: true
    backends: [{type: echo, chunk_delay_ms: 400}]
"""
PROMPT = "the herons of the seventh harbour stand in line"
REASON = "complaint 4711"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("content"), CONFIG, arguments=["--workers", "2"]) as made:
        yield made


def send(made: Gateway, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    """A key that was made a moment ago is in force in every worker 50 ms later; until then the answer says: try again."""
    end_s = time.monotonic() + 10
    while True:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.request(method, f"{made.url}{path}", headers=headers, timeout=30, trust_env=False, verify=PLAIN, **more)
        if answer.status_code != 503 or time.monotonic() > end_s:
            return answer
        time.sleep(0.02)


def chat(made: Gateway, key: str, model: str = "m", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}]} | more
    answer = send(made, key, "POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def ask(made: Gateway, key: str, path: str, method: str = "GET", **params: str) -> httpx.Response:
    return send(made, key, method, path, params=params)


def arrived(made: Gateway, reader: str, request_id: str, within_s: float = 10) -> dict[str, Any]:
    """The request's content, as soon as it can be read."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        answer = ask(made, reader, f"/admin/contents/{request_id}", reason=REASON)
        if answer.status_code == 200:
            return dict(answer.json())
        assert answer.status_code == 404, answer.text
        time.sleep(0.1)
    raise AssertionError(f"nothing is kept of {request_id}\n{made.log()}")


def test_a_key_and_a_model(running: Gateway) -> None:
    reader = running.key("reader", "--scopes", "content")
    logged, plain = running.key("logged", "--content-log"), running.key("plain")
    of_key, of_model, of_none = chat(running, logged), chat(running, plain, "kept"), chat(running, plain)
    assert [answer.headers.get("x-gateway-content-log") for answer in (of_key, of_model, of_none)] == ["on", "on", None]
    for answer in (of_key, of_model):
        found = arrived(running, reader, answer.headers["x-request-id"])
        assert json.loads(found["request"])["messages"][0]["content"] == PROMPT
        assert found["answer"] == answer.text
        assert found["words"] == [answer.json()["choices"][0]["message"]["content"]]
        assert (found["status"], found["ending"], found["not_kept"]) == (200, "success", None)
    assert ask(running, reader, f"/admin/contents/{of_none.headers['x-request-id']}", reason=REASON).status_code == 404
    listed = ask(running, reader, "/admin/contents", key_id=logged.split("-")[2]).json()["data"]
    assert [row["request_id"] for row in listed] == [of_key.headers["x-request-id"]]
    assert "request" not in listed[0]
    assert "answer" not in listed[0]


def test_pages(running: Gateway) -> None:
    reader, logged = running.key("pages", "--scopes", "content"), running.key("many", "--content-log")
    ids = [chat(running, logged).headers["x-request-id"] for _ in range(3)]
    arrived(running, reader, ids[-1])
    arrived(running, reader, ids[0])
    arrived(running, reader, ids[1])
    key_id = logged.split("-")[2]
    first = ask(running, reader, "/admin/contents", key_id=key_id, limit="2").json()
    rest = ask(running, reader, "/admin/contents", key_id=key_id, limit="2", after=first["next"]).json()
    assert [row["request_id"] for row in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None
    assert ask(running, reader, "/admin/contents", after="nonsense").status_code == 400
    narrow = running.key("narrow", "--scopes", "content", "--models", "kept")
    assert ask(running, narrow, "/admin/contents", key_id=key_id).json()["data"] == []
    assert ask(running, narrow, f"/admin/contents/{ids[0]}", reason=REASON).status_code == 404


def test_a_stream_and_a_client_that_leaves(running: Gateway) -> None:
    reader, key = running.key("streams", "--scopes", "content"), running.key("plain")
    answer = chat(running, key, "kept", stream=True)
    found = arrived(running, reader, answer.headers["x-request-id"])
    assert found["answer"] == answer.text
    assert PROMPT.split()[1] in found["words"][0]
    body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    headers = {"authorization": f"Bearer {key}"}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, verify=PLAIN) as left:
        got = next(left.iter_raw())
    found = arrived(running, reader, left.headers["x-request-id"])
    assert found["ending"] == "client_gone"
    assert found["answer"].encode().startswith(got)
    assert "[DONE]" not in found["answer"]


def test_who_looked(running: Gateway) -> None:
    reader, key = running.key("auditing", "--scopes", "content"), running.key("plain")
    request_id = chat(running, key, "kept").headers["x-request-id"]
    arrived(running, reader, request_id)
    shown = json.loads(running.cli("contents", "show", request_id, "--reason", "asked by the court", "--json"))
    assert PROMPT in shown["request"]
    entries = json.loads(running.cli("audit", "list", "--entity", "content", "--json"))
    mine = [entry for entry in entries if entry["entity_id"] == request_id]
    assert [(entry["action"], entry["via"], entry["after"]["reason"]) for entry in mine] == [
        ("read", "cli", "asked by the court"),
        ("read", "api", REASON),
    ]
    assert (mine[1]["actor_key_id"], mine[1]["address"]) == (reader.split("-")[2], "127.0.0.1")
    assert PROMPT not in json.dumps(entries)


def test_who_may_not(running: Gateway) -> None:
    key = running.key("plain")
    request_id = chat(running, key, "kept").headers["x-request-id"]
    login = httpx.post(
        f"{running.url}/auth/login", json={"email": "admin@localhost", "password": PASSWORD}, trust_env=False, verify=PLAIN
    ).json()["access_token"]
    for credential in (key, login, running.key("mighty", "--scopes", "admin,inference,usage,metrics")):
        assert ask(running, credential, f"/admin/contents/{request_id}", reason=REASON).status_code == 403
        assert ask(running, credential, "/admin/contents").status_code == 403
    reader = running.key("no reason", "--scopes", "content")
    arrived(running, reader, request_id)
    for reason in ("", "no", "x" * 201):
        assert ask(running, reader, f"/admin/contents/{request_id}", reason=reason).status_code == 400
    assert ask(running, reader, f"/admin/contents/{request_id}").status_code == 400


def test_erasing(running: Gateway) -> None:
    reader, key = running.key("before", "--scopes", "content"), running.key("gone", "--content-log")
    request_id = chat(running, key).headers["x-request-id"]
    arrived(running, reader, request_id)
    key_id = key.split("-")[2]
    assert ask(running, reader, "/admin/contents", "DELETE", key_id=key_id, reason=REASON).status_code == 403
    admin = running.key("erases", "--scopes", "admin")
    assert ask(running, admin, "/admin/contents", "DELETE", key_id=key_id, user_id="u", reason=REASON).status_code == 400
    assert ask(running, admin, "/admin/contents", "DELETE", key_id=key_id, reason=REASON).json() == {"erased": 1}
    assert ask(running, reader, f"/admin/contents/{request_id}", reason=REASON).status_code == 404
    assert "0 requests" in running.cli("contents", "delete", "--key", key_id, "--reason", REASON)


def test_the_switch_is_turned_while_it_runs(running: Gateway) -> None:
    key = running.key("changing")
    for arguments, header in (("--content-log", "on"), ("--no-content-log", None)):
        running.cli("keys", "update", key.split("-")[2], arguments)
        time.sleep(0.1)
        assert chat(running, key).headers.get("x-gateway-content-log") == header


def test_nothing_in_the_clear_anywhere(running: Gateway) -> None:
    """Neither in the database (its log and its free pages too) nor in any other file of the home."""
    key = running.key("plain", "--content-log")
    words = "vermilion otters rehearse at the lighthouse"
    for stream in (False, True):
        chat(running, key, messages=[{"role": "user", "content": words}], stream=stream)
    end_s = time.monotonic() + 10
    while json.loads(running.cli("contents", "list", "--key", key.split("-")[2], "--json")).__len__() < 2:
        assert time.monotonic() < end_s
        time.sleep(0.1)
    for path in [*running.home.rglob("*"), running.log_path]:
        if path.is_file():
            content = path.read_bytes()
            for _, form in forms(words.encode()):
                assert form not in content, path


def test_a_killed_worker_and_a_keeper_that_is_away(tmp_path: Path) -> None:
    """What was written before the kill is there after it, though nobody had taken it over yet."""
    with gateway(tmp_path, CONFIG) as made:
        key = made.key("logged", "--content-log")
        (keeper,) = made.children("gateway.keeper")
        os.kill(keeper, signal.SIGSTOP)
        ids = [chat(made, key).headers["x-request-id"] for _ in range(5)]
        spool = made.home / "run" / "content"
        end_s = time.monotonic() + 10
        while sum(path.read_bytes().count(b"\n") for path in spool.glob("*")) < len(ids):
            assert time.monotonic() < end_s
            time.sleep(0.02)
        made.kill()  # the worker and all others, at once
        with sqlite3.connect(made.home / "gateway.sqlite3") as database:
            assert database.execute("SELECT count(*) FROM contents").fetchone() == (0,)
        listed = json.loads(made.cli("contents", "list", "--json"))  # with the server down: the command takes it over
        assert sorted(row["request_id"] for row in listed) == sorted(ids)
        assert not [path for path in spool.iterdir() if path.suffix != ".lock"]
        shown = json.loads(made.cli("contents", "show", ids[0], "--reason", REASON, "--json"))
        assert PROMPT in shown["request"]
        assert PROMPT in shown["words"][0]


def test_a_new_secret_key_and_a_lost_one(tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG) as made:
        key = made.key("logged", "--content-log")
        first = chat(made, key).headers["x-request-id"]
        made.stop()
        made.cli("contents", "list")
        old = made.home / "secret.key"
        old.rename(made.home / "secret.key.previous")
        made.start()
        second = chat(made, key).headers["x-request-id"]
        made.stop()
        assert "wait for `gateway secrets rotate`" in made.cli("doctor")
        first_time, second_time = made.cli("secrets", "rotate"), made.cli("secrets", "rotate")
        assert "1 logged requests; more" in first_time
        assert "run this again" in first_time
        assert second_time.rstrip().endswith("signing keys; the old one can be forgotten")
        (made.home / "secret.key.previous").unlink()
        for request_id in (first, second):
            assert PROMPT in made.cli("contents", "show", request_id, "--reason", REASON)
        assert "2 requests are logged" in made.cli("doctor")
        (made.home / "secret.key").unlink()
        assert made.cli("keys", "update", key.split("-")[2], "--no-content-log")
        made.cli("keys", "update", key.split("-")[2], "--content-log", code=1)  # nothing to encrypt it with
        made.cli("secrets", "forget", "--yes")
        assert json.loads(made.cli("contents", "list", "--json")) == []
