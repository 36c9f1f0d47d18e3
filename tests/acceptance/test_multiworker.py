"""`--workers 2`: both server processes answer, know of every change, and add up; one that dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway_process import Gateway, gateway

pytestmark = pytest.mark.alone

IN_FORCE_S = 0.05
PATIENCE = aiohttp.ClientTimeout(total=20)
CONFIG = """
models:
  - id: m
    backends:
      - {{type: echo, id: a, weight: {a}}}
      - {{type: echo, id: b, weight: {b}}}
  - id: slow
    backends: [{{type: echo, chunk_delay_ms: 50}}]
"""
DRAIN_S = 2.0
BODY = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(
        tmp_path_factory.mktemp("workers"), CONFIG.format(a=1, b=0), arguments=("--workers", "2"), GATEWAY_DRAIN_S=str(DRAIN_S)
    ) as made:
        yield made


@pytest.fixture(scope="module")
def headers(running: Gateway) -> dict[str, str]:
    return {"authorization": f"Bearer {running.key('workers')}"}


def servers(running: Gateway) -> set[int]:
    return set(running.children("gateway.cli.server"))


async def ask(running: Gateway, headers: dict[str, str], body: dict[str, Any] = BODY) -> tuple[str, str]:
    """One request on a connection of its own: (which process answered, by its request ids; which backend)."""
    async with (
        aiohttp.ClientSession(running.url, headers=headers, timeout=PATIENCE) as http,
        http.post("/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return answer.headers["x-request-id"][4:20], (await answer.json())["system_fingerprint"]


async def many(running: Gateway, headers: dict[str, str], count: int) -> list[tuple[str, str]]:
    return list(await asyncio.gather(*(ask(running, headers) for _ in range(count))))


async def metric(running: Gateway, name: str, model: str) -> float:
    """The sum over all series of this name and model, as a scrape sees it."""
    async with aiohttp.ClientSession(running.url, timeout=PATIENCE) as http, http.get("/metrics") as answer:
        series = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", await answer.text(), re.MULTILINE)
    return sum(float(value) for labels, value in series if f'model="{model}"' in labels)


async def until_metric(running: Gateway, name: str, model: str, value: float) -> None:
    """Figures are handed over a few times a second."""
    deadline_s = time.monotonic() + 3
    while (found := await metric(running, name, model)) != value:
        assert time.monotonic() < deadline_s, f"{name} stays at {found}"
        await asyncio.sleep(0.05)


def test_each_process_has_a_queue_of_its_own(running: Gateway) -> None:
    """Two listening sockets on one port, each with its own backlog: the kernel spreads connections over them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row for row in rows if row[1] == f"0100007F:{running.port:04X}" and row[3] == "0A"]
    assert len(listening) == 2


async def test_both_processes_answer_and_the_metrics_add_up(running: Gateway, headers: dict[str, str]) -> None:
    assert len(servers(running)) == 2
    seen = await many(running, headers, 80)
    processes = Counter(process for process, _ in seen)
    assert len(processes) == 2, processes
    assert min(processes.values()) >= 10
    await until_metric(running, "gateway_requests_total", "m", 80)
    for _ in range(4):  # whichever process is asked
        assert await metric(running, "gateway_requests_total", "m") == 80
    told = await asyncio.to_thread(running.cli_json, "usage")
    assert [(row["requests"], row["prompt_tokens"]) for row in told] == [(80, 160)]


async def test_a_change_reaches_both(running: Gateway, headers: dict[str, str]) -> None:
    changed = running.home.parent / "changed.yaml"
    changed.write_text(CONFIG.format(a=0, b=1))
    assert {backend for _, backend in await many(running, headers, 20)} == {"echo-a"}
    await asyncio.to_thread(running.cli, "apply", "-f", str(changed))
    await asyncio.sleep(IN_FORCE_S)  # the promise is a time, so a time is what is waited
    seen = await many(running, headers, 60)
    assert {backend for _, backend in seen} == {"echo-b"}
    assert len({process for process, _ in seen}) == 2
    await asyncio.to_thread(running.cli, "rollback")
    await asyncio.sleep(IN_FORCE_S)
    assert {backend for _, backend in await many(running, headers, 40)} == {"echo-a"}


