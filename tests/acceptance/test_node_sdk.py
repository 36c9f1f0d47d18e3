"""The unmodified OpenAI SDK for Node against a whole gateway. One script runs every case; each test looks at one of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from tests.acceptance.admin import admin
from tests.acceptance.misbehaving import misbehaving_upstream, routes
from tests.gateway_process import PLAIN, Gateway, gateway

HERE = Path(__file__).parent / "node"
CONFIG = """
models:
  - id: echo
    backends: [{type: echo}]
  - id: org/echo-7b
    backends: [{type: echo}]
"""


def _cannot(reason: str) -> NoReturn:
    """Without Node these tests are skipped, except where everything must have run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder with the pinned SDK, installed once per lock file, outside the source tree."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _cannot("node and npm are needed for the tests of the Node SDK")
    lock = (HERE / "package-lock.json").read_bytes() + (HERE / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-gateway-tests"
    folder = cache / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, made)
        done = subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=made, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(made)
            _cannot(f"npm ci failed: {done.stderr[-500:]}")
        try:
            made.rename(folder)
        except OSError:  # another run was quicker
            shutil.rmtree(made)
    return folder


@pytest.fixture(scope="module")
def told(node_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("node")
    with misbehaving_upstream() as upstream, gateway(folder, CONFIG + routes(upstream.url), GATEWAY_MAX_BODY_MB="1") as running:
        asked = json.dumps({"baseURL": f"{running.url}/v1", "keys": _keys(running)})
        with tempfile.TemporaryDirectory(dir=node_folder) as beside:  # so that `import 'openai'` finds node_modules
            script = shutil.copy(HERE / "sdk.mjs", beside)
            done = subprocess.run(["node", script, asked], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def _keys(running: Gateway) -> dict[str, str]:
    with admin(running) as root:
        expired = root.key("short", expires="1s")
        plain = root.key("plain")
        revoked = root.issue("gone")
        root.revoke(revoked["id"])
        keys = {"no inference": root.key("reader", scopes=["usage"]), "one a minute": root.key("slow", rpm=1)}
    deadline_s = time.monotonic() + 5
    while (
        httpx.get(f"{running.url}/v1/models", headers={"authorization": f"Bearer {expired}"}, trust_env=False, verify=PLAIN).status_code
        == 200
    ):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    never = {"unknown": plain[:-4] + "0000", "malformed": "sk-gw-nothing"}
    return keys | never | {"plain": plain, "expired": expired, "revoked": revoked["key"]}


def _stream(text: str, model: str, usages: list[int]) -> dict[str, Any]:
    return {"text": text, "finished": ["stop"], "usages": usages, "models": [model], "roles": 1}


VALUES: dict[str, Any] = {
    "chat by a remote backend": "hello there friend",
    "stream": _stream("one two three", "echo", []),
    "stream with usage": _stream("one two three", "echo", [6]),
    "stream by a remote backend": _stream("w0 w1 w2 ", "up/good", [10]),
    "tool call in a stream": ["call_1", "weather", '{"city":"서울"}', "tool_calls"],
    "completion": "one two",
    "embeddings": {"inputs": 2, "width": 8, "near": True, "usage": {"prompt_tokens": 3, "total_tokens": 3}},
    "model retrieve": "org/echo-7b",
}


@pytest.mark.parametrize("case", VALUES)
def test_what_works(told: dict[str, Any], case: str) -> None:
    assert told[case] == {"value": VALUES[case]}


def test_chat_and_its_request_id(told: dict[str, Any]) -> None:
    value = told["chat"]["value"]
    assert (value["text"], value["model"], value["usage"]) == ("one two three", "echo", 6)
    assert value["request_id"].startswith("req-")
    assert value["same"] == value["request_id"]


def test_stream_helper(told: dict[str, Any]) -> None:
    assert told["stream helper"]["value"]["text"] == "one two three"


def test_model_list(told: dict[str, Any]) -> None:
    assert {"echo", "org/echo-7b", "up/good"} <= set(told["model list"]["value"])


RAISED: dict[str, tuple[str, int | None, str | None, str | None]] = {  # class, status, code, param
    "no key": ("AuthenticationError", 401, "invalid_api_key", None),
    "unknown key": ("AuthenticationError", 401, "invalid_api_key", None),
    "malformed key": ("AuthenticationError", 401, "invalid_api_key", None),
    "revoked key": ("AuthenticationError", 401, "invalid_api_key", None),
    "expired key": ("AuthenticationError", 401, "invalid_api_key", None),
    "key without the scope": ("PermissionDeniedError", 403, "permission_denied", None),
    "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
    "unknown model, streamed": ("NotFoundError", 404, "model_not_found", "model"),
    "unknown model, retrieved": ("NotFoundError", 404, "model_not_found", "model"),
    "empty messages": ("BadRequestError", 400, "invalid_request", "messages"),
    "wrong type": ("BadRequestError", 400, "invalid_request", "max_tokens"),
    "invalid JSON": ("BadRequestError", 400, "invalid_json", None),
    "body too large": ("APIError", 413, "request_too_large", None),
    "rate limit": ("RateLimitError", 429, "rate_limit_exceeded", None),
    "upstream 400": ("BadRequestError", 400, "invalid_value", "temperature"),
    "upstream 429": ("RateLimitError", 429, "rate_limit_exceeded", None),
    "upstream 500": ("InternalServerError", 502, "upstream_error", None),
    "upstream 503": ("InternalServerError", 503, "upstream_unavailable", None),
    "upstream 401": ("InternalServerError", 502, "upstream_error", None),
    "upstream html": ("InternalServerError", 502, "upstream_error", None),
    "upstream reset": ("InternalServerError", 502, "upstream_error", None),
    "upstream silent": ("InternalServerError", 504, "upstream_first_byte_timeout", None),
    "error event first": ("InternalServerError", 502, "upstream_error", None),
    "error event later": ("APIError", None, "oom", None),
    "breaks off": ("APIError", None, "upstream_error", None),
    "client gives up": ("APIConnectionTimeoutError", None, None, None),
}


@pytest.mark.parametrize("case", RAISED)
def test_what_does_not(told: dict[str, Any], case: str) -> None:
    outcome = told[case]
    name, status, code, param = RAISED[case]
    assert "raised" in outcome, outcome
    assert (outcome["raised"], outcome["status"], outcome["code"], outcome["param"]) == (name, status, code, param)
    assert outcome["api"]
    if status is not None:
        assert outcome["requestID"].startswith("req-")
    if case in ("error event later", "breaks off"):
        assert outcome["text"] == "one two "


def test_every_case_is_looked_at(told: dict[str, Any]) -> None:
    assert told.keys() == VALUES.keys() | RAISED.keys() | {"chat", "stream helper", "model list"}
