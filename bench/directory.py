"""Many people and many keys: what listing, searching and creating cost with 10,000 users and 100,000 keys in the database.

    python -m bench.directory                    # `make bench-directory`: SQLite, then PostgreSQL
    python -m bench.directory --on sqlite --users 1000 --keys 10000

A real `gateway serve` with one worker, asked over one kept connection, one request after the other, as an admin and as the manager of a
team. Users are in 50 teams, a tenth of them services; keys have names, descriptions, limits and owners at random. Each row of the table
is one kind of request; those that search for what is not there make the database look at everything. Fails (exit code 1) where a kind's
p95 is not below 50 ms, or an answer is not what it should be. No password is hashed on the way.

PostgreSQL is the server at GATEWAY_TEST_POSTGRES_URL, else one started from the system's binaries. stdout has the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from rich.console import Console
from rich.table import Table

from auth.keys import digest, mint
from auth.passwords import Passwords
from auth.principal import Limits, Role
from bench.gateway import Cli, command_of
from bench.systems import Place, Recipe, launch
from gateway.store import keys, teams, users
from gateway.store.engine import Database
from gateway.store.keys import ApiKey
from gateway.store.users import Kind
from tests.databases import Postgres, system_postgres
from tests.gateway_process import free_port

USERS, KEYS, TEAMS, BATCH = 10_000, 100_000, 50, 1000
ROUNDS = 200
BOUND_MS = 50.0
PASSWORD = "bench-admin-password-0"
MANAGER = "manager@bench.example"
FIRST = ("dana", "min", "joe", "eva", "lee", "noor", "ivan", "mia", "kim", "ada")
PURPOSES = ("search service", "nightly index", "chat application", "evaluation", "notebook", "support desk", "translation")
Call = Callable[[httpx.Client, int], httpx.Response]


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of request on one database. Milliseconds, as the client saw them."""

    database: str
    kind: str
    p50_ms: float
    p95_ms: float
    max_ms: float
    answers: int


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of request: by whom, and how the n-th one is made. `status`: what it must be answered with."""

    name: str
    call: Call
    status: int = 200
    manager: bool = False


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is there: ids to ask for."""

    team_ids: list[str]
    user_ids: list[str]
    emails: list[str]
    key_ids: list[str]


async def populate(url: str, count_users: int, count_keys: int, seed: int = 1) -> Crowd:
    """Fill a database that `gateway init` has made. The server must not be running."""
    rng, db, passwords = random.Random(seed), Database(url), Passwords()
    try:
        crowd = Crowd([], [], [], [])
        async with db.write() as conn:
            for number in range(TEAMS):
                crowd.team_ids.append((await teams.create(conn, f"team {number:02d}", time.time())).id)
            password = await passwords.hash(PASSWORD)
            await users.create(conn, MANAGER, Role.MANAGER, password, time.time(), team_id=crowd.team_ids[0])
        for start in range(0, count_users, BATCH):
            async with db.write() as conn:
                for number in range(start, min(start + BATCH, count_users)):
                    kind = Kind.SERVICE if number % 10 == 0 else Kind.PERSON
                    given = rng.choice(FIRST)
                    email = f"{given}.{number}@{'service' if kind == Kind.SERVICE else 'bench.example'}"
                    name = None if kind == Kind.SERVICE else f"{given.title()} Number {number}"
                    team_id = rng.choice(crowd.team_ids)
                    user = await users.create(conn, email, Role.MEMBER, None, time.time(), kind=kind, name=name, team_id=team_id)
                    crowd.user_ids.append(user.id)
                    crowd.emails.append(email)
        for start in range(0, count_keys, BATCH):
            batch = [_key(rng, crowd) for _ in range(start, min(start + BATCH, count_keys))]
            async with db.write() as conn:
                await keys.insert_keys(conn, batch)
            crowd.key_ids.extend(key.id for key, _ in batch)
        return crowd
    finally:
        passwords.close()
        await db.close()


