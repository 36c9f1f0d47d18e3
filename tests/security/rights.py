"""What people who are no admins can come to hold by any sequence of calls: a state machine over the real API, on a socket.

A gang works together: it has the credentials of all its members, uses every credential that an answer hands it, and knows the id of
everything. In one machine it is a member, a viewer and a service, in another the manager of their team too. After every call the
database is compared with what the gang may have changed, and every new credential is tried on what it must not open. In the third machine
it has found one key of an admin, which is bound to networks, a model and an expiry: that it may do much, but comes to hold nothing wider.

    python -m tests.security.rights [STEPS]        10,000 if none are named: a third of them for each gang
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select

from auth.principal import Limits, Role
from gateway.changes import create_key, create_service, create_team
from gateway.changes.bounds import DISABLED
from gateway.keeper.ship import ship_once
from gateway.store import tables
from tests.security.inside import INIT, Inside, inside, prepared

STEPS_EACH = 50  # calls in a row, before a fresh gateway
_T = TypeVar("_T")
_HIDDEN = "hidden"  # in the name and address of everything that is not the gang's to see
_PEOPLE: dict[str, tuple[Role, str | None]] = {
    "manager": (Role.MANAGER, "ours"),
    "member": (Role.MEMBER, "ours"),
    "viewer": (Role.VIEWER, "ours"),
    "victim": (Role.MEMBER, "ours"),
    "hidden-manager": (Role.MANAGER, "hidden-team"),
    "hidden-member": (Role.MEMBER, "hidden-team"),
    "hidden-admin": (Role.ADMIN, None),
    "careful-admin": (Role.ADMIN, None),
}
_LIMITS = Limits(rpm=500)
_MAY = frozenset({"inference", "usage"})
_FOUND_SCOPES = ("admin", "inference")  # of the key that somebody has found
_FOUND_NETWORK = "127.0.0.0/8"
_KEY = re.compile(r"sk-gw-[a-z0-9]{12}-[A-Za-z0-9]{43}")
# What must not open, whatever the gang holds.
_CLOSED = (
    "/admin/contents",
    "/admin/revisions",
    "/admin/audit",
    "/admin/secrets",
    "/admin/backends",
    "/admin/prices",
    "/admin/audit/export",
)

_ROLES = st.sampled_from(["admin", "manager", "member", "viewer"])
_SCOPES = st.lists(st.sampled_from(["inference", "usage", "metrics", "admin", "content"]), min_size=1, max_size=3)
_COUNT = st.sampled_from([None, 1, 10**9])
_PASSWORD = st.sampled_from(["seven bright lanterns 42", "quiet harbour morning 77"])
_NUMBER = st.integers(0, 59)
_GET = st.sampled_from(
    [
        "/admin/users",
        "/admin/keys?revoked=true",
        "/admin/teams",
        "/auth/keys?revoked=true",
        "/auth/me",
        "/v1/models",
        "/v1/usage?by=key",
        "/admin/users?search=hidden",
        "/admin/keys?search=hidden",
        "/admin/users?limit=500&team={team}",
        "/admin/users/{user}",
        "/admin/keys/{key}",
        "/admin/keys?owner={user}",
        "/admin/keys?team={team}",
        "/admin/teams/{team}",
        "/v1/usage?user={user}",
        "/admin/usage?by=key",
        "/admin/usage?by=user",
        "/admin/usage?user={user}",
        "/admin/usage?key={key}",
        "/admin/users?after={user}",
        "/admin/keys?after={key}",
        "/admin/contents/{key}?reason=curious",
        *_CLOSED,
    ]
)
_USER_CHANGE = st.fixed_dictionaries(
    {},
    optional={"role": _ROLES, "team": st.sampled_from(["{team}", None]), "disabled": st.booleans(), "rpm": _COUNT, "name": st.just("x")},
)
_MODELS = st.sampled_from([["*"], ["m"], ["m", "other"], ["m*"]])
_NETWORKS = st.sampled_from([[], ["127.0.0.1"], ["127.1.0.0/16"], ["0.0.0.0/0"]])
_EXPIRES = st.sampled_from([None, "1h", "30d"])
_REACH: dict[str, st.SearchStrategy[Any]] = {"models": _MODELS, "networks": _NETWORKS, "expires": _EXPIRES}
_KEY_CHANGE = st.fixed_dictionaries({}, optional={"scopes": _SCOPES, "rpm": _COUNT, **_REACH})
_WITHIN = st.fixed_dictionaries({"models": st.just(["m"]), "networks": st.just(["127.0.0.1"]), "expires": st.just("1h")})
_NEW_KEY = st.builds(
    lambda key, reach: key | reach,
    st.fixed_dictionaries({"name": st.just("k"), "scopes": _SCOPES}, optional={"owner": st.just("{user}"), "rpm": _COUNT}),
    st.one_of(_WITHIN, st.fixed_dictionaries({}, optional=_REACH)),
)
_DOCUMENT = {"models": [{"id": "mine", "backends": [{"type": "echo"}]}]}
# (method, path, body): `{user}`, `{key}`, `{team}`, `{link}` stand for one that is drawn.
_CALLS = st.one_of(
    _GET.map(lambda path: ("GET", path, None)),
    st.tuples(st.just("PATCH"), st.just("/admin/users/{user}"), _USER_CHANGE),
    st.tuples(
        st.just("POST"),
        st.just("/admin/users"),
        st.fixed_dictionaries(
            {"email": _NUMBER.map("new{}@example.com".format), "role": _ROLES},
            optional={"team": st.just("{team}"), "password": _PASSWORD, "rpm": _COUNT},
        ),
    ),
    st.tuples(
        st.just("POST"),
        st.just("/admin/service-accounts"),
        st.fixed_dictionaries({"name": _NUMBER.map("svc{}".format), "role": _ROLES}, optional={"team": st.just("{team}")}),
    ),
    st.tuples(st.just("POST"), st.just("/admin/users/{user}/password"), st.fixed_dictionaries({"password": _PASSWORD})),
    st.tuples(st.just("POST"), st.just("/admin/users/{user}/password-link"), st.none()),
    st.tuples(st.just("POST"), st.just("/admin/keys"), _NEW_KEY),
    st.tuples(st.just("PATCH"), st.just("/admin/keys/{key}"), _KEY_CHANGE),
    st.sampled_from(["/admin/keys/{key}/rotate", "/admin/keys/{key}/revoke", "/auth/keys/{key}/rotate", "/auth/keys/{key}/revoke"]).map(
        lambda path: ("POST", path, {"grace_s": 60} if path.endswith("rotate") else None)
    ),
    st.tuples(
        st.just("POST"),
        st.just("/admin/keys/import"),
        st.fixed_dictionaries({"name": st.just("i"), "key": st.just("imported-key-of-forty-characters-0123456789"), "scopes": _SCOPES}),
    ),
    st.sampled_from(
        [
            ("POST", "/admin/teams", {"name": "another"}),
            ("PATCH", "/admin/teams/{team}", {"name": "renamed"}),
            ("DELETE", "/admin/teams/{team}", None),
            ("POST", "/admin/revisions", {"document": _DOCUMENT}),
            ("POST", "/admin/revisions/rollback", {}),
            ("PUT", "/admin/secrets/name", {"value": "v"}),
            ("DELETE", "/admin/secrets/name", None),
            ("DELETE", "/admin/contents?reason=to+hide+it&user_id={user}", None),
            ("POST", "/auth/password", {"password": "guessed password 123", "new_password": "quiet harbour morning 77"}),
            ("POST", "/auth/password/reset", {"token": "{user}.none-such", "new_password": "quiet harbour morning 77"}),
        ]
    ),
)


@dataclass
class World:
    """What there is in the home that every run begins with. `held`: the texts of the gang's keys, by the name of whose they are."""

    home: Path
    users: dict[str, str] = field(default_factory=dict)
    teams: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)


