"""What the relay does with several targets: health, failover, fallback models, shadow traffic, arms, and waiting for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from backends.custom import CustomBackend
from gateway.limits.slots import Slots
from gateway.routing.health import HealthBoard
from gateway.routing.policies import Canary, Shadow
from gateway.routing.policies.affinity import affinity_of
from gateway.routing.retries import RetryBudget
from gateway.routing.table import BackendSpec, Prices, Route, Target
from tests.faults.scene import InOrder
from tests.faults.scripts import answers, in_turn, resets, silence
from tests.relay_server import RelayServer, relay_server, route, target
from tests.upstream import Script, Seen, Upstream, Wire, chat_answer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
FINE = answers(chat_answer())
BROKEN = answers({"error": "x"}, 500)


class Place:
    """A relay, its scripted backends, and a client."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.board = HealthBoard()
        self.ups: dict[str, Upstream] = {}
        self.server: RelayServer
        self.http: httpx.AsyncClient

    async def target(self, name: str, script: Script, **more: Any) -> Target:
        up = self.ups[name] = await self._stack.enter_async_context(Upstream(script))
        found = target(CustomBackend(up.url, None), id=name, **more)
        return replace(found, health=self.board.of((BackendSpec("custom", base_url=up.url), "up")))

    async def serve(self, *routes: Route, **settings: Any) -> None:
        self.server = await self._stack.enter_async_context(relay_server(*routes, **({"health": self.board} | settings)))
        headers = {"authorization": f"Bearer {self.server.key}"}
        self.http = await self._stack.enter_async_context(httpx.AsyncClient(base_url=self.server.url, headers=headers))

    async def chat(self, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=CHAT | more)

    def asked(self, name: str) -> int:
        return len(self.ups[name].seen)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(stack)


def in_order(*targets: Target, **more: Any) -> Route:
    id = more.pop("id", "m")
    return replace(route(targets, id=id), policy=InOrder(), **more)


async def test_a_backend_that_fails_five_times_in_a_row_is_left_alone() -> None:
    async with place() as at:
        await at.serve(in_order(await at.target("a", BROKEN), await at.target("b", FINE)))
        for _ in range(9):
            assert (await at.chat()).status_code == 200
        assert (at.asked("a"), at.asked("b")) == (5, 9)
        records = await at.server.ledger.wait(9)
        assert [record.attempts for record in records] == [2] * 5 + [1] * 4


async def test_a_failing_backend_is_left_alone_by_streams_too() -> None:
    async with place() as at:
        await at.serve(in_order(await at.target("a", resets()), await at.target("b", answers_stream())))
        for _ in range(7):
            answer = await at.chat(stream=True)
            assert answer.text.endswith("data: [DONE]\n\n")
        assert (at.asked("a"), at.asked("b")) == (5, 7)


def answers_stream() -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await wire.end()

    return script