def _key(rng: random.Random, crowd: Crowd) -> tuple[ApiKey, bytes]:
    key_id, text = mint()
    purpose = rng.choice(PURPOSES)
    key = ApiKey(
        key_id,
        rng.choice(crowd.user_ids),
        f"{purpose} {rng.randrange(10**6):06d}",
        ("*",),
        ("inference",),
        Limits(rpm=600, tpm=100_000),
        time.time(),
        description=f"runs {purpose} for {rng.choice(FIRST)}, asked for in ticket {rng.randrange(10**6):06d}",
    )
    return key, digest(text)


def kinds(crowd: Crowd) -> list[Request]:
    """What is asked. The n-th call of each differs from those before it."""
    rng = random.Random(2)

    def user(_: int) -> str:
        return rng.choice(crowd.user_ids)

    def key(_: int) -> str:
        return rng.choice(crowd.key_ids)

    def get(path: str, **params: Callable[[int], Any]) -> Call:
        return lambda client, n: client.get(path, params={name: value(n) for name, value in params.items()})

    def fixed(value: Any) -> Callable[[int], Any]:
        return lambda _: value

    def post(path: str, body: Callable[[int], dict[str, Any]]) -> Call:
        return lambda client, n: client.post(path, json=body(n))

    team = crowd.team_ids[1]
    some = (lambda n: f"{rng.choice(FIRST)}.{n}", lambda n: f"number {n}", fixed("zz no such"), fixed("a"))
    return [
        Request("users: first page", get("/admin/users")),
        Request("users: page in the middle", get("/admin/users", after=user)),
        Request("users: page of 500", get("/admin/users", after=user, limit=fixed(500))),
        Request("users: of a team", get("/admin/users", team=fixed(team))),
        Request("users: search e-mail", get("/admin/users", search=some[0])),
        Request("users: search name", get("/admin/users", search=some[1])),
        Request("users: search, nothing there", get("/admin/users", search=some[2])),
        Request("users: search, very many", get("/admin/users", search=some[3])),
        Request("users: manager's list", get("/admin/users"), manager=True),
        Request("users: manager searches", get("/admin/users", search=some[0]), manager=True),
        Request("users: create", post("/admin/users", lambda n: {"email": f"new.{n}@bench.example", "team": team}), 201),
        Request("users: manager creates", post("/admin/users", lambda n: {"email": f"own.{n}@bench.example"}), 201, manager=True),
        Request("users: create a service", post("/admin/service-accounts", lambda n: {"name": f"robot-{n}", "team": team}), 201),
        Request("users: change", lambda client, n: client.patch(f"/admin/users/{user(n)}", json={"rpm": n + 1})),
        Request("teams: list", get("/admin/teams")),
        Request("keys: first page", get("/admin/keys")),
        Request("keys: page in the middle", get("/admin/keys", after=key)),
        Request("keys: page of 500", get("/admin/keys", after=key, limit=fixed(500))),
        Request("keys: of an owner", get("/admin/keys", owner=user)),
        Request("keys: search name", get("/admin/keys", search=lambda n: f"notebook {n:03d}")),
        Request("keys: search description", get("/admin/keys", search=lambda n: f"ticket {n:03d}")),
        Request("keys: search prefix", get("/admin/keys", search=lambda n: f"sk-gw-{key(n)[:8]}")),
        Request("keys: search owner", get("/admin/keys", search=lambda n: rng.choice(crowd.emails))),
        Request("keys: search, nothing there", get("/admin/keys", search=some[2])),
        Request("keys: search, very many", get("/admin/keys", search=some[3])),
        Request("keys: manager's list", get("/admin/keys"), manager=True),
        Request("keys: manager searches", get("/admin/keys", search=lambda n: f"ticket {n:03d}"), manager=True),
        Request("keys: create", post("/admin/keys", lambda n: {"name": f"new {n}", "owner": user(n), "rpm": 60}), 201),
        Request("keys: change", lambda client, n: client.patch(f"/admin/keys/{key(n)}", json={"rpm": n + 1})),
    ]


