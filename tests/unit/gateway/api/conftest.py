"""The control plane over a real SQLite store and real parts; only the process around it is missing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from auth.authenticator import Authenticator
from auth.login import Login
from auth.passwords import Passwords
from auth.principal import Role
from auth.tokens import AccessTokens
from backends.base import Backend
from backends.echo import EchoBackend
from backends.local import LocalBackend, LocalState
from gateway.api import create_api, stateless_routes
from gateway.changes import Actor, create_key, create_team, create_user
from gateway.metering.exposition import exposition
from gateway.metering.ledger import SegmentWriter
from gateway.metering.log import RequestLog
from gateway.metering.meter import Meter
from gateway.metering.names import make_metrics
from gateway.routing.document import RevisionDocument
from gateway.routing.table import BackendSpec, RouteTable, Timeouts, build_table
from gateway.runtime import Control, Relay
from gateway.store import revisions
from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.live import LiveTables
from gateway.store.logins import Accounts, RefreshTokens
from gateway.store.secret_key import CONTENTS
from gateway.store.secrets import SecretBox, read_all
from gateway.store.users import User
from gateway.wire.tokens import Tokenizer
from tests.levels import own_limiter

PASSWORD = "correct horse battery 9"
SECRET_KEY = "0123456789abcdef0123456789abcdef"
INIT = Actor(None, "init")
FAR = ("203.0.113.7", 50_000)
NEAR = ("127.0.0.1", 50_000)


class NoTokenizers:
    def __init__(self) -> None:
        self.pool: Executor = ThreadPoolExecutor(1)  # starts no thread before it is used

    def of(self, route_id: str) -> Tokenizer | None:
        return None


@dataclass
class Readiness:
    ready: bool = True
    parts: dict[str, str] = field(default_factory=lambda: {"revision": "1", "models": "ready"})

    def __call__(self) -> tuple[bool, dict[str, str]]:
        return self.ready, self.parts


@dataclass
class Plane:
    """The application and what stands behind it. `people` by role, `keys` by scope; `team_id`: what the manager and the member are of."""

    control: Control
    app: FastAPI
    readiness: Readiness
    people: dict[Role, User] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    team_id: str = ""

    def client(self, credential: str | None = None, peer: tuple[str, int] = FAR) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True, client=peer)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)

    def token(self, role: Role) -> str:
        """A login token of the person with this role."""
        record = self.control.live.user_by_id(self.people[role].id)
        assert record is not None
        return TOKENS.issue(record)

    async def key(self, name: str, owner: User, **options: object) -> str:
        issued = await create_key(self.control.db, self.control.generation, INIT, name=name, owner_id=owner.id, **options)  # type: ignore[arg-type]  # as given
        await self.control.live.catch_up(self.control.db)
        return issued.key


TOKENS = AccessTokens(SECRET_KEY.encode())


def make_passwords() -> Passwords:
    """Of this process, and quick."""
    return Passwords(memory_kib=64, rounds=1)


def make_control(db: Database, generation: Generation, live: LiveTables, folder: Path, readiness: Readiness) -> Control:
    passwords = make_passwords()
    meter = Meter(make_metrics(CollectorRegistry()))
    relay = Relay(
        authenticator=Authenticator(live, TOKENS),
        known=live,
        limiter=own_limiter(),
        ledger=SegmentWriter(folder / "ledger"),
        meter=meter,
        log=RequestLog(),
        tokenizers=NoTokenizers(),
        table=RouteTable(0, {}),
        max_body_bytes=32_000_000,
        max_answer_bytes=64_000_000,
        cors_origins=frozenset((b"*",)),
    )
    return Control(
        db=db,
        generation=generation,
        live=live,
        login=Login(Accounts(db), RefreshTokens(db), passwords, TOKENS),
        tokens=TOKENS,
        passwords=passwords,
        secret_box=SecretBox(SECRET_KEY),
        content_box=SecretBox(SECRET_KEY, purpose=CONTENTS),
        relay=relay,
        local_state=LocalState(folder / "local.json"),
        cors_origins=("*",),
        cookie_secure=True,
        version="1.2.3",
        ready=readiness,
        metrics_text=lambda: exposition(meter),
    )


async def follow(control: Control) -> None:
    """What a server process does beside answering: apply changes as they are made."""

    def open_backend(spec: BackendSpec) -> Backend:
        return LocalBackend(spec.path, control.local_state) if spec.type == "local" else EchoBackend()

    place, in_force = control.generation.follow(), control.live.applied
    while True:
        control.generation.note(place, in_force)
        await asyncio.sleep(0.002)
        if control.generation.change == control.live.applied and not control.live.unfinished:
            continue
        await control.live.catch_up(control.db)
        async with control.db.read() as conn:
            live, secrets = await revisions.live_revision(conn), await read_all(conn, control.secret_box)
        if live is not None:
            document = RevisionDocument.model_validate(live.document)
            control.relay.table = build_table(document, live.id, 1_700_000_000, open_backend, Timeouts(5, 300, 120, 3600), secrets)
        in_force = control.live.applied


@dataclass(frozen=True)
class Peopled:
    """A SQLite file, to be copied for each test; who is in it: one person of each role, and a key of the admin for each scope."""

    file: Path
    people: dict[Role, User]
    keys: dict[str, str]
    team_id: str


@pytest.fixture(scope="session")
def peopled(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Peopled:
    file = tmp_path_factory.mktemp("peopled") / "gateway.sqlite3"
    shutil.copy(migrated, file)
    return asyncio.run(_people(file))


async def _people(file: Path) -> Peopled:
    """The manager and the member are of one team."""
    db, generation, passwords = Database(f"sqlite+aiosqlite:///{file}"), Generation(file.parent / "generation"), make_passwords()
    password_hash = await passwords.hash(PASSWORD)
    team_id = (await create_team(db, generation, INIT, name="research")).id
    people, keys = {}, {}
    for role in Role:
        team = team_id if role in (Role.MANAGER, Role.MEMBER) else None
        email = f"{role}@example.com"
        people[role] = await create_user(db, generation, INIT, email=email, role=role, password_hash=password_hash, team=team)
    for scope in ("inference", "usage", "metrics", "admin", "content"):
        keys[scope] = (await create_key(db, generation, INIT, name=scope, owner_id=people[Role.ADMIN].id, scopes=[scope])).key
    await db.close()
    generation.close()
    passwords.close()
    return Peopled(file, people, keys, team_id)


@pytest.fixture(scope="session")
def routes() -> Sequence[BaseRoute]:
    return stateless_routes()


@pytest.fixture
async def plane(peopled: Peopled, routes: Sequence[BaseRoute], tmp_path: Path) -> AsyncIterator[Plane]:
    """One person of each role, the manager and the member of one team; and a key of the admin for each scope."""
    file = tmp_path / "gateway.sqlite3"
    shutil.copy(peopled.file, file)
    db, generation = Database(f"sqlite+aiosqlite:///{file}"), Generation(tmp_path / "generation")
    live, readiness = await LiveTables.load(db), Readiness()
    generation.set_change(live.applied)
    control = make_control(db, generation, live, tmp_path, readiness)
    plane = Plane(control, create_api(control, routes), readiness, dict(peopled.people), dict(peopled.keys), peopled.team_id)
    following = asyncio.create_task(follow(control))
    yield plane
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    await db.close()
    generation.close()
    control.passwords.close()


@pytest.fixture
async def admin(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client(plane.token(Role.ADMIN)) as client:
        yield client


@pytest.fixture
async def anyone(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client() as client:
        yield client
