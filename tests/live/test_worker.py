"""Real worker processes with tiny random models: started by hand, talked to over HTTP, killed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from backends.base import Call, Headers
from backends.errors import BackendError, NotReady
from backends.local import LocalBackend, LocalModels, LocalSpec, LocalState
from tests.gateway_process import PLAIN, free_port
from tests.models import pickle_only, tiny_chat, tiny_encoder, without_weights

HELLO = [{"role": "user", "content": "안녕, how do I create a key? 😀"}]
LONG = {"model": "m", "messages": HELLO, "stream": True, "ignore_eos": True, "seed": 1}
READY_S = 60


class Worker:
    """One worker process started as a person would start it."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        self.port = free_port()
        self.log = log
        command = [sys.executable, "-m", "backends.worker", "--model", str(model), "--port", str(self.port), "--threads", "1", *options]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, stderr=stream)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> Worker:
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/health", verify=PLAIN).status_code == 200:
                    return self
            time.sleep(0.1)
        raise AssertionError(f"the worker is not ready: {self.log.read_text()}")

    def lines(self, message: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["message"] == message]

    async def wait_line(self, message: str, count: int) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while len(self.lines(message)) < count:
                await asyncio.sleep(0.02)
        return self.lines(message)[count - 1]

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, verify=PLAIN, **options)

    def sdk(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="unused", max_retries=0)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Worker]]:
    root = tmp_path_factory.mktemp("workers")
    chat_model = Worker(tiny_chat(root / "chat", max_length=16_384), root / "chat.log", "--max-queue", "4")
    encoder_model = Worker(tiny_encoder(root / "encoder"), root / "encoder.log")
    try:
        yield chat_model.wait_ready(), encoder_model.wait_ready()
    finally:
        codes = [chat_model.stop(), encoder_model.stop()]
    assert codes == [0, 0]


@pytest.fixture(scope="module")
def chat(both: tuple[Worker, Worker]) -> Worker:
    return both[0]


@pytest.fixture(scope="module")
def encoder(both: tuple[Worker, Worker]) -> Worker:
    return both[1]


def events(body: str) -> list[dict[str, Any]]:
    """The frames of a stream; checks the framing and the end."""
    frames = body.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


# chat


def test_streamed_and_whole_answers_are_the_same(chat: Worker) -> None:
    with chat.sdk() as client:
        for seed in range(4):
            whole = client.chat.completions.create(model="any/name", messages=HELLO, max_tokens=40, seed=seed)  # type: ignore[arg-type]
            stream = client.chat.completions.create(
                model="any/name", messages=HELLO, max_completion_tokens=40, seed=seed, stream=True, stream_options={"include_usage": True}
            )  # type: ignore[call-overload]
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == whole.choices[0].message.content
            assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == [
                whole.choices[0].finish_reason
            ]
            assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
            assert whole.model == "any/name" and whole.id.startswith("chatcmpl-")
            assert whole.usage is not None and 0 < whole.usage.completion_tokens <= 40


