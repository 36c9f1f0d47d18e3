"""Local models in a whole gateway: what they answer, what happens when their process dies, and broken model folders."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.gateway_process import Gateway, gateway
from tests.models import pickle_only, tiny_chat, without_weights

BACK_WITHIN_S = 60  # alone 20 and less; here others use the machine, too
AT_ONCE_S = 2
SAY: Any = [{"role": "user", "content": "one two three"}]
CONFIG = """
models:
  - id: solo
    backends: [{type: local, path: tiny-chat}]
  - id: pair
    backends:
      - {type: local, path: tiny-chat, weight: 1000000}
      - {type: echo, id: spare, weight: 1}
  - id: absent
    backends: [{type: local, path: nowhere}]
  - id: weightless
    backends: [{type: local, path: no-weights}]
  - id: pickled
    backends: [{type: local, path: pickled}]
  - id: echo
    backends: [{type: echo}]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("local")
    models = folder / "models"
    tiny_chat(models / "tiny-chat")
    without_weights(models / "no-weights")
    pickle_only(models / "pickled")
    with gateway(folder, CONFIG, start=False, LOCAL_MODELS_DIR=str(models)) as made:
        made.start(ready=False)
        _wait_alive(made)
        early = httpx.get(f"{made.url}/readyz", trust_env=False)
        assert early.status_code == 503, "ready while the model is being loaded"
        assert "tiny-chat" in early.text
        made.wait_ready()
        yield made


def _wait_alive(running: Gateway) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            assert httpx.get(f"{running.url}/healthz", trust_env=False).status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.01)
    raise AssertionError(running.log())


@pytest.fixture(scope="module")
def key(running: Gateway) -> str:
    return running.key("local")


@pytest.fixture
async def client(running: Gateway, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client


def worker_pid(running: Gateway) -> int:
    state = json.loads((running.home / "run" / "local.json").read_text())
    (pid,) = running.children("backends.worker")
    assert str(pid) in json.dumps(state)
    return pid


async def until_served(client: AsyncOpenAI, since_s: float, model: str = "solo") -> float:
    """How long it took until the local model itself answered again. Each refusal meanwhile must be `model_loading`, and quick."""
    while True:
        asked_s = time.monotonic()
        assert asked_s < since_s + BACK_WITHIN_S, "the model is not back"
        try:
            await client.chat.completions.create(model=model, messages=SAY, max_tokens=2)
            return time.monotonic() - since_s
        except openai.InternalServerError as error:
            took_s = time.monotonic() - asked_s
            assert (error.status_code, error.code) == (503, "model_loading"), error
            assert int(error.response.headers["retry-after"]) >= 1
            assert took_s < AT_ONCE_S
        await asyncio.sleep(0.1)


async def test_chat_streamed_and_not(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "solo", "messages": SAY, "max_tokens": 20, "temperature": 0}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].message.content
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    sampled = await client.chat.completions.create(model="solo", messages=SAY, max_tokens=20, temperature=1, seed=5)
    again = await client.chat.completions.create(model="solo", messages=SAY, max_tokens=20, temperature=1, seed=5)
    assert sampled.choices[0].message == again.choices[0].message


async def test_tokenize_agrees_with_usage(running: Gateway, client: AsyncOpenAI, key: str) -> None:
    answer = await client.chat.completions.create(model="solo", messages=SAY, max_tokens=1)
    async with httpx.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as http:
        for path in ("/tokenize", "/v1/tokenize"):
            told = (await http.post(path, json={"model": "solo", "messages": SAY})).json()
            assert answer.usage is not None
            assert told["count"] == len(told["tokens"]) == answer.usage.prompt_tokens
            assert told["max_model_len"] == 512
        text = "def f(x):\n\treturn '키 🔑'  # 한국어\n"
        told = (await http.post("/v1/tokenize", json={"model": "solo", "prompt": text, "return_token_strs": True})).json()
        assert len(told["token_strs"]) == told["count"]
        back = await http.post("/v1/detokenize", json={"model": "solo", "tokens": told["tokens"]})
        assert back.json() == {"prompt": text}
        unknown = await http.post("/v1/tokenize", json={"model": "echo", "prompt": text})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (501, "not_supported")


async def test_a_client_that_leaves_stops_the_worker(running: Gateway, client: AsyncOpenAI) -> None:
    """The next request is not kept waiting by a generation that nobody reads."""
    for _ in range(10):  # a small model may have said all before its client has left
        stream = await client.chat.completions.create(
            model="solo", messages=SAY, max_tokens=450, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        request_id = stream.response.headers["x-request-id"]
        await anext(stream)
        await stream.close()
        await client.chat.completions.create(model="solo", messages=SAY, max_tokens=1)
        (row,) = [row for row in _ledger(running) if row["request_id"] == request_id]
        if row["ending"] != "success":
            break
    assert row["ending"] == "client_gone"
    assert row["completion_tokens"] < 450


def _ledger(running: Gateway) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.cli("ledger", "export").splitlines()]


