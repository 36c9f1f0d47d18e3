"""Runs the fault matrix: every fault x every endpoint x streamed or not, alone and with a good second backend, all at once, under load.

One gateway in this process, one scripted backend on a real socket. Each case has a route, a client connection and a path prefix of its own,
so that what the backend saw of it is exactly known. Behind each case the same request is sent once more and must be answered well: over
the same client connection where that was kept, and to the backend over the same connection or a fresh one, as the table says.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from backends.custom import CustomBackend
from gateway.metering.record import UsageRecord
from gateway.routing.table import Route, Target
from tests.faults.calls import CALLS, Call
from tests.faults.client import Answer, Client
from tests.faults.scene import InOrder
from tests.faults.table import ANY, CLOSED, COMMENT, FAULTS, KEPT, Expected, Fault, flood_frames, flood_good, good
from tests.gateway_process import free_port
from tests.relay_server import RelayServer, relay_server, route, target
from tests.upstream import Script, Seen, Upstream, Wire, well_behaved

COARSE_S = 0.1  # the idle clock is wound from a clock that moves ten times a second
SLACK_S = 5.0  # a clock that ran out is acted on within this, however busy the machine
CLOSED_WITHIN_S = 3.0  # a backend that lingers behind [DONE] is given 1 s
HANGS_S = 40.0
AT_ONCE = 60
_PREFIX = re.compile(r"/(first|second)/(\d+)(/.*)")


@dataclass
class Case:
    """One cell of the matrix. `second`: a good backend stands behind the one that misbehaves."""

    fault: Fault
    call: Call
    second: bool
    number: int = 0
    seen: dict[str, list[Seen]] = field(default_factory=lambda: {"first": [], "second": []})

    @property
    def name(self) -> str:
        return f"{self.fault.name}: {self.call.name}{' (second)' if self.second else ''}"

    @property
    def model(self) -> str:
        return f"case-{self.number}"

    @property
    def expected(self) -> Expected:
        """With a second backend, what can be tried elsewhere looks well."""
        plain = self.fault.expected(self.call)
        assert plain is not None
        return replace(plain, status=200, code=None, ending="success", passes=None, headers={}) if self.second else plain

    def script(self, side: str) -> Script:
        play = self.fault.play
        if side == "second" or play is None or len(self.seen["first"]) > self.expected.sent:
            return good(self.call)
        return play(self.call)


def cases() -> list[Case]:
    """All cells, in order; what is tried elsewhere twice."""
    found = [Case(f, c, s) for f in FAULTS for c in CALLS.values() if f.expected(c) for s in ((False, True) if f.elsewhere else (False,))]
    for number, case in enumerate(found):
        case.number = number
    return found


class Matrix:
    """The gateway, the scripted backend, and the two addresses where nobody answers."""

    def __init__(self, server: RelayServer, up: Upstream, refused: str, deaf: str) -> None:
        self.server = server
        self.up = up
        self.nowhere = {"refused": refused, "deaf": deaf}
        self.cases: dict[int, Case] = {}
        self.load: Route | None = None
        self.pools: list[CustomBackend] = []
        self._records: dict[str, list[UsageRecord]] = {}  # by request id; of the ledger's list as far as `_indexed`
        self._indexed = 0

    async def script(self, wire: Wire, seen: Seen) -> None:
        """Dispatch on the path: which case is it, and which of its backends?"""
        found = _PREFIX.match(seen.path)
        assert found is not None
        case = self.cases[int(found[2])]
        case.seen[found[1]].append(seen)
        await case.script(found[1])(wire, seen)

    def prepare(self, wanted: list[Case]) -> None:
        """Fresh routes, targets and counts: nothing of an earlier round is remembered against a backend."""
        self.cases = {case.number: case for case in wanted}
        self.pools.clear()
        for case in wanted:
            case.seen = {"first": [], "second": []}
        assert self.load is not None
        self.server.set_routes(self.load, *[self._route(case) for case in wanted])

    def _route(self, case: Case) -> Route:
        root = self.up.url.removesuffix("/v1")
        first = self.nowhere.get(case.fault.where) or f"{root}/first/{case.number}/v1"
        urls = [first, f"{root}/second/{case.number}/v1"] if case.second else [first]
        targets: list[Target] = [target(url, id=f"b{at}", model=case.model) for at, url in enumerate(urls, 1)]
        self.pools += [t.backend for t in targets if isinstance(t.backend, CustomBackend)]
        made = route(targets, id=case.model, timeouts=case.fault.clocks, tokenizer="upstream")
        return replace(made, policy=InOrder())

    async def run(self, wanted: list[Case]) -> dict[str, list[str]]:
        """What is wrong with each case, by name; an empty list where nothing is."""
        self.prepare(wanted)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(case: Case) -> list[str]:
            found: list[str] = []
            async with gate:
                try:
                    async with asyncio.timeout(HANGS_S):
                        found.extend([fault async for fault in self._check(case)])
                except Exception as error:  # a fault like any other: the rest of the matrix is wanted too
                    found.append(repr(error))
            return found

        results = await asyncio.gather(*[one(case) for case in wanted])
        for pool in self.pools:
            await pool.close()
        return {case.name: faults for case, faults in zip(wanted, results, strict=True)}

    # one case

    async def _check(self, case: Case) -> AsyncIterator[str]:
        content_type, body = case.call.request(case.model)
        client = await Client.connect(self.server.port)
        try:
            started_s = time.monotonic()
            client.send(self._bytes(case, content_type, body))
            try:
                answer = await client.answer()
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                yield f"no answer: {error!r}"
                return
            taken_s = time.monotonic() - started_s
            for fault in (
                *_time(case.expected, taken_s),
                *_shape(case, answer),
                *self._ledger(case, answer),
                *_sent(case, body),
            ):
                yield fault
            if not case.second and case.fault.where == "script":
                async for fault in self._again(case, client, answer, self._bytes(case, content_type, body)):
                    yield fault
        finally:
            client.close()

    def _bytes(self, case: Case, content_type: str, body: bytes) -> bytes:
        head = f"POST {case.call.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.server.key}\r\n"
        return (head + f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n").encode() + body

    def _ledger(self, case: Case, answer: Answer) -> Iterator[str]:
        """Exactly one record, written before the last byte of the answer."""
        request_id = answer.headers.get("x-request-id", "")
        ended = self.server.ledger.ended
        for record in ended[self._indexed :]:
            self._records.setdefault(record.request_id, []).append(record)
        self._indexed = len(ended)
        records = self._records.get(request_id, [])
        if len(records) != 1:
            yield f"{len(records)} records of {request_id}"
            return
        record, expected = records[0], case.expected
        attempts = 2 if case.second else 1
        wanted = (expected.status, expected.ending, attempts, f"b{attempts}")
        is_ = (record.status, record.ending, record.attempts, record.backend)
        if is_ != wanted:
            yield f"record {is_}, not {wanted}"
        yield from _charged(case, record)

    async def _again(self, case: Case, client: Client, answer: Answer, request: bytes) -> AsyncIterator[str]:
        """The next request on this connection is answered well, and the backend's connection is as the table says."""
        expected = case.expected
        if answer.headers.get("connection") == "close":
            yield "the client's connection is not kept"
        if not answer.complete:
            if await client.rest():
                yield "bytes behind a cut answer"
            client.close()
            client = await Client.connect(self.server.port)
        first = case.seen["first"]
        if not first:
            return
        if expected.connection == CLOSED and not await _is_closed(first[-1]):
            yield "the connection to the backend was not closed"
        before = len(first)
        client.send(request)
        try:
            second = await client.answer()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            yield f"no second answer: {error!r}"
            return
        if (second.status, second.body) != (200, case.call.body):
            yield f"the second answer is {second.status} {second.body[:200]!r}"
            return
        connection = KEPT if first[before].connection == first[before - 1].connection else CLOSED
        if expected.connection not in (connection, ANY):
            yield f"the connection to the backend was not {expected.connection}"
        client.close()


