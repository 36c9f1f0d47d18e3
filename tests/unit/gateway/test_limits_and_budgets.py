"""Limits and budgets of keys, users and teams as they are changed: what is in force then, and what was spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from auth.keys import digest
from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway import changes
from gateway.changes import Actor
from gateway.errors import Conflict, Forbidden, GatewayError, InvalidRequest
from gateway.limits.base import Refusal
from gateway.limits.shared import SharedLimiter
from gateway.metering.record import UsageRecord
from gateway.store import booking, keys, teams, trail
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.live import LiveTables
from gateway.store.spending import Spending
from gateway.store.teams import Team
from gateway.store.users import User
from tests.levels import own_levels

CLI = Actor(None, "cli")
COUNTS = {"rpm": 1, "tpm": 2, "rpd": 3, "tpd": 4, "concurrency": 5, "soft": 80}
MANY: dict[str, Any] = {**COUNTS, "budget": Budget(6, "day"), "token_budget": TokenBudget(7, "week")}
ALL = Limits(**MANY)


class World:
    """A team with a manager and a member, who has a key. `follow`: as a server does when something changes."""

    def __init__(self, db: Database, generation: Generation, live: LiveTables) -> None:
        self.db, self.generation, self.live = db, generation, live
        self.spending = Spending()
        self.levels = own_levels()
        self.limiter = SharedLimiter(self.levels, self.spending.spent)
        self.team: Team
        self.manager: User
        self.member: User
        self.key_id = self.text = ""

    def __getattr__(self, name: str) -> Any:
        function = getattr(changes, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await function(self.db, self.generation, *args, **kwargs)
            await self.live.catch_up(self.db, self.spending)
            return result

        return call

    def callers(self, text: str = "") -> tuple[Limited, ...]:
        record = self.live.key_by_digest(digest(text or self.text))
        assert record is not None
        return record.principal.callers

    def ask(self, cost_pusd: int, text: str = "", limiter: SharedLimiter | None = None) -> str:
        """ "" if it is admitted (and costs that), else the kind of the refusal and whose it is."""
        decision = (limiter or self.limiter).reserve(self.callers(text), 1, cost_pusd)
        if isinstance(decision, Refusal):
            return f"{decision.kind} {decision.whose}"
        decision.settle(1, cost_pusd)
        return ""

    async def book(self, **values: Any) -> None:
        row = asdict(UsageRecord(f"r{time.monotonic_ns()}", time.time(), "chat", self.key_id, self.member.id, "m", 1, team_id=self.team.id))
        async with self.db.write() as conn:
            await booking.insert_usage(conn, [row | values], "segment", 1)


@pytest.fixture
async def world(db: Database, generation: Generation) -> World:
    made = World(db, generation, await LiveTables.load(db))
    made.team = await made.create_team(CLI, name="own")
    made.manager = await made.create_user(CLI, email="manager@localhost", role="manager", team="own")
    made.member = await made.create_user(CLI, email="member@localhost", role="member", team="own")
    issued = await made.create_key(CLI, name="k", owner_id=made.member.id)
    made.key_id, made.text = issued.id, issued.key
    return made


@pytest.fixture
def boss(world: World) -> Actor:
    return Actor(world.manager.id, "api", login=True)


@pytest.fixture(params=["key", "user", "team"])
def whose(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    """Each test with it runs for the budgets of a key, of a user and of a team."""
    yield str(request.param)
    world.limiter.close()


async def change(world: World, whose: str, by: Actor, **fields: Any) -> Any:
    ids = {"key": world.key_id, "user": world.member.id, "team": world.team.id}
    return await getattr(world, f"update_{whose}")(by, ids[whose], fields)


async def reset(world: World, whose: str, by: Actor) -> Any:
    ids = {"key": world.key_id, "user": world.member.id, "team": world.team.id}
    return await getattr(world, f"reset_{whose}_budget")(by, ids[whose])


async def test_limits_are_set_stored_shown_and_in_force(world: World, whose: str) -> None:
    assert (await change(world, whose, CLI, **MANY)).limits == ALL
    assert [one.limits for one in world.callers() if one.limit_id == limit_id(world, whose)] == [ALL]
    again = await LiveTables.load(world.db)
    record = again.key_by_digest(digest(world.text))
    assert record is not None
    assert [one.limits for one in record.principal.callers if one.limit_id == limit_id(world, whose)] == [ALL]
    async with world.db.read() as conn:
        entry = (await trail.page(conn))[0]
    assert entry.entity == whose
    assert {name: entry.after[name] for name in MANY} == MANY | {"budget": "0.000000000006/day", "token_budget": "7/week"}
    await change(world, whose, CLI, **dict.fromkeys(MANY))
    assert [one.limits for one in world.callers() if one.limit_id == limit_id(world, whose)] == [Limits()]


def limit_id(world: World, whose: str) -> str:
    return {"key": world.key_id, "user": f"user:{world.member.id}", "team": f"team:{world.team.id}"}[whose]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rpd", 0), ("tpd", 2**63), ("token_budget", TokenBudget(-1)), ("token_budget", TokenBudget(1, "year")),
     ("token_budget", TokenBudget(10**15 + 1)), ("soft", 0), ("soft", 101), ("budget", Budget(-1)), ("rpm", 0)],
)  # fmt: skip
async def test_what_is_no_limit_is_refused_and_named(world: World, whose: str, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await change(world, whose, CLI, **{field: value})
    assert caught.value.param == field


async def test_what_was_spent_outlives_rotation_changes_and_being_disabled(world: World, whose: str) -> None:
    await change(world, whose, CLI, budget=Budget(100, "month"))
    assert world.ask(100) == ""
    refused = f"budget {whose}"
    assert world.ask(1) == refused
    text = (await world.rotate_key(CLI, world.key_id)).key
    assert world.ask(1, text) == refused
    await change(world, whose, CLI, rpm=50, soft=80)
    assert world.ask(1, text) == refused
    await change(world, whose, CLI, budget=Budget(150, "month"))
    assert (world.ask(51, text), world.ask(50, text)) == (refused, "")
    await world.disable_user(CLI, world.member.id)
    assert world.live.key_by_digest(digest(text)) is None
    await world.enable_user(CLI, world.member.id)
    assert world.ask(1, text) == refused
    await change(world, whose, CLI, budget=None)
    assert world.ask(7, text) == ""
    await change(world, whose, CLI, budget=Budget(157, "month"))
    assert world.ask(1, text) == refused, "what was spent meanwhile counts too"


async def test_a_budget_is_set_back(world: World, whose: str) -> None:
    """In every process that shares the levels, and after all of them have gone."""
    await change(world, whose, CLI, budget=Budget(100, "day"), token_budget=TokenBudget(1000))
    other = SharedLimiter(world.levels, world.spending.spent)
    assert world.ask(100) == ""
    await world.book(cost_pusd=100)
    for round_number in range(1, 4):
        assert world.ask(1) == world.ask(1, limiter=other) == f"budget {whose}"
        before = (await change(world, whose, CLI)).limits
        after = await reset(world, whose, CLI)
        assert (after.limits.budget, after.limits.token_budget) == (before.budget, before.token_budget)
        assert abs(after.limits.since - time.time()) < 10
        assert world.ask(60, limiter=other) == world.ask(40) == "", round_number
        await world.book(cost_pusd=100)
    async with world.db.read() as conn:
        await world.spending.read(conn, {one.limit_id: one.limits for one in world.callers()})
    started = SharedLimiter(own_levels(), world.spending.spent)  # all processes were gone, and their levels with them
    assert world.ask(1, limiter=started) == f"budget {whose}"
    await reset(world, whose, CLI)
    assert world.ask(100, limiter=started) == ""
    async with world.db.read() as conn:
        entries = [entry for entry in await trail.page(conn) if entry.action == "reset_budget"]
    assert [entry.entity for entry in entries] == [whose] * 4
    assert entries[0].before["budget_since"] < entries[0].after["budget_since"]
    started.close()


async def test_who_may_set_a_budget_back(world: World, boss: Actor, whose: str) -> None:
    with pytest.raises(Conflict, match="no budget"):
        await reset(world, whose, CLI)
    await change(world, whose, CLI, token_budget=TokenBudget(5))
    for actor in (boss, Actor(world.member.id, "api", login=True), Actor(None, "api", login=True)):
        with pytest.raises(Forbidden):
            await reset(world, whose, actor)
    await reset(world, whose, CLI)


async def test_a_revoked_key_has_no_budget_to_set_back(world: World) -> None:
    await world.update_key(CLI, world.key_id, {"budget": Budget(1)})
    await changes.revoke_key(world.db, world.generation, CLI, world.key_id)
    with pytest.raises(Conflict, match="revoked"):
        await world.reset_key_budget(CLI, world.key_id)


@pytest.mark.parametrize("whose", ["key", "user"])
@pytest.mark.parametrize(
    ("field", "set_to", "narrower", "wider"),
    [
        ("rpd", 10, [9], [11, None]),
        ("tpd", 10, [9], [11, None]),
        ("soft", 80, [50], [81, None]),
        ("token_budget", TokenBudget(10, "day"), [TokenBudget(9, "day"), TokenBudget(0, "day")],
         [TokenBudget(11, "day"), TokenBudget(9, "week"), TokenBudget(9), None]),
    ],
)  # fmt: skip
async def test_what_an_admin_has_set_a_manager_only_narrows(
    world: World, boss: Actor, whose: str, field: str, set_to: Any, narrower: list[Any], wider: list[Any]
) -> None:
    assert (await change(world, whose, CLI, **{field: set_to})).held == (field,)
    for value in wider:
        with pytest.raises(Forbidden, match=field):
            await change(world, whose, boss, **{field: value})
    for value in narrower:
        assert getattr((await change(world, whose, boss, **{field: value})).limits, field) == value
    assert (await change(world, whose, CLI, **{field: None})).held == ()
    assert getattr((await change(world, whose, boss, **{field: set_to})).limits, field) == set_to
    assert (await change(world, whose, boss, **{field: None})).limits == Limits()


async def test_a_manager_changes_no_limits_of_the_team(world: World, boss: Actor) -> None:
    for call in (
        world.update_team(boss, world.team.id, {"rpm": 1}),
        world.create_team(boss, name="mine", limits=Limits(rpm=1)),
        world.update_team(Actor(world.member.id, "api", login=True), world.team.id, {"rpm": 1}),
    ):
        with pytest.raises(Forbidden):
            await call
    with pytest.raises(InvalidRequest, match="no field"):
        await world.update_team(CLI, world.team.id, {"held": []})


async def test_limits_of_teams_follow_their_users(world: World) -> None:
    other = await world.create_team(CLI, name="other", limits=Limits(rpm=1))
    assert (await world.update_team(CLI, other.id, {"name": "others"})).limits == Limits(rpm=1)
    await world.set_team(CLI, world.member.id, "others")
    assert (world.ask(1), world.ask(1)) == ("", "requests team")
    await world.set_team(CLI, world.member.id, None)
    assert world.ask(1) == ""
    await world.delete_team(CLI, other.id)
    assert f"team:{other.id}" not in {one.limit_id for one in world.live.limited()}
    async with world.db.read() as conn:
        assert await teams.all_limits(conn) == {world.team.id: Limits()}


async def test_a_users_limit_binds_all_keys_and_logins_together(world: World) -> None:
    await world.update_user(CLI, world.member.id, {"rpm": 3})
    text = (await world.create_key(CLI, name="two", owner_id=world.member.id)).key
    login = world.live.user_by_id(world.member.id)
    assert login is not None
    assert (world.ask(0), world.ask(0, text)) == ("", "")
    assert not isinstance(world.limiter.reserve(login.principal.callers, 0, 0), Refusal)
    assert world.ask(0) == world.ask(0, text) == "requests user"


async def test_a_service_has_limits_of_all_its_keys(world: World) -> None:
    service = await world.create_service(CLI, name="robot", limits=Limits(rpm=1))
    texts = [(await world.create_key(CLI, name=name, owner_id=service.id)).key for name in ("a", "b")]
    assert (world.ask(0, texts[0]), world.ask(0, texts[1])) == ("", "requests user")
    with pytest.raises(GatewayError):
        await world.create_service(CLI, name="robot2", limits=Limits(rpm=0))


async def test_keys_carry_what_was_reset_through_every_other_change(world: World) -> None:
    await world.update_key(CLI, world.key_id, {"budget": Budget(5)})
    since = (await world.reset_key_budget(CLI, world.key_id)).limits.since
    await world.update_key(CLI, world.key_id, {"name": "other", "budget": Budget(9, "day")})
    await world.rotate_key(CLI, world.key_id)
    async with world.db.read() as conn:
        key = await keys.by_id(conn, world.key_id)
    assert key is not None
    assert (key.limits.since, key.limits.budget) == (since, Budget(9, "day"))
