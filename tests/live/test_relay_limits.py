"""Limits as a client sees them."""

from __future__ import annotations

import asyncio

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.routing.table import Prices
from tests.faults.client import Answer
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import answers, silence
from tests.upstream import Seen, Wire, well_behaved


def rate_headers(answer: Answer) -> set[str]:
    return {name for name in answer.headers if name.startswith("x-ratelimit-")}


REQUESTS = {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}
TOKENS = {name.replace("requests", "tokens") for name in REQUESTS}


async def test_every_answer_to_a_limited_key_says_what_is_left() -> None:
    async with scene(well_behaved(), limits=Limits(rpm=5, tpm=100_000)) as stage:
        answers_seen = [
            await stage.chat(),
            await stage.chat(stream=True),
            await stage.post(b"not json"),
            await stage.post({"model": "other", "messages": [{}]}),
            await stage.post(b"x" * 1_000_001),
        ]
        assert [a.status for a in answers_seen] == [200, 200, 400, 404, 413]
        assert all(rate_headers(a) == REQUESTS | TOKENS for a in answers_seen)
        assert [a.headers["x-ratelimit-remaining-requests"] for a in answers_seen] == ["4", "3", "3", "3", "3"]


async def test_an_unlimited_key_hears_nothing_of_limits() -> None:
    async with scene(well_behaved(), answers({}, 500), limits=Limits()) as stage:
        for answer in (await stage.chat(), await stage.post(b"[]")):
            assert not rate_headers(answer)


async def test_requests_per_minute() -> None:
    async with scene(well_behaved(), limits=Limits(rpm=2)) as stage:
        assert [(await stage.chat()).status for _ in range(2)] == [200, 200]
        answer = await stage.chat(stream=True)
        assert (answer.status, answer.code, answer.json["error"]["type"]) == (429, "rate_limit_exceeded", "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "30"
        assert "x-should-retry" not in answer.headers
        assert rate_headers(answer) == REQUESTS
        assert len(stage.server.ledger.begun) == 2
        assert len(stage.up.seen) == 2


async def test_tokens_per_minute() -> None:
    async with scene(well_behaved(), limits=Limits(tpm=2000)) as stage:
        answer = await stage.chat(max_tokens=2001)
        assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in answer.headers
        assert (await stage.chat(max_tokens=1900)).status == 200
        await stage.calm()
        answer = await stage.chat(max_tokens=1900)
        assert answer.status == 200, "what was not used came back"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 200
        assert (await stage.chat(max_tokens=500, n=4)).headers["x-should-retry"] == "false"


async def test_concurrency() -> None:
    async with scene(silence(), limits=Limits(concurrency=2)) as stage:
        first, second = [await stage.send(CHAT) for _ in range(2)]
        await stage.up.request(2)
        answer = await stage.chat()
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        first.close()
        await stage.record()
        third = await stage.send(CHAT)
        await stage.up.request(3)
        second.close()
        third.close()


async def test_a_budget() -> None:
    prices = {"prices": Prices(10, 100)}
    async with scene(well_behaved(), limits=Limits(budget=Budget(5000)), fields=prices) as stage:
        assert (await stage.chat(max_tokens=20)).status == 200
        assert (await stage.record()).cost_pusd == 7 * 10 + 3 * 100
        answer = await stage.chat(max_tokens=40)
        assert (answer.status, answer.code, answer.json["error"]["type"]) == (429, "insufficient_quota", "insufficient_quota")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    async with scene(well_behaved(), limits=Limits(budget=Budget(10, "day")), fields=prices) as stage:
        assert 0 < int((await stage.chat()).headers["retry-after"]) <= 86_400


async def test_a_budget_in_tokens_and_its_warning() -> None:
    async with scene(well_behaved(), limits=Limits(token_budget=TokenBudget(40, "week"), soft=20)) as stage:
        answer = await stage.chat(max_tokens=10)
        assert (answer.status, "x-budget-warning" in answer.headers) == (200, False)
        record = await stage.record()
        assert record.prompt_tokens + record.completion_tokens == 10
        assert (await stage.post(b"[]")).headers["x-budget-warning"] == "key tokens 25%"
        refused = await stage.chat(max_tokens=31)
        assert (refused.status, refused.code, refused.headers["x-should-retry"]) == (429, "insufficient_quota", "false")
        assert refused.json["error"]["message"] == "The token budget of this key is spent."
        assert 0 < int(refused.headers["retry-after"]) <= 7 * 86_400
        assert refused.headers["x-budget-warning"] == "key tokens 25%"


async def test_everything_that_a_request_is_counted_under() -> None:
    model, user, team = Limited("model:m", Limits(rpd=4)), Limited("user:u", Limits(rpm=2)), Limited("team:t", Limits(rpm=3, tpd=100_000))
    async with scene(well_behaved(), limits=Limits(), fields={"limited": model}) as stage:
        keys = [stage.server.keys.issue(Limits(rpm=50), others=others) for others in ((user, team), (user, team), (team,), ())]
        answers_seen = []
        for which in (0, 1, 0, 1, 2, 2, 3, 3):
            stage.key = keys[which]
            answers_seen.append(await stage.chat())
        assert [answer.status for answer in answers_seen] == [200, 200, 429, 429, 200, 429, 200, 429]
        said = [answer.json["error"]["message"].partition(";")[0] for answer in answers_seen if answer.status == 429]
        assert said == [
            "The limit of requests per minute of this user is reached",
            "The limit of requests per minute of this user is reached",
            "The limit of requests per minute of this team is reached",
            "The limit of requests per day of this model is reached",
        ]
        assert [answers_seen[which].headers["retry-after"] for which in (2, 5, 7)] == ["30", "20", "21600"]
        assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers_seen[:2]] == ["2", "2"]
        assert rate_headers(answers_seen[0]) == REQUESTS | TOKENS
        stage.key = stage.server.keys.issue()
        assert (await stage.chat()).status == 429, "one without limits of its own"