def test_the_shape_of_chunks(chat: Worker) -> None:
    body = {"model": "m", "messages": HELLO, "max_tokens": 12, "n": 2, "seed": 5, "stream": True}
    plain = chat.post("/v1/chat/completions", body)
    assert plain.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in plain.headers
    chunks = events(plain.text)
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "m", "chat.completion.chunk")
    }
    assert not any("usage" in chunk for chunk in chunks)
    for index in (0, 1):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [choice["delta"].get("role") for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert all({"index", "delta", "finish_reason"} <= choice.keys() for choice in mine)
        assert [choice["finish_reason"] for choice in mine[:-1]] == [None] * (len(mine) - 1) and mine[-1]["finish_reason"]
    with_usage = events(chat.post("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}).text)
    assert all(chunk["usage"] is None for chunk in with_usage[:-1])
    assert with_usage[-1]["choices"] == [] and with_usage[-1]["usage"]["total_tokens"] > 0


def test_the_shape_of_a_whole_answer(chat: Worker) -> None:
    body = {"model": "m", "messages": HELLO, "max_tokens": 6, "n": 3, "logprobs": True, "top_logprobs": 2, "ignore_eos": True, "seed": 9}
    answer = chat.post("/v1/chat/completions", body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    for choice in answer["choices"]:
        assert choice["message"]["refusal"] is None and choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["content"]) == 6
        for entry in choice["logprobs"]["content"]:
            best = [top["logprob"] for top in entry["top_logprobs"]]
            assert len(best) == 2 and best == sorted(best, reverse=True) and entry["logprob"] <= best[0]
    counted = chat.post("/tokenize", {"messages": HELLO}).json()["count"]
    assert answer["usage"] == {"prompt_tokens": counted, "completion_tokens": 18, "total_tokens": counted + 18}
    assert chat.post("/v1/chat/completions", body).json()["choices"] == answer["choices"]


def test_stop_strings_never_leak(chat: Worker) -> None:
    body = {"model": "m", "messages": HELLO, "max_tokens": 60, "seed": 2, "ignore_eos": True}
    text = chat.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    tried = 0
    for start in range(5, len(text) - 5, 7):
        stop = text[start : start + 4]
        if "\ufffd" in stop:
            continue
        tried += 1
        answer = chat.post("/v1/chat/completions", body | {"stop": [stop, "never said"]}).json()["choices"][0]
        assert answer["message"]["content"] == text[: text.index(stop)] and answer["finish_reason"] == "stop"
        chunks = events(chat.post("/v1/chat/completions", body | {"stop": stop, "stream": True}).text)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text[: text.index(stop)]
    assert tried


def test_a_client_that_leaves_stops_the_generation(chat: Worker) -> None:
    before = len(chat.lines("generation cancelled"))

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=chat.url, timeout=30) as client:
            async with client.stream("POST", "/v1/chat/completions", json=LONG) as stream:
                async for _ in stream.aiter_lines():
                    break
            begun_s = time.monotonic()
            await client.post("/v1/chat/completions", json={"model": "m", "messages": HELLO, "max_tokens": 1})
            assert time.monotonic() - begun_s < 2
            assert (await chat.wait_line("generation cancelled", before + 1))["steps"] < 2000
            with pytest.raises(httpx.ReadTimeout):  # an unstreamed call is given up too
                await client.post("/v1/chat/completions", json=LONG | {"stream": False}, timeout=0.3)
            assert (await chat.wait_line("generation cancelled", before + 2))["steps"] < 4000

    asyncio.run(leave())


def test_waiting_requests_are_dropped_and_too_many_refused(chat: Worker) -> None:
    before = len(chat.lines("generation cancelled"))

    async def crowd() -> None:
        async with httpx.AsyncClient(base_url=chat.url, timeout=60) as client, contextlib.AsyncExitStack() as streams:
            running = await streams.enter_async_context(client.stream("POST", "/v1/chat/completions", json=LONG))
            await anext(running.aiter_lines())
            tasks = [asyncio.ensure_future(client.post("/v1/chat/completions", json=LONG)) for _ in range(4)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            (refused,) = (task.result() for task in done)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded" and refused.headers["retry-after"] == "1"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await running.aclose()
            async with asyncio.timeout(2):  # as soon as the worker has seen them go, there is room again
                one = {"model": "m", "messages": HELLO, "max_tokens": 1}
                while (await client.post("/v1/chat/completions", json=one)).status_code != 200:
                    await asyncio.sleep(0.01)

    asyncio.run(crowd())
    after_the_running_one = chat.lines("generation cancelled")[before + 1 :]
    assert all(line["steps"] < 100 for line in after_the_running_one)  # in line: never begun, or given up at once


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": []}, 400, "messages", "invalid_request"),
        ("/v1/chat/completions", {"messages": HELLO}, 400, "model", "invalid_request"),
        (
            "/v1/chat/completions",
            {"model": "m", "messages": HELLO, "temperature": 3, "stream": True},
            400,
            "temperature",
            "invalid_request",
        ),
        (
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": "hello " * 20_000}]},
            400,
            "messages",
            "context_length_exceeded",
        ),
        ("/v1/completions", {"model": "m", "prompt": [1, 99_999]}, 400, "prompt", "invalid_request"),
        ("/v1/embeddings", {"model": "m", "input": "x"}, 400, "model", "invalid_request"),
        ("/tokenize", {}, 400, "prompt", "invalid_request"),
        ("/nothing", {}, 404, None, "not_found"),
    ],
)
def test_refusals(chat: Worker, path: str, body: dict[str, Any], status: int, param: str | None, code: str) -> None:
    answer = chat.post(path, body, headers={"x-request-id": "mine-1"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code) and set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"] == "mine-1"
    if code == "context_length_exceeded":
        assert "maximum context length is" in error["message"]


def test_other_refusals(chat: Worker) -> None:
    assert httpx.get(chat.url + "/v1/completions").status_code == 405
    assert httpx.post(chat.url + "/v1/completions", content=b"{").status_code == 400
    too_big = httpx.post(chat.url + "/v1/completions", content=b" " * 33_000_000, timeout=30)
    assert too_big.status_code == 413 and too_big.json()["error"]["code"] == "request_too_large"
    begun_s = time.monotonic()
    huge = chat.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x y" * 8_000_000}]})
    assert huge.status_code == 400 and time.monotonic() - begun_s < 20


# completions


def test_completions_with_echo_and_log_probabilities(chat: Worker) -> None:
    """What evaluation harnesses send: ids in, log-probabilities of the prompt out."""
    prompts = ["create a key", "키는"]
    ids = [chat.post("/tokenize", {"prompt": prompt}).json()["tokens"] for prompt in prompts]
    body = {"model": "m", "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = chat.post("/v1/completions", body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, prompt, tokens in zip(answer["choices"], prompts, ids, strict=True):
        listed = choice["logprobs"]
        assert choice["text"].startswith(prompt) and len(listed["tokens"]) == len(tokens) + 1
        assert listed["token_logprobs"][0] is None and listed["top_logprobs"][0] is None
        assert listed["text_offset"] == sorted(listed["text_offset"])
        assert max(listed["top_logprobs"][-1].values()) == listed["token_logprobs"][-1]
    assert answer["usage"] == {"prompt_tokens": sum(map(len, ids)), "completion_tokens": 2, "total_tokens": sum(map(len, ids)) + 2}


def test_a_prompt_read_in_steps_scores_the_same(chat: Worker) -> None:
    """Prompts over 512 tokens are read in steps; the scores of the tail must not depend on where the cuts are."""
    tokens = [random.Random(4).randrange(3, 300) for _ in range(700)]
    body = {"model": "m", "max_tokens": 0, "echo": True, "logprobs": 0}
    whole = chat.post("/v1/completions", body | {"prompt": tokens}).json()["choices"][0]["logprobs"]["token_logprobs"]
    head = chat.post("/v1/completions", body | {"prompt": tokens[:500]}).json()["choices"][0]["logprobs"]["token_logprobs"]
    assert whole[1:500] == pytest.approx(head[1:], abs=1e-3)
    step = chat.post("/v1/completions", {"model": "m", "prompt": tokens[:-1], "max_tokens": 1, "logprobs": 20, "temperature": 0}).json()
    first = step["choices"][0]["logprobs"]["token_logprobs"][0]
    again = chat.post(
        "/v1/completions", {"model": "m", "prompt": tokens[:-1], "max_tokens": 1, "logprobs": 0, "echo": True, "temperature": 0}
    )
    assert again.json()["choices"][0]["logprobs"]["token_logprobs"][-1] == pytest.approx(first, abs=1e-3)


def test_completions_stream(chat: Worker) -> None:
    body = {"model": "m", "prompt": ["one", "two"], "n": 2, "seed": 3, "max_tokens": 10}
    whole = chat.post("/v1/completions", body).json()
    chunks = events(chat.post("/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}}).text)
    texts = ["", "", "", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert chunks[-1]["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


# tokenize


def test_tokenize_and_back(chat: Worker) -> None:
    rng = random.Random(6)
    pool = "abc XYZ(){};=\n\t가나다라 키를 😀👩‍👩‍👧🇰🇷é"
    with httpx.Client(base_url=chat.url) as client:
        for _ in range(100):
            text = "".join(rng.choice(pool) for _ in range(rng.randrange(1, 60)))
            answer = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
            assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 16_384
            assert client.post("/v1/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
        told = client.post("/v1/tokenize", json={"messages": HELLO, "return_token_strs": True}).json()
        assert told["token_strs"][0] == "<|im_start|>" and len(told["token_strs"]) == told["count"]
        shorter = client.post("/tokenize", json={"messages": HELLO, "add_generation_prompt": False}).json()
        assert client.post("/detokenize", json={"tokens": shorter["tokens"]}).json()["prompt"].endswith("<|im_end|>\n")


# embeddings


def test_embeddings_through_the_sdk(encoder: Worker) -> None:
    texts = ["short", "키를 만드는 방법은 무엇인가요?", "a much longer sentence about gateways, keys and weights", "x"]
    with encoder.sdk() as client:
        batched = client.embeddings.create(model="e", input=texts)  # base64 under the hood
        floats = client.embeddings.create(model="e", input=texts, encoding_format="float")
        singles = [client.embeddings.create(model="e", input=text).data[0].embedding for text in texts]
    for at, entry in enumerate(batched.data):
        assert entry.index == at
        assert entry.embedding == pytest.approx(floats.data[at].embedding, abs=1e-7)
        assert entry.embedding == pytest.approx(singles[at], abs=1e-3)
        assert sum(value * value for value in entry.embedding) == pytest.approx(1, abs=1e-5)
    tokens = [encoder.post("/tokenize", {"prompt": text}).json()["tokens"] for text in texts]
    assert batched.usage.prompt_tokens == batched.usage.total_tokens == sum(map(len, tokens))
    by_ids = encoder.post("/v1/embeddings", {"model": "e", "input": tokens}).json()
    assert by_ids["data"][1]["embedding"] == pytest.approx(floats.data[1].embedding, abs=1e-3)


def test_embedding_forms(encoder: Worker) -> None:
    whole = encoder.post("/v1/embeddings", {"model": "e", "input": "text"}).json()["data"][0]["embedding"]
    coded = encoder.post("/v1/embeddings", {"model": "e", "input": "text", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<32f", base64.b64decode(coded))) == pytest.approx(whole, abs=1e-7)
    short = encoder.post("/v1/embeddings", {"model": "e", "input": "text", "dimensions": 8}).json()["data"][0]["embedding"]
    length = sum(value * value for value in whole[:8]) ** 0.5
    assert short == pytest.approx([value / length for value in whole[:8]], abs=1e-5)
    many = encoder.post("/v1/embeddings", {"model": "e", "input": [f"text {at}" for at in range(2048)]}).json()["data"]
    assert [entry["index"] for entry in many] == list(range(2048))
    assert many[77]["embedding"] == pytest.approx(
        encoder.post("/v1/embeddings", {"model": "e", "input": "text 77"}).json()["data"][0]["embedding"], abs=1e-3
    )
    too_long = encoder.post("/v1/embeddings", {"model": "e", "input": "word " * 200})
    assert too_long.json()["error"]["code"] == "context_length_exceeded" and "is 100 tokens" in too_long.json()["error"]["message"]
    assert encoder.post("/v1/chat/completions", {"model": "e", "messages": HELLO}).json()["error"]["param"] == "model"


# the process


@pytest.mark.parametrize(
    ("make", "words"),
    [(without_weights, "model.safetensors is missing"), (pickle_only, "pytorch_model.bin is a pickle"), (Path, "does not exist")],
)
def test_a_model_that_cannot_be_loaded_is_one_sentence_and_code_3(tmp_path: Path, make: Any, words: str) -> None:
    folder = make(tmp_path / "model")
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "backends.worker", "--model", str(folder), "--status-fd", str(writing)],
        pass_fds=(writing,),
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(writing)
    with os.fdopen(reading) as status:
        told = [json.loads(line) for line in status]
    assert done.returncode == 3
    plain = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1 and words in plain[0] and "Traceback" not in done.stderr
    assert [line["state"] for line in told] == ["loading", "failed"] and told[-1]["reason"] == plain[0]


def test_it_answers_while_loading_and_ends_at_once_when_told_to(tmp_path: Path) -> None:
    worker = Worker(tiny_chat(tmp_path / "m"), tmp_path / "log", "--name", "only-this")
    try:
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            with contextlib.suppress(httpx.ConnectError):
                early = worker.post("/v1/chat/completions", {"model": "only-this", "messages": HELLO})
                break
        assert early.status_code == 503 and early.json()["error"]["code"] == "model_loading"
        assert int(early.headers["retry-after"]) > 0
        assert httpx.get(worker.url + "/health").status_code == 503
        worker.wait_ready()
        wrong = worker.post("/v1/chat/completions", {"model": "other", "messages": HELLO, "stream": True})
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
        with httpx.stream("POST", worker.url + "/v1/chat/completions", json=LONG | {"model": "only-this", "n": 16}, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            begun_s = time.monotonic()
            worker.process.terminate()
            rest = [line for line in lines if line]
        assert worker.process.wait(10) == 0 and time.monotonic() - begun_s < 4
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    finally:
        worker.process.kill()
        worker.process.wait()


class Answer:
    """A sink that can be awaited."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.error: BackendError | None = None
        self.over = asyncio.Event()

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self, by_close: bool) -> None:
        self.over.set()

    def on_error(self, error: BackendError) -> None:
        self.error = error
        self.over.set()


async def ask(backend: LocalBackend) -> Answer:
    answer = Answer()
    body = json.dumps({"model": "m", "messages": HELLO, "max_tokens": 3}).encode()
    backend.open().start(Call("m", "chat", "/chat/completions", body, (), 5.0), answer)
    async with asyncio.timeout(10):
        await answer.over.wait()
    return answer


@pytest.fixture
async def supervised(tmp_path: Path) -> AsyncIterator[tuple[LocalState, asyncio.Event]]:
    """One real model under the supervisor; the event is set at every change."""
    tiny_chat(tmp_path / "models" / "m")
    state, changed = LocalState(tmp_path / "local.json"), asyncio.Event()

    def on_change() -> None:
        state.reload()
        changed.set()

    models = LocalModels(tmp_path / "local.json", on_change, tmp_path / "models", None, device="cpu")
    await models.set_wanted([LocalSpec("m")])
    yield state, changed
    await models.close()


async def test_a_killed_worker_is_back_and_nobody_hangs(supervised: tuple[LocalState, asyncio.Event]) -> None:
    state, changed = supervised
    backend = LocalBackend("m", state)

    async def ready(limit_s: float, restarts: int) -> None:
        async with asyncio.timeout(limit_s):
            while not backend.ready or getattr(state.get("m"), "restarts", None) != restarts:
                changed.clear()
                await changed.wait()

    assert isinstance((await ask(backend)).error, NotReady)
    await ready(READY_S, restarts=0)
    assert (await ask(backend)).status == 200
    entry = state.get("m")
    assert entry is not None and entry.pid is not None
    async with httpx.AsyncClient() as stranger:
        refused = await stranger.get(f"http://127.0.0.1:{entry.port}/v1/models")
        assert refused.status_code == 401
    os.kill(entry.pid, signal.SIGKILL)
    heard = await ask(backend)
    assert isinstance(heard.error, BackendError)  # at once, whatever was known then
    await ready(READY_S, restarts=1)
    assert (await ask(backend)).status == 200
    await backend.close()


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "backends.worker", "--model", str(tiny_chat(tmp_path / "m")), "--parent-fd", str(reading)]
    worker = subprocess.Popen(command, pass_fds=(reading,), stderr=subprocess.DEVNULL)
    os.close(reading)
    assert worker.poll() is None
    os.close(writing)
    assert worker.wait(60) == 0
