"""The composition root: what a server process knows when it starts, and how it follows changes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from auth.errors import SigningAway
from auth.keys import digest
from auth.principal import Budget, Limited, Limits
from auth.signing import generate
from gateway.app import LOST_WORD_S, Services
from gateway.changes import Actor, apply_revision, create_key, ensure_admin, revoke_key, update_key
from gateway.cli.relay_server import _serve
from gateway.limits.base import Refusal
from gateway.limits.shared import SharedLimiter
from gateway.metering.ledger import SEGMENT_BYTES, SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.metering.spool import Entry, finished
from gateway.settings import Settings
from gateway.store import booking, changelog, secrets, signing
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.migrate import migrate
from gateway.store.secrets import SecretBox
from gateway.store.tables import signing_keys

CLI = Actor(user_id=None, via="cli")
CENT = 10**10
DOCUMENT: dict[str, Any] = {"models": [{"id": "m", "policy": "weighted", "backends": [{"type": "echo", "weight": 1}]}]}


class House:
    """A home with an admin and a revision, and changes made to it by another process."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.db = Database(self.settings.database)
        self.generation = Generation(self.settings.run_dir / "generation")

    async def key(self, limits: Limits) -> str:
        return (await create_key(self.db, self.generation, CLI, name="k", limits=limits)).id

    async def close(self) -> None:
        self.generation.close()
        await self.db.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    await migrate(Settings(home=tmp_path / "home").database)
    made = House(tmp_path / "home")
    await ensure_admin(made.db, made.generation, CLI, email="a@b", password_hash="x")
    await apply_revision(made.db, made.generation, CLI, DOCUMENT)
    yield made
    await made.close()


@asynccontextmanager
async def serving(house: House) -> AsyncIterator[Services]:
    services = await Services.open(house.settings)
    following = asyncio.create_task(services.follow())
    try:
        yield services
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await services.close()


def used(key_id: str, cost_pusd: int, request_id: str = "req-1") -> UsageRecord:
    begun = UsageRecord(request_id, time.time(), "chat", key_id, "u", "m", 1)
    return replace(begun, status=200, ending="success", cost_pusd=cost_pusd)


async def in_force(services: Services, house: House) -> None:
    async with asyncio.timeout(5):
        while services.live.applied < house.generation.change:
            await asyncio.sleep(0.005)


def refused(services: Services, key_id: str, limits: Limits, cost_pusd: int) -> bool:
    decision = services.relay.limiter.reserve((Limited(key_id, limits),), 0, cost_pusd)
    if isinstance(decision, Refusal):
        return True
    decision.settle(0, 0)
    return False


async def test_a_budget_counts_what_a_killed_process_wrote_and_nobody_has_shipped(house: House) -> None:
    limits = Limits(budget=Budget(10 * CENT, "month"))
    key_id = await house.key(limits)
    writer = SegmentWriter(house.settings.run_dir / "ledger")
    writer.end(used(key_id, 8 * CENT))
    writer.close()
    async with serving(house) as services:
        assert not refused(services, key_id, limits, 2 * CENT)
        assert refused(services, key_id, limits, 3 * CENT)


async def test_a_budget_given_to_a_running_key_counts_what_the_window_has_seen(house: House) -> None:
    key_id = await house.key(Limits())
    async with house.db.write() as conn:
        await booking.insert_usage(conn, [asdict(used(key_id, 8 * CENT))], "segment", 1)
    limits = Limits(budget=Budget(10 * CENT, "month"))
    async with serving(house) as services:
        await update_key(house.db, house.generation, CLI, key_id, {"budget": limits.budget})
        await in_force(services, house)
        assert refused(services, key_id, limits, 3 * CENT)
        assert not refused(services, key_id, limits, 2 * CENT)


async def test_a_models_budget_counts_what_its_window_has_seen(house: House) -> None:
    def limited(budget: str | None) -> dict[str, Any]:
        limits = {} if budget is None else {"limits": {"budget": budget}}
        return {"models": [DOCUMENT["models"][0] | limits]}

    async def put(services: Services, budget: str | None) -> bool:
        """Is there room for three cents now?"""
        revision = await apply_revision(house.db, house.generation, CLI, limited(budget))
        async with asyncio.timeout(5):
            while services.relay.table.revision < revision.id:
                await asyncio.sleep(0.005)
        route = services.relay.table.routes["m"]
        callers = () if route.limited is None else (route.limited,)
        decision = services.relay.limiter.reserve(callers, 0, 3 * CENT)
        if isinstance(decision, Refusal):
            return False
        decision.settle(0, 0)
        return True

    await apply_revision(house.db, house.generation, CLI, limited("0.10/month"))
    writer = SegmentWriter(house.settings.run_dir / "ledger")
    writer.end(used("k", 8 * CENT))
    writer.close()
    async with serving(house) as services:
        assert not await put(services, "0.1/month")
        assert await put(services, "0.11/month")
        assert await put(services, None)
        assert not await put(services, "0.10/month"), "taken away and given back"