async def test_a_clients_own_mistakes_are_nothing_against_the_backend() -> None:
    async with place() as at:
        mistake = answers({"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}, 400)
        await at.serve(in_order(await at.target("a", mistake), await at.target("b", FINE)))
        for _ in range(12):
            assert (await at.chat()).status_code == 400
        assert (at.asked("a"), at.asked("b")) == (12, 0)
        assert at.board.troubled == 0


async def test_a_429_rests_the_target_as_long_as_it_says() -> None:
    async with place() as at:
        busy = in_turn(answers({"error": "slow down"}, 429, retry_after="60"), FINE)
        await at.serve(in_order(await at.target("a", busy), await at.target("b", FINE)))
        for _ in range(4):
            assert (await at.chat()).status_code == 200
        assert (at.asked("a"), at.asked("b")) == (1, 4)


async def test_when_all_rest_the_least_bad_is_tried() -> None:
    async with place() as at:
        long = in_turn(answers({"error": "x"}, 429, retry_after="200"), FINE)
        short = in_turn(answers({"error": "x"}, 429, retry_after="60"), FINE)
        await at.serve(in_order(await at.target("a", long), await at.target("b", short)))
        assert (await at.chat()).status_code == 429
        assert (await at.chat()).status_code == 200
        assert (at.asked("a"), at.asked("b")) == (1, 2)


async def test_another_model_serves_where_the_route_names_one() -> None:
    async with place() as at:
        dear = Prices(5_000_000, 5_000_000)
        first = in_order(await at.target("a", BROKEN), id="m", fallback="n", prices=Prices(1_000_000, 1_000_000))
        await at.serve(first, in_order(await at.target("b", FINE), id="n", prices=dear))
        for _ in range(7):
            answer = await at.chat()
            assert answer.status_code == 200
            assert answer.json()["model"] == "m"
        assert (at.asked("a"), at.asked("b")) == (5, 7)  # from the fifth failure on it is not even asked
        records = await at.server.ledger.wait(7)
        assert {(r.model, r.backend, r.cost_pusd) for r in records} == {("m", "n/b", 50_000_000)}


async def test_a_drained_model_falls_back_and_a_chain_ends() -> None:
    async with place() as at:
        drained = in_order(await at.target("a", FINE, weight=0), id="m", fallback="n")
        await at.serve(replace(drained, policy=Drained()), in_order(await at.target("b", BROKEN), id="n"))
        assert (await at.chat()).status_code == 502
        assert (at.asked("a"), at.asked("b")) == (0, 1)


class Drained:
    def order(self, targets: tuple[Target, ...], context: Any, rng: Any) -> tuple[Target, ...]:
        return ()


async def test_retries_have_a_budget() -> None:
    async with place() as at:
        none_left = RetryBudget(ratio=0.0)
        await at.serve(in_order(await at.target("a", BROKEN), await at.target("b", FINE), retries=none_left))
        assert (await at.chat()).status_code == 502
        assert (at.asked("a"), at.asked("b")) == (1, 0)


async def test_a_shadow_gets_a_copy_and_the_client_never_notices() -> None:
    async with place() as at:
        quiet = await at.target("shadow", silence(), weight=0)
        plan = Shadow(quiet, 1.0, 2)
        await at.serve(in_order(await at.target("a", FINE), shadow=plan))
        for _ in range(4):
            assert (await at.chat(temperature=0.3)).status_code == 200
        seen = await at.ups["shadow"].request(2)
        assert seen.json == CHAT | {"temperature": 0.3, "model": "up"}
        assert "authorization" not in seen.headers
        assert at.asked("shadow") == 2  # no more at once than the plan allows
        assert len(await at.server.ledger.wait(4)) == 4
        at.server.relay.meter.flush()
        counted = at.server.relay.meter.metrics.shadow_requests.labels("m", "shadow", "skipped")._value.get()
        assert counted == 2


async def test_a_shadow_is_compared() -> None:
    async with place() as at:
        other = chat_answer(text="a longer answer") | {"usage": {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}}
        await at.serve(in_order(await at.target("a", FINE), shadow=Shadow(await at.target("s", answers(other), weight=0), 1.0)))
        assert (await at.chat()).status_code == 200
        await at.ups["s"].request(1)
        metrics = at.server.relay.meter.metrics
        async with asyncio.timeout(5):
            while not metrics.shadow_requests.labels("m", "s", "ok")._value.get():
                await asyncio.sleep(0)
        tokens = {side: metrics.shadow_tokens.labels("m", "s", side)._value.get() for side in ("original", "shadow")}
        assert tokens == {"original": 3, "shadow": 9}


async def test_every_usage_record_names_its_arm() -> None:
    async with place() as at:
        a, b = await at.target("a", FINE), await at.target("b", FINE)
        canary = Canary((a, b), frozenset({"b"}), 50, affinity_of("user"), "m")
        await at.serve(replace(route([a, b]), policy=canary, arms=canary))
        for user in range(12):
            for _ in range(2):
                assert (await at.chat(user=f"u{user}")).status_code == 200
        records = await at.server.ledger.wait(24)
        assert {r.experiment for r in records} == {canary.name}
        assert {(r.arm, r.backend) for r in records} == {("stable", "a"), ("canary", "b")}
        assert all(first.arm == second.arm for first, second in zip(records[::2], records[1::2], strict=True))


class Gate:
    """A backend that answers when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, wire: Wire, seen: Seen) -> None:
        await self.open.wait()
        await wire.answer(chat_answer())


async def test_a_request_waits_for_a_slot_and_its_record_says_how_long() -> None:
    async with place() as at:
        gate = Gate()
        await at.serve(in_order(await at.target("a", gate)), slots=Slots(1, 5.0))
        first = asyncio.create_task(at.chat())
        await at.ups["a"].request(1)
        second = asyncio.create_task(at.chat())
        async with asyncio.timeout(5):
            while not at.server.relay.slots.waiting:
                await asyncio.sleep(0.001)
        assert at.asked("a") == 1
        gate.open.set()
        assert (await first).status_code == (await second).status_code == 200
        queued = [record.queue_ms for record in await at.server.ledger.wait(2)]
        assert queued[0] == 0 < queued[1]
        assert (at.server.relay.slots.running, at.server.relay.slots.waiting) == (0, 0)


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_who_waits_too_long_is_told_when_to_come_back(wait_s: float) -> None:
    async with place() as at:
        gate = Gate()
        await at.serve(in_order(await at.target("a", gate)), slots=Slots(1, wait_s))
        first = asyncio.create_task(at.chat())
        await at.ups["a"].request(1)
        refused = await at.chat()
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        gate.open.set()
        assert (await first).status_code == 200
        assert len(await at.server.ledger.wait(1)) == 1
        assert (await at.chat()).status_code == 200
        assert (at.server.relay.slots.running, at.server.relay.slots.waiting) == (0, 0)


async def test_a_client_that_leaves_the_line_is_in_no_ledger() -> None:
    async with place() as at:
        gate = Gate()
        await at.serve(in_order(await at.target("a", gate)), slots=Slots(1, 5.0))
        first = asyncio.create_task(at.chat())
        await at.ups["a"].request(1)
        gone = asyncio.create_task(at.chat())
        slots = at.server.relay.slots
        async with asyncio.timeout(5):
            while not slots.waiting:
                await asyncio.sleep(0.001)
            gone.cancel()
            while slots.waiting:
                await asyncio.sleep(0.001)
        gate.open.set()
        assert (await first).status_code == 200
        assert (await at.chat()).status_code == 200
        assert len(at.server.ledger.begun) == 2
        assert slots.running == 0
