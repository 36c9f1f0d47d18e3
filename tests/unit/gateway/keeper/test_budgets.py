"""Events of budgets: which, once each, and on their way until somebody takes them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from auth.principal import Budget, Limits, TokenBudget
from gateway import changes
from gateway.changes import Actor
from gateway.keeper.budgets import CLAIM_S, GIVE_UP_S, BudgetWatch
from gateway.keeper.webhook import Webhook
from gateway.metering.record import UsageRecord
from gateway.store import booking, budget_events
from gateway.store.engine import Database
from gateway.store.generation import Generation

CLI = Actor(None, "cli")
NOON = datetime(2026, 3, 11, 12, tzinfo=UTC).timestamp()
SECRET = "webhook secret of this test"


@dataclass
class Desk:
    """What the webhook was told; `refuse`: it is away."""

    refuse: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    tries: int = 0

    async def send(self, event_id: str, body: str) -> str:
        self.tries += 1
        if not self.refuse:
            self.told.append(json.loads(body))
            self.ids.append(event_id)
        return self.refuse


@dataclass
class World:
    db: Database
    generation: Generation
    desk: Desk = field(default_factory=Desk)
    now_s: float = NOON
    key_id: str = ""
    user_id: str = ""
    team_id: str = ""
    booked: int = 0

    def watch(self) -> BudgetWatch:
        """As of a keeper that has just started; it looks whenever it is asked to."""
        return BudgetWatch(self.db, self.desk, lambda: self.now_s, rest=0)

    async def spend(self, cost_pusd: int, tokens: int = 0, model: str = "m") -> None:
        self.booked += 1
        row = UsageRecord(f"r{self.booked}", self.now_s, "chat", self.key_id, self.user_id, model, 1, team_id=self.team_id)
        async with self.db.write() as conn:
            values = asdict(row) | {"cost_pusd": cost_pusd, "prompt_tokens": tokens}
            await booking.insert_usage(conn, [values], f"segment {self.booked}", 1)

    async def limit(self, whose: str, **fields: Any) -> None:
        ids = {"key": self.key_id, "user": self.user_id, "team": self.team_id}
        await getattr(changes, f"update_{whose}")(self.db, self.generation, CLI, ids[whose], fields)

    def news(self) -> list[tuple[str, str]]:
        """(type, whose) of what was told since the last call."""
        told, self.desk.told = self.desk.told, []
        return sorted((one["type"], one["whose"]) for one in told)


@pytest.fixture
async def world(db: Database, generation: Generation) -> World:
    team = await changes.create_team(db, generation, CLI, name="own")
    user = await changes.create_user(db, generation, CLI, email="m@localhost", role="member", team=team.id)
    key = await changes.create_key(db, generation, CLI, name="k", owner_id=user.id)
    return World(db, generation, key_id=key.id, user_id=user.id, team_id=team.id)


async def test_each_is_told_once_in_its_window(world: World) -> None:
    watch = world.watch()
    for whose in ("key", "user", "team"):
        await world.limit(whose, budget=Budget(10**12, "day"), soft=80)
    await watch.look()
    await world.spend(799_999_999_999)
    await watch.look()
    assert world.news() == []
    await world.spend(1)
    await watch.look()
    assert world.news() == [("budget.soft", "key"), ("budget.soft", "team"), ("budget.soft", "user")]
    await world.spend(2 * 10**11)
    for _ in range(3):
        await watch.look()
    await world.watch().look()  # a keeper that starts knows what was told
    assert world.news() == [("budget.spent", "key"), ("budget.spent", "team"), ("budget.spent", "user")]
    assert len(set(world.desk.ids)) == 6
    world.now_s += 86_400
    await watch.look()
    assert world.news() == [], "the window begins anew"
    await world.spend(10**12)
    await watch.look()
    assert len(world.news()) == 6


async def test_what_is_told(world: World) -> None:
    await world.limit("team", budget=Budget(2 * 10**12, "month"), soft=50)
    await world.limit("key", token_budget=TokenBudget(100))
    await world.spend(15 * 10**11, 120)
    await world.watch().look()
    money, tokens = sorted(world.desk.told, key=lambda told: str(told["unit"]), reverse=True)
    assert money == {
        "type": "budget.soft", "event": money["event"], "whose": "team", "id": world.team_id, "unit": "usd", "spent": "1.5", "amount": "2",
        "soft": 50, "window": "month", "since": "2026-03-01T00:00:00Z", "resets_at": "2026-04-01T00:00:00Z", "at": "2026-03-11T12:00:00Z",
    }  # fmt: skip
    assert tokens == {
        "type": "budget.spent", "event": tokens["event"], "whose": "key", "id": world.key_id, "unit": "tokens", "spent": 120, "amount": 100,
        "soft": None, "window": None, "since": None, "resets_at": None, "at": "2026-03-11T12:00:00Z",
    }  # fmt: skip
    assert set(world.desk.ids) == {money["event"], tokens["event"]}


async def test_a_changed_or_reset_budget_is_told_of_again(world: World) -> None:
    watch = world.watch()
    await world.limit("key", budget=Budget(10, "day"))
    await world.spend(10)
    await watch.look()
    await world.limit("key", budget=Budget(20, "day"))
    await watch.look()
    assert world.news() == [("budget.spent", "key")]
    await world.limit("key", budget=Budget(9, "day"))
    await watch.look()
    assert world.news() == [("budget.spent", "key")], "a lowered one is spent at once"
    await changes.reset_key_budget(world.db, world.generation, CLI, world.key_id)
    world.now_s = time.time() + 1
    await watch.look()
    assert world.news() == []
    await world.spend(9)
    await watch.look()
    assert world.news() == [("budget.spent", "key")]


async def test_a_models_budget_is_told_of_too(world: World) -> None:
    """Its id may have a colon."""
    watch = world.watch()
    await watch.look()
    limits = {"budget": "0.00000000001/day", "soft": 50}
    document = {"models": [{"id": "m:7b", "limits": limits, "backends": [{"type": "echo"}]}, {"id": "m", "backends": [{"type": "echo"}]}]}
    await changes.apply_revision(world.db, world.generation, CLI, document, note="")
    await world.spend(5)
    await watch.look()
    assert world.news() == []
    await world.spend(6, model="m:7b")
    await watch.look()
    (told,) = world.desk.told
    assert (told["type"], told["whose"], told["id"], told["spent"]) == ("budget.soft", "model", "m:7b", "0.000000000006")
    event = budget_events.stopped("model:m:7b", "budget", Limits(budget=Budget(10, "day"), soft=50), world.now_s)
    assert event is not None
    async with world.db.write() as conn:
        await budget_events.put(conn, [(event, "")], world.now_s)
    world.now_s += 3
    await world.watch().look()
    assert world.news() == [("budget.soft", "model"), ("budget.spent", "model")]


async def test_it_is_tried_until_it_is_taken(world: World) -> None:
    watch, desk = world.watch(), world.desk
    await world.limit("key", budget=Budget(10))
    await world.spend(10)
    desk.refuse = "unreachable"
    waits = []
    for _ in range(12):
        before, began_s = desk.tries, world.now_s
        while desk.tries == before:
            world.now_s += 0.5 + (world.now_s - began_s) / 30
            await watch.look()
        waits.append(world.now_s - began_s)
    assert waits[0] <= 1 < waits[3] < waits[6] < waits[8] <= 375
    assert max(waits) <= 375, "five minutes at most, and their spread"
    desk.refuse = ""
    world.now_s += 400
    await world.watch().look()
    assert world.news() == [("budget.spent", "key")]


async def test_who_does_not_take_it_for_a_week_is_given_up(world: World) -> None:
    watch = world.watch()
    await world.limit("key", budget=Budget(10))
    await world.spend(10)
    world.desk.refuse = "500"
    await watch.look()
    world.now_s += GIVE_UP_S + 1
    await watch.look()
    tries = world.desk.tries
    world.now_s += 3600
    await watch.look()
    assert world.desk.tries == tries == 2


async def test_a_keeper_that_dies_while_it_sends_leaves_it_to_the_next(world: World) -> None:
    await world.limit("key", budget=Budget(10))
    await world.spend(10)

    class Dies:
        async def send(self, event_id: str, body: str) -> str:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await BudgetWatch(world.db, Dies(), lambda: world.now_s).look()
    await world.watch().look()
    assert world.news() == [], "the first may be at it still"
    world.now_s += CLAIM_S + 1
    await world.watch().look()
    assert world.news() == [("budget.spent", "key")]


async def test_two_keepers_of_two_hosts_tell_it_once(world: World) -> None:
    await world.limit("key", budget=Budget(10), soft=10)
    await world.spend(10)
    await asyncio.gather(*(world.watch().look() for _ in range(4)))
    assert world.news() == [("budget.soft", "key"), ("budget.spent", "key")]


async def test_a_refused_request_tells_that_a_budget_is_spent(world: World) -> None:
    """Less is left than a request reserves: the books alone would never say that it is spent."""
    limits = Limits(budget=Budget(10, "day"))
    await world.limit("key", budget=limits.budget)
    await world.spend(7)
    event = budget_events.stopped(world.key_id, "budget", limits, world.now_s)
    assert event is not None
    for _ in range(2):  # two server processes
        async with world.db.write() as conn:
            await budget_events.put(conn, [(event, "")], world.now_s)
    watch = world.watch()
    await watch.look()
    assert world.news() == [], "not before the books hold what led to it"
    world.now_s += 3
    await watch.look()
    assert [(told["type"], told["spent"], told["amount"]) for told in world.desk.told] == [
        ("budget.spent", "0.000000000007", "0.00000000001")
    ]
    await world.spend(3)
    await watch.look()
    assert len(world.desk.told) == 1, "what was told is not told again"
    world.news()
    gone = budget_events.stopped(world.key_id, "budget", Limits(budget=Budget(11, "day")), world.now_s)
    assert gone is not None
    async with world.db.write() as conn:
        await budget_events.put(conn, [(gone, "")], world.now_s)
    world.now_s += 3
    await watch.look()
    assert world.news() == [], "it is another budget by now"


async def test_windows_that_are_long_over_are_forgotten(world: World) -> None:
    await world.limit("key", budget=Budget(10, "day"))
    await world.spend(10)
    await world.watch().look()
    world.now_s += 3 * 86_400
    await world.watch().look()
    async with world.db.read() as conn:
        left = await conn.run_sync(lambda sync: sync.exec_driver_sql("SELECT count(*) FROM budget_events").scalar())
    assert left == 0


class Receiver:
    """A real HTTP server that keeps what it was sent."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.status = 204

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.bodies.append(await reader.readexactly(int(fields["content-length"])))
        self.heads.append(fields)
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n" % self.status)
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?of=mine"
    server.close()
    await server.wait_closed()