async def test_several_processes_count_together(house: House) -> None:
    limits = Limits(rpm=5, budget=Budget(10 * CENT, "day"))
    async with serving(house) as one, serving(house) as other:
        decisions = [services.relay.limiter.reserve((Limited("k", limits),), 0, CENT) for services in (one, other) * 4]
        assert sum(isinstance(decision, Refusal) for decision in decisions) == 3
        for decision in decisions:
            if not isinstance(decision, Refusal):
                decision.settle(0, 2 * CENT)
        assert refused(one, "k", replace(limits, rpm=None), CENT)
        assert refused(other, "k", replace(limits, rpm=None), CENT)


async def test_limits_in_force_are_put_again_by_processes_that_are_not_behind(house: House) -> None:
    new, old = Limits(rpm=10), Limits(rpm=100)
    key_id = await house.key(new)
    async with serving(house) as services:
        mine = (next(one for one in services.live.limited() if one.limit_id == key_id),)

        def rpm() -> bytes:
            return services._limiter.headers(mine).split(b"\r\n")[0]

        assert rpm() == b"x-ratelimit-limit-requests: 10"
        SharedLimiter(services._levels).headers((Limited(key_id, old),))  # another process, that is behind
        assert rpm() == b"x-ratelimit-limit-requests: 100"
        house.generation.set_change(services.live.applied + 1)  # it is behind itself
        await services._put_limits_again()
        assert rpm() == b"x-ratelimit-limit-requests: 100"
        services.live.applied += 1
        await services._put_limits_again()
        assert rpm() == b"x-ratelimit-limit-requests: 10"


async def test_with_an_older_copy_of_the_database_nobody_is_behind_for_ever(house: House) -> None:
    """What it does not have was announced all the same: unknown keys would be asked to come back without end."""
    async with serving(house) as services:
        house.generation.set_change(services.live.applied + 5)
        assert services.live.behind
        await services.catch_up()
        assert not services.live.behind