async def build(home: Path) -> World:
    world = World(home)
    await prepared(home)
    async with inside(home.with_name("building"), home) as own:
        db, generation = own.services.db, own.services.generation
        for team in ("ours", "hidden-team"):
            world.teams[team] = (await create_team(db, generation, INIT, name=team)).id
        for name, (role, team_of) in _PEOPLE.items():
            user = await own.person(name, role, name=f"{name}-name", team=team_of, limits=_LIMITS)
            world.users[name] = user.id
            world.held[name] = await own.key(f"{name}-key", user, scopes=["usage"], limits=_LIMITS)
            if name.startswith(_HIDDEN):
                world.held[f"{name}-used"] = await own.key(f"{name}-used", user)
                await _use(own, world.held[f"{name}-used"])
        world.users["robot"] = (await create_service(db, generation, INIT, name="robot", team="ours")).id
        issued = await create_key(db, generation, INIT, name="robot-key", owner_id=world.users["robot"], scopes=["usage"], limits=_LIMITS)
        world.held["robot"] = issued.key
        issued = await create_key(
            db, generation, INIT, name="found", owner_id=world.users["careful-admin"], scopes=_FOUND_SCOPES, models=["m"],
            networks=[_FOUND_NETWORK], expires_at=time.time() + 86_400,
        )  # fmt: skip
        world.held["found"] = issued.key
        world.keys = [text.split("-")[2] for text in world.held.values()]
    shutil.rmtree(home)
    home.with_name("building").rename(home)
    return world


