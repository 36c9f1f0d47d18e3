"""What a row says was used, where the backend did not say it, or not to the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from auth.principal import Limits
from gateway.metering.lines import end_line
from gateway.metering.record import FIELDS
from gateway.routing.table import Prices
from gateway.wire.tokens import Tokenizer
from tests.faults import scripts
from tests.faults.client import Client
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, STOP, answers, cut, frame, resets, stream
from tests.relay_server import NoTokenizers
from tests.tokenizer_folders import CHATML, byte_level_folder
from tests.upstream import Script, chat_chunk

PRICES = Prices(150_000, 600_000, 75_000)
SAID = ["How do I ", "create", " a key?", "\n\uac8c\uc774\ud2b8\uc6e8\uc774", " \U0001f600 ", "Use gateway", " keys create"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level_folder(tmp_path_factory.mktemp("counts"), CHATML))


def words(*texts: str) -> list[bytes]:
    return [frame(chat_chunk({"content": text})) for text in texts]


@asynccontextmanager
async def counting(
    tokenizer: Tokenizer | None, *answering: Script, pool: ThreadPoolExecutor | None = None, **fields: Any
) -> AsyncIterator[Scene]:
    source = NoTokenizers({"m": tokenizer} if tokenizer is not None else {}, pool or ThreadPoolExecutor(1))
    async with scene(*answering, model="m", limits=Limits(), fields={"prices": PRICES} | fields, tokenizers=source) as stage:
        yield stage
    source.pool.shutdown()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.002)


async def hear(client: Client, count: int) -> None:
    """Read until so many events are here."""
    await client.head()
    heard = b""
    while heard.count(b"\n\n") < count:
        heard += await client.chunk()


def prompt_tokens(tokenizer: Tokenizer) -> int:
    return tokenizer.count_chat(CHAT["messages"])  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [True, False], ids=["tokenizer", "no tokenizer"])
@pytest.mark.parametrize("count", [0, 1, 3, len(SAID)])
async def test_who_hangs_up_pays_for_what_came(tokenizer: Tokenizer, count: int, known: bool) -> None:
    said = SAID[:count]
    async with counting(tokenizer if known else None, stream(frame(ROLE), *words(*said), after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True})
        await hear(client, 1 + count)
        client.reset()
        record = await stage.record()
    assert (record.ending, record.status, record.price) == ("client_gone", 200, "0.15/0.6/0.075")
    if known:
        assert record.token_source == "tokenizer"
        assert record.completion_tokens == len(tokenizer.encode("".join(said), False))
        assert record.prompt_tokens == prompt_tokens(tokenizer)
    else:
        assert (record.token_source, record.completion_tokens) == ("estimate", count)
    assert record.cost_pusd == record.prompt_tokens * 150_000 + record.completion_tokens * 600_000


@pytest.mark.parametrize("streams", [True, False])
async def test_an_answer_without_usage_is_counted(tokenizer: Tokenizer, streams: bool) -> None:
    whole = {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"content": "".join(SAID)}}]}
    script = stream(frame(ROLE), *words(*SAID), frame(STOP), b"data: [DONE]\n\n") if streams else answers(whole)
    async with counting(tokenizer, script) as stage:
        answer = await stage.chat(stream=streams)
        assert answer.status == 200
        record = await stage.record()
    assert (record.ending, record.token_source) == ("success", "tokenizer")
    assert record.completion_tokens == len(tokenizer.encode("".join(SAID), False))
    assert record.prompt_tokens == prompt_tokens(tokenizer)


async def test_the_backends_own_count_goes_first(tokenizer: Tokenizer) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 5}, "completion_tokens_details": {"reasoning_tokens": 4}}
    usage = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 9, **details}}
    async with counting(tokenizer, stream(frame(ROLE), *words(*SAID), frame(STOP), frame(usage), b"data: [DONE]\n\n")) as stage:
        await stage.chat(stream=True)
        record = await stage.record()
    assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (12, 9, "backend")
    assert (record.cached_tokens, record.reasoning_tokens) == (5, 4)
    assert record.cost_pusd == 7 * 150_000 + 5 * 75_000 + 9 * 600_000


HALF: list[tuple[dict[str, Any], int | None, int | None]] = [
    ({"prompt_tokens": 11, "completion_tokens": None}, 11, None),
    ({"prompt_tokens": 11, "completion_tokens": "12"}, 11, None),
    ({"prompt_tokens": 11}, 11, None),
    ({"prompt_tokens": 11, "completion_tokens": 10**9 + 1}, 11, None),
    ({"prompt_tokens": -1, "completion_tokens": 5}, None, 5),
    ({"completion_tokens": 5}, None, 5),
    ({"prompt_tokens": 0, "completion_tokens": 0}, 0, 0),
]


@pytest.mark.parametrize("known", [True, False], ids=["tokenizer", "no tokenizer"])
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("usage", "prompt", "completion"), HALF)
async def test_a_side_that_the_backend_does_not_say_is_counted(
    tokenizer: Tokenizer, usage: dict[str, Any], prompt: int | None, completion: int | None, streams: bool, known: bool
) -> None:
    whole = {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"content": "".join(SAID)}}], "usage": usage}
    last = frame({"choices": [], "usage": usage})
    script = stream(frame(ROLE), *words(*SAID), frame(STOP), last, b"data: [DONE]\n\n") if streams else answers(whole)
    async with counting(tokenizer if known else None, script) as stage:
        await stage.chat(stream=streams)
        record = await stage.record()
    all_said = prompt is not None and completion is not None
    assert record.token_source == ("backend" if all_said else "tokenizer" if known else "estimate")
    if known:
        assert record.prompt_tokens == (prompt_tokens(tokenizer) if prompt is None else prompt)
        assert record.completion_tokens == (len(tokenizer.encode("".join(SAID), False)) if completion is None else completion)
    else:
        assert record.prompt_tokens == prompt or (prompt is None and record.prompt_tokens > 0)
        assert record.completion_tokens == completion or (completion is None and record.completion_tokens >= len(SAID))


@pytest.mark.parametrize("streams", [True, False])
async def test_a_cost_above_what_can_be_written_down_ends_as_any_other(streams: bool) -> None:
    """10,000 USD per million tokens, and a report of a billion of them."""
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": 10**9}}
    whole = {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"content": "x"}}]} | usage
    last = frame({"choices": []} | usage)
    script = stream(frame(ROLE), *words("x"), frame(STOP), last, b"data: [DONE]\n\n") if streams else answers(whole)
    async with counting(None, script, prices=Prices(10**10, 10**10)) as stage:
        answer = await stage.chat(stream=streams)
        assert answer.status == 200
        record = await stage.record()
        await stage.calm()
    assert (record.completion_tokens, record.cost_pusd, record.ending) == (10**9, 2**63 - 1, "success")
    assert len(end_line(*[getattr(record, name) for name in FIELDS])) > 100


async def test_words_of_all_kinds_count(tokenizer: Tokenizer) -> None:
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "they want ", "reasoning": "they want "},
        {"reasoning_content": "a key"},
        {"tool_calls": [{"index": 0, "function": {"name": "create_key", "arguments": '{"na'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'me": 1}'}}]},
        {"content": None, "refusal": "no."},
    ]
    other = chat_chunk({"content": "the other choice"})
    other["choices"][0]["index"] = 1
    frames = [frame(chat_chunk(delta)) for delta in deltas]
    async with counting(tokenizer, stream(frame(ROLE), *frames, frame(other), after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True, "n": 2})
        await hear(client, 7)
        client.close()
        record = await stage.record()
    texts = ("they want a key", "create_key", '{"name": 1}', "no.", "the other choice")
    assert record.completion_tokens == sum(len(tokenizer.encode(text, False)) for text in texts)


def typed(**value: Any) -> bytes:
    return f"event: {value['type']}\n".encode() + frame(value)


async def test_a_message_whose_count_is_of_its_beginning(tokenizer: Tokenizer) -> None:
    """Anthropic's first event reports one token of the answer; who leaves then has had more."""
    start = typed(
        type="message_start", message={"model": "m", "usage": {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1}}
    )
    block = typed(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
    deltas = [typed(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in SAID]
    async with counting(tokenizer, stream(start, block, *deltas, after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True, "max_tokens": 100}, "/v1/messages")
        await hear(client, 2 + len(SAID))
        client.close()
        record = await stage.record()
    assert (record.prompt_tokens, record.cached_tokens, record.token_source) == (30, 5, "tokenizer")
    assert record.completion_tokens == len(tokenizer.encode("".join(SAID), False))


async def test_a_response_that_breaks_off(tokenizer: Tokenizer) -> None:
    created = typed(type="response.created", sequence_number=0, response={"model": "m", "usage": None})
    deltas = [
        typed(type="response.output_text.delta", sequence_number=n, output_index=0, content_index=0, delta=text)
        for n, text in enumerate(SAID, 1)
    ]
    done = typed(type="response.output_text.done", sequence_number=9, output_index=0, content_index=0, text="".join(SAID))
    async with counting(tokenizer, stream(created, *deltas, done, after=cut)) as stage:
        await stage.post({"model": "m", "input": "hi", "stream": True}, "/v1/responses")
        record = await stage.record()
    assert record.ending == "upstream_error"
    assert record.completion_tokens == len(tokenizer.encode("".join(SAID), False))


LONG = ["\uac8c\uc774\ud2b8 keys " * 400] * 5


class Held:
    """A pool whose only thread is busy until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(self.go.wait)

    async def asked(self) -> None:
        """Somebody waits for the thread."""
        await until(lambda: self.pool._work_queue.qsize() > 0)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_long_text_is_counted_beside_the_loop(tokenizer: Tokenizer, leaves: bool) -> None:
    held = Held()
    script = stream(
        frame(ROLE), *words(*LONG), *([] if leaves else [frame(STOP), b"data: [DONE]\n\n"]), after=scripts.closed if leaves else None
    )
    async with counting(tokenizer, script, stream(b""), pool=held.pool) as stage:
        client = await stage.send(CHAT | {"stream": True}, more=["connection: close"])
        await hear(client, 1 + len(LONG))
        if leaves:
            client.close()
        await held.asked()
        assert not stage.server.ledger.ended
        held.go.set()
        record = await stage.record()
        if not leaves:
            assert (await client.rest()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert record.completion_tokens == len(tokenizer.encode("".join(LONG), False))
    assert (record.ending, record.token_source) == ("client_gone" if leaves else "success", "tokenizer")


async def test_who_leaves_while_it_is_counted_has_left(tokenizer: Tokenizer) -> None:
    held = Held()
    async with counting(tokenizer, stream(frame(ROLE), *words(*LONG), b"data: [DONE]\n\n"), pool=held.pool) as stage:
        client = await stage.send(CHAT | {"stream": True})
        await hear(client, 1 + len(LONG))
        await held.asked()
        client.reset()
        await until(lambda: not stage.server.edges)
        held.go.set()
        record = await stage.record()
        assert len(stage.server.ledger.ended) == 1
    assert record.ending == "client_gone"
    assert record.completion_tokens == len(tokenizer.encode("".join(LONG), False))


async def test_who_leaves_while_a_whole_answer_is_counted_has_got_nothing_of_it(tokenizer: Tokenizer) -> None:
    held = Held()
    whole = {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"content": "".join(LONG)}}]}
    async with counting(tokenizer, answers(whole), pool=held.pool) as stage:
        client = await stage.send(CHAT)
        await held.asked()
        client.reset()
        await until(lambda: not stage.server.edges)
        held.go.set()
        record = await stage.record()
    assert (record.ending, record.status) == ("client_gone", 499)
    assert record.completion_tokens == len(tokenizer.encode("".join(LONG), False))


async def test_what_waits_to_be_counted_is_weighed_and_bounded(tokenizer: Tokenizer) -> None:
    held = Held()
    async with counting(tokenizer, stream(frame(ROLE), *words(*LONG), after=scripts.closed), pool=held.pool) as stage:
        relay = stage.server.relay
        relay.most_counting = 1
        for number in (1, 2):
            client = await stage.send(CHAT | {"stream": True, "user": "x" * 20_000})
            await hear(client, 1 + len(LONG))
            client.reset()
            if number == 1:
                await until(lambda: len(relay.counting) == 1 and not stage.server.edges)
                assert relay.held_bytes > 20_000
        refused = await stage.record()
        assert refused.token_source == "estimate"
        held.go.set()
        records = await stage.server.ledger.wait(2)
        assert records[1].token_source == "tokenizer"
        assert not relay.held_bytes


async def test_a_count_has_a_deadline(tokenizer: Tokenizer) -> None:
    held = Held()
    async with counting(tokenizer, stream(frame(ROLE), *words(*LONG), after=scripts.closed), pool=held.pool) as stage:
        stage.server.relay.count_s = 0.05
        client = await stage.send(CHAT | {"stream": True})
        await hear(client, 1 + len(LONG))
        client.reset()
        record = await stage.record()
        assert not stage.server.relay.counting
        held.go.set()
    assert (record.ending, record.token_source) == ("client_gone", "estimate")


async def test_a_shutdown_waits_for_no_count(tokenizer: Tokenizer) -> None:
    held = Held()
    async with counting(tokenizer, stream(frame(ROLE), *words(*LONG), b"data: [DONE]\n\n"), pool=held.pool) as stage:
        client, gone = [await stage.send(CHAT | {"stream": True}) for _ in range(2)]
        for each in (client, gone):
            await hear(each, 1 + len(LONG))
        await until(lambda: len(stage.server.relay.counting) == 2)
        gone.reset()
        await until(lambda: len(stage.server.edges) == 1)
        for edge in list(stage.server.edges):
            edge.end_now()
        assert (await client.rest()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        for flow in list(stage.server.relay.counting):
            flow.hurry()
        records = await stage.server.ledger.wait(2)
        held.go.set()
        assert not stage.server.relay.counting
    assert sorted(record.ending for record in records) == ["client_gone", "success"]
    for record in records:
        assert record.token_source == "estimate"
        assert record.completion_tokens > len("".join(LONG).encode()) // 5


async def test_more_than_is_kept_is_counted_too(tokenizer: Tokenizer) -> None:
    """Past a bound only the words of events are kept."""
    said = [f" word {number}" for number in range(1500)]
    weighed = 0
    async with counting(tokenizer, stream(frame(ROLE), *words(*said), after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True})
        await hear(client, 1 + len(said))
        weighed = stage.server.relay.held_bytes
        client.close()
        record = await stage.record()
    assert weighed > 64_000
    assert record.completion_tokens == len(tokenizer.encode("".join(said), False))


async def test_attempts_that_failed_are_named() -> None:
    async with counting(
        None, resets(), answers({"error": "no"}, 503), stream(frame(ROLE), *words("a"), b"data: [DONE]\n\n"), max_attempts=3
    ) as stage:
        await stage.chat(stream=True)
        record = await stage.record()
    assert (record.backend, record.attempts, record.ending) == ("b3", 3, "success")
    tried = orjson.loads(record.tried or "")
    assert [(backend, outcome) for backend, outcome, _ in tried] == [("b1", tried[0][1]), ("b2", "503")]
    assert all(0 <= ms < 5000 for _, _, ms in tried)


async def test_the_attempt_that_broke_off_is_named_and_one_that_did_well_is_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    async with counting(tokenizer, stream(frame(ROLE), *words("a"), after=cut)) as stage:
        await stage.chat(stream=True)
        broken = await stage.record()
        stage.up.script = stream(frame(ROLE), *words("a"), b"data: [DONE]\n\n")
        await stage.chat(stream=True)
        well = await stage.record(2)
    assert [entry[0] for entry in orjson.loads(broken.tried or "")] == ["b1"]
    assert well.tried is None