async def test_what_changed_while_a_process_loaded_is_in_force_at_its_first_connection(house: House) -> None:
    """The key is revoked while it loads; the client's request waits at the door before it serves."""
    issued = await create_key(house.db, house.generation, CLI, name="k")

    async def load(settings: Settings) -> Services:
        services = await Services.open(settings)
        await revoke_key(house.db, house.generation, CLI, issued.id)
        return services

    with socket.create_server(("127.0.0.1", 0)) as door:
        reader, writer = await asyncio.open_connection(*door.getsockname())
        body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {issued.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        serving = asyncio.create_task(_serve(house.settings, [door], load))
        async with asyncio.timeout(10):
            said = await reader.readline()
        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    assert said.split()[1] == b"401"


async def test_a_change_that_is_answered_is_in_force(house: House) -> None:
    async with serving(house) as one, serving(house) as other:
        await asyncio.sleep(0)  # both follow
        for number in range(20):
            issued = await create_key(house.db, house.generation, CLI, name=f"k{number}")
            assert all(services.live.key_by_digest(digest(issued.key)) for services in (one, other))


async def test_who_is_not_waited_for_has_every_change_in_force_when_it_asks(house: House) -> None:
    services = await Services.open(house.settings)
    following = asyncio.create_task(services.follow(60.0, waited_for=False))
    await asyncio.sleep(0)
    try:
        issued = await create_key(house.db, house.generation, CLI, name="k")
        assert services.live.key_by_digest(digest(issued.key)) is None, "the change was answered without it"
        assert await services.be_current()
        assert services.live.key_by_digest(digest(issued.key)) is not None
        await revoke_key(house.db, house.generation, CLI, issued.id)
        revision = await apply_revision(house.db, house.generation, CLI, DOCUMENT | {"defaults": {"temperature": 0.5}})

        async def seen() -> tuple[bool, int]:
            assert await services.be_current()
            return services.live.key_by_digest(digest(issued.key)) is not None, services.relay.table.revision

        assert set(await asyncio.gather(*(seen() for _ in range(20)))) == {(False, revision.id)}, "who comes second waits for the first"
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await services.close()


async def test_all_spending_is_read_anew(house: House) -> None:
    document = {"models": [DOCUMENT["models"][0] | {"limits": {"budget": "0.10/month"}}]}
    await apply_revision(house.db, house.generation, CLI, document)
    key_id = await house.key(Limits(budget=Budget(10 * CENT, "month")))
    async with serving(house) as services:
        async with house.db.write() as conn:
            await booking.insert_usage(conn, [asdict(used(key_id, 8 * CENT))], "segment", 1)
        assert [services._spending.spent(limit_id, "month")[0] for limit_id in (key_id, "model:m")] == [0, 0]
        await services._read_all_spending()
        assert [services._spending.spent(limit_id, "month")[0] for limit_id in (key_id, "model:m")] == [8 * CENT, 8 * CENT]


async def test_a_change_made_on_another_host_is_read_once(house: House, tmp_path: Path) -> None:
    """Its counter is in that host's memory: ours must catch up with the change log, or it is asked again every 10 ms."""
    elsewhere = Generation(tmp_path / "elsewhere" / "generation")
    async with serving(house) as services:
        key = await create_key(house.db, elsewhere, CLI, name="k")
        async with asyncio.timeout(LOST_WORD_S + 10):
            while services.live.applied < elsewhere.change:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert services.generation.change == services.live.applied
        await revoke_key(house.db, elsewhere, CLI, key.id)
    elsewhere.close()


STRANGE = SecretBox("k" * 10 + "0123456789abcdefghijklmnopqrs")


async def sealed_elsewhere(house: House, name: str, box: SecretBox = STRANGE) -> None:
    """A secret is stored by somebody who has another key than the servers."""
    async with house.db.write() as conn:
        await secrets.put(conn, box, name, "sk-upstream")
        change = await changelog.append(conn, "secret", name, "cli")
    house.generation.set_change(change)


async def signing_elsewhere(house: House) -> str:
    """The same of the key that signs login tokens; its id."""
    kid, material = generate("HS256")
    async with house.db.write() as conn:
        await signing.end_all(conn, time.time() + 60)
        await signing.add(conn, STRANGE, kid, "HS256", material, time.time())
        change = await changelog.append(conn, "signing_key", kid, "cli")
    house.generation.set_change(change)
    return kid


async def live_is(services: Services, revision_id: int) -> None:
    async with asyncio.timeout(10):
        while services.relay.table.revision < revision_id:
            await asyncio.sleep(0.005)


def targets(services: Services, model: str = "m") -> list[str]:
    return [target.id for target in services.relay.table.routes[model].targets]


def keyed(*others: dict[str, Any]) -> dict[str, Any]:
    backend = {"type": "custom", "base_url": "http://127.0.0.1:1/v1", "api_key": {"secret": "s"}}
    return {"models": [{"id": "m", "backends": [backend, {"type": "echo"}]}, *others]}


OTHER_MODEL: dict[str, Any] = {"id": "n", "backends": [{"type": "echo"}]}


async def test_what_a_secret_is_missing_for_comes_when_it_can_be_opened(house: House) -> None:
    """The rest of the revision does not wait for it; and nobody has to change anything a second time."""
    async with serving(house) as services:
        await sealed_elsewhere(house, "s")
        await live_is(services, (await apply_revision(house.db, house.generation, CLI, keyed())).id)
        assert targets(services) == ["echo-1"]
        async with house.db.write() as conn:
            await secrets.put(conn, services.box, "s", "sk-upstream")
        async with asyncio.timeout(10):
            while targets(services) != ["custom-1", "echo-1"]:
                await asyncio.sleep(0.02)


async def test_a_secret_that_no_backend_names_holds_up_no_revision(house: House) -> None:
    async with serving(house) as services:
        await sealed_elsewhere(house, "unused")
        await live_is(services, (await apply_revision(house.db, house.generation, CLI, {"models": [OTHER_MODEL]})).id)


async def test_what_could_be_opened_before_stays_in_use(house: House) -> None:
    """While the secret key is replaced another host may encrypt anew what this one uses: no backend is dropped for it."""
    async with serving(house) as services:
        await sealed_elsewhere(house, "s", services.box)
        await live_is(services, (await apply_revision(house.db, house.generation, CLI, keyed())).id)
        await sealed_elsewhere(house, "s")
        await live_is(services, (await apply_revision(house.db, house.generation, CLI, keyed(OTHER_MODEL))).id)
        assert targets(services) == ["custom-1", "echo-1"]
        assert services.relay.table.problems[0].startswith("The secret 's' cannot be opened")


async def test_what_cannot_be_opened_slows_no_change(house: House) -> None:
    key_ids = [await house.key(Limits()) for _ in range(6)]
    async with serving(house) as services:
        await sealed_elsewhere(house, "s")
        await signing_elsewhere(house)
        async with asyncio.timeout(10):
            while signs(services):
                await asyncio.sleep(0.005)
        began_s = time.monotonic()
        for key_id in key_ids:
            await revoke_key(house.db, house.generation, CLI, key_id)
            await in_force(services, house)
        assert time.monotonic() - began_s < 5, "each waited for the next look at what cannot be opened"


async def test_what_an_older_version_accepted_keeps_no_server_from_starting(house: House) -> None:
    """One backend at an address that is refused today: the rest of the revision serves, and the problem is said."""
    unfit = {"type": "custom", "base_url": "http://0.0.0.0:8000/v1"}
    models = [{"id": "m", "backends": [unfit, {"type": "echo"}]}, {"id": "n", "backends": [unfit]}]
    await apply_revision(house.db, house.generation, CLI, {"models": models})
    async with serving(house) as services:
        table = services.relay.table
        assert {name: [target.id for target in route.targets] for name, route in table.routes.items()} == {"m": ["echo-1"], "n": []}
        assert [problem.partition(":")[0] for problem in table.problems] == [
            "backend custom-1 of model m is left out",
            "backend custom-1 of model n is left out",
            "model n has no backend left",
        ]


def signs(services: Services) -> bool:
    try:
        services.control.tokens.require()
    except SigningAway:
        return False
    return True


async def test_a_signing_key_that_cannot_be_opened_stops_no_revision(house: House) -> None:
    """Logins wait for it, with 503; everything else goes on. When it can be opened again, so do they."""
    async with serving(house) as services:
        kid = await signing_elsewhere(house)
        revision = await apply_revision(house.db, house.generation, CLI, {"models": [{"id": "n", "backends": [{"type": "echo"}]}]})
        async with asyncio.timeout(10):
            while services.relay.table.revision < revision.id or signs(services):
                await asyncio.sleep(0.005)
        with pytest.raises(SigningAway):
            await services.control.login.login("a@b", "whatever")
        async with house.db.write() as conn:
            await conn.execute(signing_keys.delete().where(signing_keys.c.kid == kid))
        async with asyncio.timeout(10):
            while not signs(services):
                await asyncio.sleep(0.02)


async def test_a_server_starts_without_the_keys_that_it_cannot_open(house: House) -> None:
    await signing_elsewhere(house)
    await sealed_elsewhere(house, "s")
    await apply_revision(house.db, house.generation, CLI, keyed())
    async with serving(house) as services:
        assert targets(services) == ["echo-1"]
        assert services.relay.table.problems[0].startswith("The secret 's' cannot be opened")
        with pytest.raises(SigningAway):
            services.control.tokens.require()


async def test_nothing_looks_at_what_is_closed(house: House) -> None:
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(str(context)))
    async with serving(house):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert said == []