async def test_what_is_sent_is_signed(receiver: tuple[Receiver, str]) -> None:
    made, url = receiver
    webhook = Webhook(url, SECRET, clock=lambda: NOON)
    assert await webhook.send("evt_1", '{"type":"größer"}') == ""
    await webhook.close()
    (head,), (body,) = made.heads, made.bodies
    assert json.loads(body) == {"type": "größer"}
    assert (head["content-type"], head["x-gateway-event"]) == ("application/json", "evt_1")
    at, digest = (part.partition("=")[2] for part in head["x-gateway-signature"].split(","))
    assert int(at) == int(NOON)
    assert digest == hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert SECRET not in str(head)


@pytest.mark.parametrize(("status", "says"), [(200, ""), (204, ""), (302, "302"), (404, "404"), (500, "500")])
async def test_any_2xx_has_taken_it(receiver: tuple[Receiver, str], status: int, says: str) -> None:
    made, url = receiver
    made.status = status
    webhook = Webhook(url, "")
    assert await webhook.send("evt_1", "{}") == says
    assert "x-gateway-signature" not in made.heads[0]
    await webhook.close()


@pytest.mark.parametrize(("url", "says"), [("http://169.254.169.254/latest", "forbidden"), ("http://127.0.0.1:9/", "unreachable")])
async def test_where_it_does_not_go(url: str, says: str) -> None:
    webhook = Webhook(url, "")
    assert await webhook.send("evt_1", "{}") == says
    await webhook.close()