async def _is_closed(seen: Seen) -> bool:
    """Has the gateway closed, or the script itself?"""
    waits = [asyncio.ensure_future(event.wait()) for event in (seen.closed, seen.over)]
    done, pending = await asyncio.wait(waits, timeout=CLOSED_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return bool(done)  # a script that is over left an open connection: the next request says whether it is used again


def _time(expected: Expected, taken_s: float) -> Iterator[str]:
    if taken_s < expected.after_s - COARSE_S:
        yield f"after {taken_s:.2f} s, before its clock"
    if taken_s > expected.after_s + SLACK_S:
        yield f"after {taken_s:.2f} s"


def _shape(case: Case, answer: Answer) -> Iterator[str]:
    """Status, headers, body."""
    expected, call = case.expected, case.call
    if answer.status != expected.status:
        yield f"status {answer.status} {answer.body[:300]!r}"
        return
    if b"10.1.2.3" in answer.body:
        yield "an address of the backend's"
    for name, value in expected.headers.items():
        if answer.headers.get(name) != value:
            yield f"{name}: {answer.headers.get(name)}"
    if expected.passes is not None:
        yield from _differs(answer.body, expected.passes)
    elif expected.status != 200:
        yield from _error(call, answer, expected)
    elif call.kind == "stream" and expected.content_type is None:
        yield from _stream(case, answer)
    else:
        yield from _whole(case, answer)


def _error(call: Call, answer: Answer, expected: Expected) -> Iterator[str]:
    if answer.headers["content-type"] != "application/json":
        yield f"type {answer.headers['content-type']}"
    try:
        value = orjson.loads(answer.body)
        error = value["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        yield f"not an error object: {answer.body[:200]!r}"
        return
    if error.keys() != {"message", "type", "param", "code"} or error["code"] != expected.code:
        yield f"error {error}"
    if call.protocol == "messages" and value.get("type") != "error":
        yield f"not as the messages protocol has it: {value}"


def _whole(case: Case, answer: Answer) -> Iterator[str]:
    expected, call = case.expected, case.call
    good_type = expected.content_type or call.content_type
    if answer.headers["content-type"] != good_type:
        yield f"type {answer.headers['content-type']}"
    wanted = flood_good(call) if expected.body == b"flood" and not case.second else call.good
    if expected.cut and not case.second:
        if answer.complete or not answer.body or not wanted.startswith(answer.body):
            yield f"not a beginning cut off: {answer.complete} {answer.body[:200]!r}"
        return
    if not answer.complete:
        yield "not complete"
    yield from _differs(answer.body, wanted)


def _stream(case: Case, answer: Answer) -> Iterator[str]:
    expected, call = case.expected, case.call
    if not answer.complete:
        yield "not complete"
    if answer.headers["content-type"].partition(";")[0] != "text/event-stream" or answer.headers.get("cache-control") != "no-cache":
        yield f"headers {answer.headers}"
    if case.second or (expected.events is None and expected.body is None):
        yield from _differs(answer.body, call.body)
        return
    frames = call.frames if expected.body != b"flood" else flood_frames(call)
    done = b"data: [DONE]\n\n" if call.has_done else b""
    if expected.code is None:
        count = expected.events if expected.events is not None else len(frames)
        yield from _differs(answer.body, b"".join(frames[:count]) + (expected.tail if expected.tail is not None else done))
        return
    rest = answer.body
    if expected.events == -1:  # any number of the second frame
        rest = rest.removeprefix(frames[0])
        while rest.startswith(frames[1]):
            rest = rest.removeprefix(frames[1])
    else:
        before = b"".join(frames[: expected.events])
        if not rest.startswith(before):
            yield f"not the events of the backend: {rest[:300]!r}"
            return
        rest = rest[len(before) :]
        while rest.startswith(COMMENT):
            rest = rest.removeprefix(COMMENT)
    yield from _error_event(call, rest, expected)


def _error_event(call: Call, event: bytes, expected: Expected) -> Iterator[str]:
    """Exactly one event, in the shape of its protocol."""
    lead = b"data: " if call.protocol == "openai" else b"event: error\ndata: "
    if not event.startswith(lead) or event.count(b"\n\n") != 1 or not event.endswith(b"\n\n"):
        yield f"not one error event: {event[:300]!r}"
        return
    value = orjson.loads(event[len(lead) : -2])
    error = value if call.protocol == "responses" else value["error"]
    if call.protocol != "openai" and value["type"] != "error":
        yield f"event {value}"
    if not error.keys() >= {"message", "type", "param", "code"} or error["code"] != expected.code:
        yield f"event {value}"


def _differs(is_: bytes, wanted: bytes) -> Iterator[str]:
    if is_ != wanted:
        at = next((n for n, (a, b) in enumerate(zip(is_, wanted, strict=False)) if a != b), min(len(is_), len(wanted)))
        yield f"{len(is_)} bytes, not {len(wanted)}; from {at}: {is_[at : at + 120]!r}, not {wanted[at : at + 120]!r}"


def _charged(case: Case, record: UsageRecord) -> Iterator[str]:
    """Nothing for what never was; the prompt where the backend may be at work; the backend's own numbers where it gave them."""
    expected, call = case.expected, case.call
    numbers = (record.prompt_tokens, record.completion_tokens)
    if expected.status != 200:
        if record.ttft_ms is not None:
            yield "a time to the first token"
        at_work = expected.ending == "timeout" and expected.sent
        generates = call.name.partition("-")[0] in ("chat", "completions")
        if (numbers[0] > 0) != bool(at_work) and (generates or not at_work):
            yield f"charged {numbers}"
    elif call.counts is not None and call.kind == "whole" and expected.body != b"flood" and numbers != call.counts:
        yield f"counted {numbers}, not {call.counts}"


def _sent(case: Case, body: bytes) -> Iterator[str]:
    """What the backends saw: how many requests, and each as the client wrote it but for what the gateway may add."""
    counts = {side: len(seen) for side, seen in case.seen.items()}
    wanted = {"first": case.expected.sent, "second": int(case.second)}
    if counts != wanted:
        yield f"the backends saw {counts}, not {wanted}"
    for seen in (*case.seen["first"], *case.seen["second"]):
        is_ = seen.body if seen.body == body or not case.call.has_done else orjson.loads(seen.body)
        if is_ != case.call.asked(body):
            yield f"the backend saw {seen.body[:200]!r}"
        known = seen.headers.get("authorization") == "Bearer upstream-secret"
        if not known or not seen.path.endswith(f"/{case.number}{case.call.upstream_path}"):
            yield f"the backend saw {seen.method} {seen.path} {seen.headers.get('authorization')}"
        if seen.headers["content-type"] != case.call.request("x")[0]:
            yield f"the backend saw the type {seen.headers['content-type']}"


# the load beside it


class Load:
    """Well-behaved clients of a well-behaved backend, all the while: every answer is checked byte for byte."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self.over = False  # asked to end. Not by cancelling: asyncio.wait_for of Python 3.11 swallows a cancellation that meets its result
        self._bodies: dict[bool, bytes] = {}

    def _request(self, stream: bool) -> bytes:
        body = orjson.dumps({"model": "load", "messages": [{"role": "user", "content": "hi"}], "stream": stream})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._server.key}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def run(self, pause_s: float) -> None:
        client = await Client.connect(self._server.port)
        stream = False
        try:
            while not self.over:
                stream = not stream
                client.send(self._request(stream))
                answer = await client.answer()
                wanted = self._bodies.setdefault(stream, answer.body)  # every answer of the backend is the same
                self.answers["stream" if stream else "whole"] += 1
                if answer.status != 200 or not answer.complete or answer.body != wanted or stream != answer.body.endswith(b"[DONE]\n\n"):
                    self.faults.append(f"{answer.status} {answer.complete} {answer.body[:200]!r}")
                await asyncio.sleep(pause_s)
        except Exception as error:  # a fault of the gateway, to be told like the others
            self.faults.append(repr(error))
        finally:
            client.close()


@contextlib.contextmanager
def nowhere() -> Iterator[tuple[str, str]]:
    """Two base URLs: one where connections are refused, one where they are never taken (its backlog is full)."""
    refused = free_port()
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{refused}/v1", f"http://127.0.0.1:{full.getsockname()[1]}/v1"


@dataclass
class Report:
    """One round."""

    results: dict[str, list[str]]
    load: Load
    seconds: float
    left_over: list[str]


async def rounds(count: int, wanted: list[Case], clients: int = 6, pause_s: float = 0.02) -> AsyncIterator[Report]:
    """Run the matrix again and again before one gateway, under load, and look for what is left over."""
    with nowhere() as (refused, deaf):
        async with Upstream(well_behaved()) as steady, Upstream() as up, relay_server(max_answer_bytes=2_000_000) as server:
            matrix = Matrix(server, up, refused, deaf)
            up.script = matrix.script
            matrix.load = route([target(steady.url, model="load")], id="load")
            server.set_routes(matrix.load)
            for _ in range(count):
                load = Load(server)
                started_s = time.monotonic()
                tasks = [asyncio.create_task(load.run(pause_s)) for _ in range(clients)]
                results = await matrix.run(wanted)
                seconds = time.monotonic() - started_s
                load.over = True
                await asyncio.gather(*tasks)
                yield Report(results, load, seconds, await _left_over(server))


async def _left_over(server: RelayServer) -> list[str]:
    """Once nobody asks any more: nothing in flight, every admission ended once, nothing held."""
    faults: list[str] = []
    for _ in range(400):
        begun, ended = Counter(r.request_id for r in server.ledger.begun), Counter(r.request_id for r in server.ledger.ended)
        checks: dict[str, Any] = {
            "in flight": server.relay.meter.running(),
            "held bytes": server.relay.held_bytes,
            "begun, not ended": list((begun - ended).elements())[:5],
            "ended twice": list((ended - begun).elements())[:5],
        }
        faults = [f"{name}: {value}" for name, value in checks.items() if value]
        if not faults:
            break
        await asyncio.sleep(0.01)
    return faults