async def test_what_waits_in_the_ledger_is_in_the_metrics(house: House) -> None:
    house.settings = house.settings.model_copy(update={"ledger_fsync_ms": 1.0})
    async with serving(house) as services:
        services.ledger.begin(replace(used("k", 0, "req-9"), started_at=time.time() - 60), 1, 1)
        services._observe()
        assert services._looking is not None
        await services._looking
        text = services.control.metrics_text().decode()
        figures = dict(line.split() for line in text.splitlines() if line.startswith("gateway_ledger_"))
        assert figures["gateway_ledger_segments"] == "1.0"
        assert float(figures["gateway_ledger_waiting_bytes"]) > 50
        assert float(figures["gateway_ledger_disk_bytes"]) == SEGMENT_BYTES
        assert 60 <= float(figures["gateway_ledger_oldest_seconds"]) < 90


async def test_the_content_log_is_written_while_the_rest_is_closed(house: House) -> None:
    """It may take seconds, and leases that others wait for must not."""
    going = threading.Event()

    class Slow(Entry):
        def line(self, seal: Callable[[bytes], bytes], sealed_with: str) -> bytes:
            going.wait(10)
            return super().line(seal, sealed_with)

    services = await Services.open(house.settings)
    assert services.relay.contents is not None
    services.relay.contents.keep(Slow("req-1", time.time(), None, "u", None, "m", "chat", 200, "success"))
    closing = asyncio.create_task(services.close())
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="after shutdown"):
            while True:
                hashing = asyncio.create_task(services.control.passwords.hash("a password"))
                await asyncio.wait({hashing})
                if not hashing.cancelled():  # as one is that still stood in the queue
                    hashing.result()
    assert not closing.done()
    going.set()
    await closing
    (path,) = finished(house.settings.run_dir / "content")
    assert b"req-1" in path.read_bytes()