def measured(database: str, url: str, crowd: Crowd, rounds: int) -> list[Figure]:
    """Ask each kind `rounds` times, after some to warm up."""
    figures = []
    with ExitStack() as stack:
        admin, manager = (stack.enter_context(_client(url)) for _ in range(2))
        _log_in(admin, "admin@localhost")
        _log_in(manager, MANAGER)
        for kind in kinds(crowd):
            client = manager if kind.manager else admin
            taken_ms = []
            for number in range(rounds + 5):
                begun = time.perf_counter()
                answer = kind.call(client, number)
                taken_ms.append((time.perf_counter() - begun) * 1000)
                if answer.status_code != kind.status:
                    sys.exit(f"{database}: {kind.name}: {answer.status_code} {answer.text[:300]}")
            taken = sorted(taken_ms[5:])
            at = [taken[min(len(taken) - 1, int(len(taken) * share))] for share in (0.5, 0.95)]
            figures.append(Figure(database, kind.name, round(at[0], 1), round(at[1], 1), round(taken[-1], 1), len(taken)))
    return figures


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=60)


def _log_in(client: httpx.Client, email: str) -> None:
    answer = client.post("/auth/login", json={"email": email, "password": PASSWORD})
    if answer.status_code != 200:
        sys.exit(f"login of {email}: {answer.status_code} {answer.text[:300]}")
    client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"


def trial(database: str, database_url: str, folder: Path, given: argparse.Namespace) -> list[Figure]:
    """Make a home on this database ("": SQLite in the home), fill it, serve it, and measure."""
    place = Place("gateway", folder, free_port(), "127.0.0.1:9")
    env = {"GATEWAY_HOME": str(folder / "home"), "GATEWAY_ADMIN_PASSWORD": PASSWORD}
    if database_url:
        env["GATEWAY_DATABASE_URL"] = database_url
    cli = Cli(command_of(place.name), folder, env)
    cli.run("init")
    begun = time.monotonic()
    crowd = asyncio.run(populate(database_url or f"sqlite+aiosqlite:///{folder}/home/gateway.sqlite3", given.users, given.keys))
    if database_url:
        asyncio.run(_analyze(database_url))
    sys.stderr.write(f"{database}: {given.users} users, {given.keys} keys in {time.monotonic() - begun:.0f} s\n")
    serve = (cli.binary, "serve", "--host", "127.0.0.1", "--port", str(place.port), "--workers", "1")
    system = launch(Recipe(place.name, serve, place.port, env=env), folder, os.sched_getaffinity(0))
    try:
        return measured(database, system.url, crowd, given.rounds)
    finally:
        system.stop()


async def _analyze(url: str) -> None:
    """What autovacuum does within a minute of such a load."""
    connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))
    try:
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


@contextmanager
def database_url(name: str, *settings: str) -> Iterator[str]:
    """A database of its own; of PostgreSQL with these settings, where it is started here."""
    if name == "sqlite":
        yield ""
        return
    with ExitStack() as stack:
        given = os.environ.get("GATEWAY_TEST_POSTGRES_URL", "").replace("postgresql+asyncpg://", "postgresql://", 1)
        server = Postgres(given) if given else stack.enter_context(system_postgres(*settings))
        database = asyncio.run(server.create())
        yield server.sqlalchemy_url(database)
        asyncio.run(server.drop(database))


def show(figures: list[Figure]) -> None:
    table = Table("request", "p50 ms", "p95 ms", "max ms", title=f"{figures[0].database}: {figures[0].answers} of each")
    for column in table.columns[1:]:
        column.justify = "right"
    for figure in figures:
        style = "red" if figure.p95_ms >= BOUND_MS else ""
        table.add_row(figure.kind, str(figure.p50_ms), str(figure.p95_ms), str(figure.max_ms), style=style)
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.directory", description="Listing, searching and creating among many users and keys.")
    parser.add_argument("--on", choices=("sqlite", "postgresql"), action="append", help="default: both")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    figures: list[Figure] = []
    for name in given.on or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory(prefix="bench-directory-") as folder, database_url(name) as url:
            figures += trial(name, url, Path(folder), given)
        show([figure for figure in figures if figure.database == name])
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    sys.exit(any(figure.p95_ms >= BOUND_MS for figure in figures))


if __name__ == "__main__":
    main()