async def test_a_revoked_key_is_refused_by_both(running: Gateway) -> None:
    issued = await asyncio.to_thread(running.cli_json, "keys", "create", "--name", "gone")
    own = {"authorization": f"Bearer {issued['key']}"}
    await asyncio.sleep(IN_FORCE_S)
    assert len({process for process, _ in await many(running, own, 40)}) == 2
    await asyncio.to_thread(running.cli, "keys", "revoke", issued["id"])
    await asyncio.sleep(IN_FORCE_S)

    async def status() -> int:
        async with (
            aiohttp.ClientSession(running.url, headers=own, timeout=PATIENCE) as http,
            http.post("/v1/chat/completions", json=BODY) as answer,
        ):
            return answer.status

    assert set(await asyncio.gather(*(status() for _ in range(40)))) == {401}


async def test_a_killed_server_is_replaced_and_the_other_goes_on(running: Gateway, headers: dict[str, str]) -> None:
    before = servers(running)
    victim = min(before)
    slow = {"model": "slow", "messages": [{"role": "user", "content": "w " * 60}], "stream": True}
    outcomes: dict[str, bool] = {}
    begun = asyncio.Event()

    async def stream(http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/chat/completions", json=slow) as answer:
            request_id = answer.headers["x-request-id"]
            outcomes[request_id] = False
            if len(outcomes) == 20:
                begun.set()
            try:
                outcomes[request_id] = (await answer.read()).endswith(b"data: [DONE]\n\n")
            except aiohttp.ClientError:
                pass

    async with aiohttp.ClientSession(running.url, headers=headers, timeout=PATIENCE) as http:
        tasks = [asyncio.create_task(stream(http)) for _ in range(20)]
        await asyncio.wait_for(begun.wait(), 20)
        await until_metric(running, "gateway_requests_in_flight", "slow", 20)
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        await asyncio.gather(*tasks)
    by_process = Counter((request_id[4:20], whole) for request_id, whole in outcomes.items())
    assert len(by_process) == 2, "each process must have ended all of its streams one way"
    assert {whole for _, whole in by_process} == {True, False}

    # connections that wait in the dead one's queue are answered by its successor: nobody is refused
    assert len(await many(running, headers, 40)) == 40
    while victim in servers(running) or len(servers(running)) < 2:
        assert time.monotonic() < killed_s + 20
        await asyncio.sleep(0.05)
    assert before - {victim} < servers(running)
    seen = await many(running, headers, 60)
    assert len({process for process, _ in seen}) == 2
    await until_metric(running, "gateway_requests_in_flight", "slow", 0)  # the dead one's are not in flight for ever
    await until_metric(running, "gateway_requests_total", "m", 80 + 20 + 60 + 40 + 40 + 40 + 60)  # and what it had counted stays counted

    deadline_s = time.monotonic() + 10
    while True:  # a dead writer's open requests are settled once the keeper has noticed
        rows = [json.loads(line) for line in (await asyncio.to_thread(running.cli, "ledger", "export")).splitlines()]
        endings = {row["request_id"]: row["ending"] for row in rows}
        if all(request_id in endings for request_id in outcomes):
            break
        assert time.monotonic() < deadline_s
    assert {request_id: endings[request_id] == "success" for request_id in outcomes} == outcomes
    assert {endings[request_id] for request_id, whole in outcomes.items() if not whole} == {"interrupted"}
    assert len(rows) == len(endings)


async def test_what_waits_for_a_dead_server_is_answered_by_its_successor(running: Gateway, headers: dict[str, str]) -> None:
    """The supervisor holds the sockets: what the kernel has queued for a process outlives it, requests and all."""
    victim = min(servers(running))
    os.kill(victim, signal.SIGSTOP)  # it accepts nothing any more
    try:
        asked = [asyncio.create_task(ask(running, headers)) for _ in range(40)]
        done, waiting = await asyncio.wait(asked, timeout=1)
        assert done, "the other process answers nothing"
        assert waiting, "nothing waits for the stopped process"
    finally:
        os.kill(victim, signal.SIGKILL)
    assert len(await asyncio.gather(*asked)) == 40


async def test_nobody_is_refused_while_all_servers_are_dead(running: Gateway, headers: dict[str, str]) -> None:
    dead = servers(running)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    assert len(await many(running, headers, 20)) == 20
    await until_servers(running, dead)
    assert len({process for process, _ in await many(running, headers, 40)}) == 2


async def until_servers(running: Gateway, dead: set[int]) -> None:
    """Two servers run, none of them of `dead`."""
    deadline_s = time.monotonic() + 20
    while len(servers(running) - dead) < 2:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


async def test_a_limited_key_made_meanwhile_is_served_at_its_limit_and_not_at_twice_that(running: Gateway) -> None:
    key = {"authorization": f"Bearer {running.key('limited', '--rpm', '5')}"}
    await asyncio.sleep(IN_FORCE_S)

    async def status() -> int:
        async with (
            aiohttp.ClientSession(running.url, headers=key, timeout=PATIENCE) as http,
            http.post("/v1/chat/completions", json=BODY) as answer,
        ):
            return answer.status

    statuses = Counter(await asyncio.gather(*(status() for _ in range(40))))
    assert statuses == {200: 5, 429: 35}, statuses


async def test_a_stop_drains_all_of_it(running: Gateway, headers: dict[str, str]) -> None:
    """What ends within the drain time is whole, what does not is told; all is in the books; nobody new comes in; exit 0."""
    everything = [pid for pattern in ("gateway.cli.server", "gateway.keeper") for pid in running.children(pattern)]
    assert len(everything) == 3
    bodies: dict[str, tuple[int, bytes]] = {}
    begun = asyncio.Event()

    async def stream(http: aiohttp.ClientSession, words: int) -> None:
        body = {"model": "slow", "messages": [{"role": "user", "content": "w " * words}], "stream": True}
        async with http.post("/v1/chat/completions", json=body) as answer:
            request_id = answer.headers["x-request-id"]
            bodies[request_id] = (words, b"")
            if len(bodies) == 40:
                begun.set()
            bodies[request_id] = (words, await answer.read())

    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(running.url, headers=headers, timeout=PATIENCE, connector=connector) as http:
        short, long = 20, 200  # 1 s and 10 s
        tasks = [asyncio.create_task(stream(http, words)) for words in (short, long) * 20]
        await asyncio.wait_for(begun.wait(), 20)
        assert len({request_id[4:20] for request_id in bodies}) == 2
        stopped_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(running.stop))
        while True:
            try:
                await ask(running, headers)
            except aiohttp.ClientConnectorError:
                break
            except (aiohttp.ClientError, AssertionError):
                pass  # the door was not closed yet, or was while this one stood before it
            assert time.monotonic() < stopped_s + DRAIN_S
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        assert DRAIN_S - 0.1 < time.monotonic() - stopped_s < DRAIN_S + 2
        assert await stopping == 0
    assert not [pid for pid in everything if os.path.exists(f"/proc/{pid}")]
    for words, text in bodies.values():
        if words == short:
            assert text.endswith(b"data: [DONE]\n\n")
        else:
            last = json.loads(text.rstrip().rpartition(b"data: ")[2])
            assert last["error"]["code"] == "shutting_down", last
    rows = [json.loads(line) for line in running.cli("ledger", "export").splitlines()]
    endings = {row["request_id"]: row["ending"] for row in rows}
    assert len(endings) == len(rows)
    assert {i: endings[i] for i in bodies} == {i: "success" if words == short else "shutdown" for i, (words, _) in bodies.items()}