async def _use(own: Inside, key: str) -> None:
    """So that there is something to be seen in the usage."""
    async with own.client(key) as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert await ship_once(own.services.db, own.services.settings.run_dir)


class Gang(RuleBasedStateMachine):
    """One run. What it may change is said in `_check`."""

    members: ClassVar[tuple[str, ...]] = ()
    world: ClassVar[World]
    loop: ClassVar[asyncio.AbstractEventLoop]
    calls: ClassVar[int] = 0
    granted: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="rights-"))
        self._stack = AsyncExitStack()
        self._own: Inside = self._run(self._stack.enter_async_context(inside(self._folder / "home", self.world.home)))
        self._http: httpx.AsyncClient = self._run(self._stack.enter_async_context(self._own.client()))
        self._users, self._teams = list(self.world.users.values()), list(self.world.teams.values())
        self._keys = list(self.world.keys)
        self._links: list[str] = []
        self._far = {self.world.users[name] for name in _PEOPLE if name.startswith(_HIDDEN)}
        self._far |= {text.split("-")[2] for name, text in self.world.held.items() if name.startswith(_HIDDEN)}
        self._credentials: list[str] = []
        self._before = self._run(self._state())
        self._begin()

    def _begin(self) -> None:
        """With the credentials of all members."""
        for name in self.members:
            record = self._own.services.live.user_by_id(self.world.users[name])
            assert record is not None
            self._credentials += [self._own.services.control.tokens.issue(record), self.world.held[name]]

    @property
    def managing(self) -> bool:
        return "manager" in self.members

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self._run(self._stack.aclose())
        shutil.rmtree(self._folder)

    @rule(call=_CALLS, who=_NUMBER, one=_NUMBER, near=st.booleans(), login=st.booleans())
    def ask(self, call: tuple[str, str, Any], who: int, one: int, near: bool, login: bool) -> None:
        """Any call, with any credential that is held, about anything there is. `near`: about their own team."""
        method, path, body = call
        users, keys = (self._near(self._users), self._near(self._keys)) if near else (self._users, self._keys)
        chosen = {
            "{user}": users[one % len(users)],
            "{key}": keys[one % len(keys)],
            "{team}": self._teams[0 if near else one % len(self._teams)],
        }
        credentials = [text for text in self._credentials if text.startswith("eyJ") or not login] or self._credentials
        for mark, value in chosen.items():
            path = path.replace(mark, value)
        if isinstance(body, dict):
            body = {name: chosen.get(value, value) if isinstance(value, str) else value for name, value in body.items()}
        self._send(method, path, body, credentials[who % len(credentials)])

    def _near(self, ids: list[str]) -> list[str]:
        """Without the strangers of the beginning."""
        return [id for id in ids if id not in self._far]

    @precondition(lambda self: self._links)
    @rule(password=_PASSWORD)
    def use_a_link(self, password: str) -> None:
        """Whose password it sets is in the link; whoever logs in with it is then the gang's."""
        link = self._links.pop()
        body = {"token": link, "new_password": password}
        if not self._send("POST", "/auth/password/reset", body, None).is_success:
            return
        email = self._run(self._state())["users"][link.split(".")[0]]["email"]
        answer = self._send("POST", "/auth/login", {"email": email, "password": password}, None)
        if answer.status_code == 200:
            self._hold(answer.json()["access_token"])

    def _send(self, method: str, path: str, body: Any, credential: str | None) -> httpx.Response:
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        answer = self._run(self._http.request(method, path, json=body, headers=headers))
        type(self).calls += 1
        type(self).granted += answer.is_success
        assert answer.status_code < 500, (method, path, answer.text)
        self._look(method, path, answer)
        for text in _KEY.findall(answer.text):
            self._hold(text)
            self._keys.append(text.split("-")[2])
        if answer.is_success and path.endswith("/password-link"):
            self._links.append(answer.json()["token"])
        if method != "GET":
            self._run(self._check())
        return answer

    def _look(self, method: str, path: str, answer: httpx.Response) -> None:
        """What no answer may hold."""
        assert _HIDDEN not in answer.text, (method, path, answer.text)
        assert not any(id in answer.text for id in self._far), (method, path, answer.text)
        if path.startswith(_CLOSED):
            assert answer.status_code in (401, 403), (method, path, answer.text)

    def _hold(self, credential: str) -> None:
        """A new credential: whatever it is, it opens nothing that only admins have."""
        self._credentials.append(credential)
        for path in _CLOSED:
            answer = self._run(self._http.get(path, headers={"authorization": f"Bearer {credential}"}))
            assert answer.status_code in (401, 403), (path, answer.text)

    async def _check(self) -> None:
        now, before = await self._state(), self._before
        self._check_rest(now, before)
        for user_id, user in now["users"].items():
            self._check_user(user, before["users"].get(user_id))
            if user_id not in self._users:
                self._users.append(user_id)
        assert before["users"].keys() <= now["users"].keys()
        for key_id, key in now["keys"].items():
            self._check_key(key, before["keys"].get(key_id), now["users"])
        assert before["keys"].keys() <= now["keys"].keys()
        self._before = now

    def _check_rest(self, now: dict[str, Any], before: dict[str, Any]) -> None:
        for part in ("revisions", "secrets", "teams", "live"):
            assert now[part] == before[part], part

    def _check_user(self, user: dict[str, Any], before: dict[str, Any] | None) -> None:
        manageable = self.managing and user["team_id"] == self.world.teams["ours"] and user["role"] in ("member", "viewer")
        if before is None:
            assert manageable, ("made", user)
            assert user["password_hash"] is None
            return
        changed = {name for name in user if user[name] != before[name] and name not in ("last_login_at", "token_epoch")}
        if not changed:
            return
        assert manageable, ("changed", user, before)
        assert before["role"] in ("member", "viewer")
        assert not changed & {"team_id", "kind", "email", "id", "held"}, changed
        assert not _widened(before["held"], user, before), (user, before)
        if DISABLED in before["held"]:
            assert user["disabled_at"] is not None

    def _check_key(self, key: dict[str, Any], before: dict[str, Any] | None, people: dict[str, dict[str, Any]]) -> None:
        """Members and viewers: rotate and revoke their own, nothing else. Managers: whatever, within their team, what they hold, and what
        an admin has set; their own they do not widen.
        """
        owner = people[key["user_id"]]
        theirs = key["user_id"] in {self.world.users[name] for name in self.members}
        managed = self.managing and owner["team_id"] == self.world.teams["ours"] and owner["role"] in ("member", "viewer")
        managed = managed or (self.managing and theirs)
        if before is None:
            assert managed, ("made", key)
            assert set(key["scopes"]) <= _MAY, key
            return
        changed = {name for name in key if key[name] != before[name]}
        assert not changed or theirs or managed, ("changed", key, before)
        if not managed:
            assert changed <= {"revoked_at", "digests"}, ("changed", changed, key)
            assert before["revoked_at"] is None or key["revoked_at"] is not None
        if key["scopes"] != before["scopes"]:
            assert set(key["scopes"]) <= _MAY, key
        assert key["user_id"] == before["user_id"]
        assert key["held"] == before["held"]
        assert not _widened(("rpm", "networks") if theirs else before["held"], key, before), (key, before)

    async def _state(self) -> dict[str, Any]:
        """All that decides rights, as it stands in the database."""
        async with self._own.services.db.read() as conn:
            people = {row["id"]: dict(row) for row in (await conn.execute(select(tables.users))).mappings()}
            keys = {row["id"]: dict(row) for row in (await conn.execute(select(tables.api_keys))).mappings()}
            for row in (await conn.execute(select(tables.api_key_digests))).mappings():
                keys[row["key_id"]].setdefault("digests", []).append(row["digest"])
            teams = sorted((await conn.execute(select(tables.teams.c.id, tables.teams.c.name))).all())
            counts = {
                name: (await conn.execute(select(func.count()).select_from(table))).scalar_one()
                for name, table in (("revisions", tables.revisions), ("secrets", tables.secrets))
            }
            live = (await conn.execute(select(tables.live_revision.c.revision_id))).scalars().all()
        for key in keys.values():
            key["digests"] = sorted(key.get("digests", []))
        return {"users": people, "keys": keys, "teams": teams, "live": live, **counts}