async def test_the_reserved_limit_is_what_the_backend_is_told() -> None:
    fields = {"prices": Prices(1, 1), "max_output_tokens": 77}
    async with scene(well_behaved(), limits=Limits(budget=Budget(10**9)), fields=fields) as stage:
        await stage.chat()
        assert stage.up.seen[0].json["max_tokens"] == 77
        await stage.chat(max_tokens=None, metadata={"max_tokens": 10**6})
        assert stage.up.seen[1].json["max_tokens"] == 77
        await stage.chat(max_completion_tokens=5)
        assert "max_tokens" not in stage.up.seen[2].json


async def test_one_budget_over_many_requests_at_once() -> None:
    """Spent + reserved never passes it, however many ask at the same moment."""
    go = asyncio.Event()

    async def script(wire: Wire, seen: Seen) -> None:
        await go.wait()
        await well_behaved()(wire, seen)

    async with scene(script, limits=Limits(budget=Budget(1000)), fields={"prices": Prices(0, 10)}) as stage:
        clients = [await stage.send(CHAT | {"max_tokens": 30}) for _ in range(10)]
        await stage.up.request(3)
        go.set()
        statuses = sorted([(await client.answer()).status for client in clients])
        assert statuses == [200] * 3 + [429] * 7
        assert sum(r.cost_pusd for r in await stage.server.ledger.wait(3)) == 90


async def _remaining(stage: Scene) -> str:
    return (await stage.post(b"[]")).headers["x-ratelimit-remaining-tokens"]


async def test_every_ending_gives_the_unused_tokens_back() -> None:
    for script in (answers({}, 500), answers(b"x", 200), answers({"error": {}}, 400)):
        async with scene(script, limits=Limits(tpm=5000)) as stage:
            await stage.chat(max_tokens=4000)
            await stage.calm()
            assert await _remaining(stage) == "5000"