async def in_mid_stream(client: AsyncOpenAI, pid: int) -> asyncio.Task[None]:
    """Who reads an answer in the middle of which the worker was stopped (SIGSTOP): a small model may have said all before it could be."""

    async def read(stream: openai.AsyncStream[Any]) -> None:
        async for _ in stream:
            pass

    for _ in range(10):
        stream = await client.chat.completions.create(
            model="solo", messages=SAY, max_tokens=480, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        os.kill(pid, signal.SIGSTOP)
        reading = asyncio.create_task(read(stream))
        ended, _ = await asyncio.wait({reading}, timeout=3)
        if not ended:
            return reading
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("each answer was whole before its worker could be stopped")


async def test_a_killed_worker_is_passed_over_or_named_and_comes_back(running: Gateway, client: AsyncOpenAI) -> None:
    pid = worker_pid(running)
    assert (await client.chat.completions.create(model="pair", messages=SAY, max_tokens=1)).system_fingerprint is None
    reading = await in_mid_stream(client, pid)
    waiting = asyncio.create_task(client.chat.completions.create(model="pair", messages=SAY, max_tokens=3))
    await asyncio.sleep(0)
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError) as caught:  # it was cut in mid-stream: said so, not hung
        await reading
    assert caught.value.code == "upstream_error"
    assert time.monotonic() - killed_s < AT_ONCE_S
    await waiting  # whoever answered

    answers = await asyncio.gather(*(client.chat.completions.create(model="pair", messages=SAY) for _ in range(20)))
    assert {answer.system_fingerprint for answer in answers} == {"echo-spare"}
    assert time.monotonic() - killed_s < 2 * AT_ONCE_S
    ready = await asyncio.to_thread(httpx.get, f"{running.url}/readyz", trust_env=False)
    assert ready.status_code == 200, "a dead backend must not take the gateway out of service"
    back_s = await until_served(client, killed_s)
    assert worker_pid(running) != pid
    assert back_s < BACK_WITHIN_S
    assert (await client.chat.completions.create(model="pair", messages=SAY, max_tokens=1)).system_fingerprint is None
    failed_over = [row for row in _ledger(running) if row["model"] == "pair" and row["backend"] == "spare"]
    assert len(failed_over) >= 20
    assert {(row["status"], row["ending"]) for row in failed_over} == {(200, "success")}
    assert {row["attempts"] for row in failed_over} <= {1, 2}  # who comes later does not even ask the dead one


async def test_the_keeper_may_die_too(running: Gateway, client: AsyncOpenAI) -> None:
    """Its workers end with it; its successor starts them again. The relay never stops."""
    (keeper,), (worker,) = running.children("gateway.keeper"), running.children("backends.worker")
    os.kill(keeper, signal.SIGKILL)
    killed_s = time.monotonic()
    assert (await client.chat.completions.create(model="echo", messages=SAY)).system_fingerprint == "echo-echo-1"
    while worker in running.children("backends.worker") or not running.children("gateway.keeper"):
        await asyncio.sleep(0.05)
        assert time.monotonic() < killed_s + BACK_WITHIN_S
    await until_served(client, killed_s)


# broken folders


FAULTS = {
    "absent": ("nowhere", "There is no model folder"),
    "weightless": ("no-weights/model.safetensors", "is missing"),
    "pickled": ("pickled/pytorch_model.bin", "is a pickle"),
}


async def test_broken_models_fail_alone(client: AsyncOpenAI) -> None:
    for model in FAULTS:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=model, messages=SAY)
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers
        assert ".safetensors" not in caught.value.message  # the folder's insides are the operator's business
    assert (await client.chat.completions.create(model="echo", messages=SAY)).choices[0].message.content == "one two three"


def test_check_names_the_file_and_the_fix(running: Gateway) -> None:
    path = running.home.parent / "home.yaml"
    said = running.cli("check", "-f", str(path), code=1)
    lines = path.read_text().splitlines()
    for model, (place, fault) in FAULTS.items():
        (line,) = [line for line in said.splitlines() if place in line]
        assert fault in line
        assert re.search(r"\b(Put|Copy|Save|fetch)\b", line), line
        number = int(re.search(r":(\d+)", line)[1])  # type: ignore[index]  # no match fails the test just as well
        assert f"path: {place.split('/')[0]}" in lines[number - 1], model
    told = json.loads(running.cli("check", "-f", str(path), "--json", code=1))
    assert not told["valid"]
    assert len(told["faults"]) == len(FAULTS)


def test_check_is_content_with_sound_models(running: Gateway, tmp_path: Path) -> None:
    sound = tmp_path / "sound.yaml"
    sound.write_text("models:\n  - id: solo\n    backends: [{type: local, path: tiny-chat}]\n")
    running.cli("check", "-f", str(sound))


def test_the_log_names_the_file_and_the_fix(running: Gateway) -> None:
    log = running.log_path.read_text()
    for place, fault in FAULTS.values():
        assert any(place in line and fault in line and '"level":"warning"' in line for line in log.splitlines()), place
    assert "Traceback" not in log


def test_doctor_names_them_too(running: Gateway) -> None:
    said = running.cli("doctor", code=1)
    for place, _ in FAULTS.values():
        assert place in said


async def test_a_model_added_while_serving(running: Gateway, client: AsyncOpenAI) -> None:
    """No restart: the revision names it, its worker starts, and until then it is `model_loading`."""
    tiny_chat(running.home.parent / "models" / "second", seed=1)
    more = running.home.parent / "more.yaml"
    more.write_text(CONFIG + "  - id: second\n    backends: [{type: local, path: second}]\n")
    await asyncio.to_thread(running.cli, "apply", "-f", str(more))
    applied_s = time.monotonic()
    await asyncio.sleep(0.05)
    await until_served(client, applied_s, "second")
    assert len(running.children("backends.worker")) == 2
    await asyncio.to_thread(running.cli, "rollback")
    while len(running.children("backends.worker")) != 1:
        assert time.monotonic() < applied_s + 2 * BACK_WITHIN_S
        await asyncio.sleep(0.1)


def test_stopping_leaves_no_worker_behind(running: Gateway) -> None:
    workers = running.children("backends.worker")
    assert workers
    assert running.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