def _widened(names: Iterable[str], now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Those of these in which somebody was given more: said anew, and more simply than the code under test says it."""
    counts = [n for n in names if n in ("rpm", "tpm", "concurrency") and before[n] is not None and (now[n] is None or now[n] > before[n])]
    return counts + [n for n in names if n == "networks" and before[n] and not now[n]]


class MembersAndViewers(Gang):
    members = ("member", "viewer", "robot")


class WithTheirManager(Gang):
    members = ("manager", "member", "viewer", "robot")


class WithAFoundKey(Gang):
    """The key is an admin's, and narrowed: whatever is done with it, no password is set, nobody made, enabled or raised, and no key learnt
    that is wider."""

    members = ()

    def _begin(self) -> None:
        self._credentials.append(self.world.held["found"])
        self._far = set()

    def _look(self, method: str, path: str, answer: httpx.Response) -> None:
        if path.endswith("/password-link"):
            assert not answer.is_success, answer.text

    def _hold(self, credential: str) -> None:
        self._credentials.append(credential)

    def _check_rest(self, now: dict[str, Any], before: dict[str, Any]) -> None:
        """The scope admin is for these."""

    def _check_user(self, user: dict[str, Any], before: dict[str, Any] | None) -> None:
        if before is None:
            assert user["password_hash"] is None, ("made", user)
            assert user["role"] in ("member", "viewer"), ("made", user)
            assert user["kind"] == "service", ("made", user)
            return
        assert user["kind"] == "service" or user["disabled_at"] or not before["disabled_at"], ("enabled", user)
        assert user["password_hash"] in (None, before["password_hash"]), ("password", user)
        assert user["role"] in ("member", "viewer", before["role"]), ("raised", user, before)

    def _check_key(self, key: dict[str, Any], before: dict[str, Any] | None, people: dict[str, dict[str, Any]]) -> None:
        found = self._before["keys"][self.world.held["found"].split("-")[2]]
        learnt = before is None or key["digests"] != before["digests"]
        changed = {name for name in key if before is None or learnt or key[name] != before[name]}
        if "models" in changed:
            assert set(key["models"]) <= {"m"}, key
        if "networks" in changed:
            assert key["networks"], key
            assert all(text.startswith("127.") for text in key["networks"]), key
        if "expires_at" in changed:
            assert key["expires_at"] is not None, key
            assert key["expires_at"] <= found["expires_at"], key
        if before is None or key["scopes"] != before["scopes"]:  # any that its owner may have: the scope admin is for that
            assert set(key["scopes"]) <= Role(people[key["user_id"]]["role"]).scopes, key


def run(gang: type[Gang], steps: int, *, fixed: bool = True) -> tuple[int, int]:
    """Run about so many steps; (calls made, those that were granted). Raises what the machine asserts where a right was gained.

    `fixed`: the same steps each time, and no time spent on finding the shortest way to the same fault.
    """
    folder = Path(tempfile.mkdtemp(prefix="rights-world-"))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with asyncio.Runner() as runner:
            gang.calls = gang.granted = 0
            gang.loop = runner.get_loop()
            gang.world = runner.run(build(folder / "home"))
            phases = (Phase.generate,) if fixed else (Phase.generate, Phase.shrink)
            chosen = settings(
                max_examples=max(1, steps // STEPS_EACH),
                stateful_step_count=STEPS_EACH,
                deadline=None,
                derandomize=fixed,
                report_multiple_bugs=False,
                database=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            )
            run_state_machine_as_test(gang, settings=chosen)
            return gang.calls, gang.granted
    finally:
        structlog.reset_defaults()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for gang in (MembersAndViewers, WithTheirManager, WithAFoundKey):
        calls, granted = run(gang, steps // 3, fixed=False)
        print(f"{gang.__name__}: {calls} calls, {granted} of them granted, no right gained")


if __name__ == "__main__":
    main()
