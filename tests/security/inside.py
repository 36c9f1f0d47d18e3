"""A server process's services inside this one, composed as `gateway serve` composes them and served on a socket: for tests that must see
the inside too, and for those that run on a copy of the tree with a guard taken out, where starting processes would cost too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from uvicorn.server import ServerState

from auth.principal import Role
from gateway.app import Services
from gateway.changes import Actor, apply_revision, create_key, create_user
from gateway.cli.init import initialise
from gateway.relay.edge import Edge, edge_class, tick
from gateway.routing.document import RevisionDocument
from gateway.settings import Settings
from gateway.store.users import User
from tests.gateway_process import PLAIN

PASSWORD = "correct horse battery 9"
INIT = Actor(None, "init")
MODELS = ("m", "other")


@dataclass
class Inside:
    """`admin`: the first one. `url`: of the socket."""

    services: Services
    url: str
    port: int
    admin: str = "admin@localhost"

    def client(self, credential: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, verify=PLAIN, timeout=20)

    async def person(self, name: str, /, role: Role | str, password: str | None = None, **fields: Any) -> User:
        services = self.services
        password_hash = None if password is None else await services.control.passwords.hash(password)
        email = f"{name}@example.com"
        return await create_user(services.db, services.generation, INIT, email=email, role=role, password_hash=password_hash, **fields)

    async def token(self, user: User) -> str:
        """What a login of this user would be given; without the password's hash, which costs 40 ms."""
        await self.caught_up()
        record = self.services.live.user_by_id(user.id)
        assert record is not None
        return self.services.control.tokens.issue(record)

    async def log_in(self, email: str, password: str = PASSWORD) -> str:
        async with self.client() as http:
            answer = await http.post("/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def key(self, name: str, owner: User | None = None, **fields: Any) -> str:
        services = self.services
        issued = await create_key(services.db, services.generation, INIT, name=name, owner_id=owner.id if owner else None, **fields)
        await self.caught_up()
        return issued.key

    async def caught_up(self) -> None:
        while self.services.live.applied < self.services.generation.change:  # another task applies it, and tells nobody
            await asyncio.sleep(0.002)

    async def held(self, size_bytes: int) -> None:
        """Until the relay holds as much of bodies that are on their way."""
        async with asyncio.timeout(10):
            while self.services.relay.held_bytes < size_bytes:
                await asyncio.sleep(0.002)


def settings_of(home: Path, **more: str) -> Settings:
    return Settings(GATEWAY_HOME=str(home), GATEWAY_ADMIN_PASSWORD=PASSWORD, **more)  # type: ignore[call-arg, arg-type]  # by alias


async def prepared(home: Path, **more: str) -> None:
    """A home with its first admin and two models that echo."""
    settings = settings_of(home, **more)
    await initialise(settings)
    services = await Services.open(settings)
    document = RevisionDocument.model_validate({"models": [{"id": model, "backends": [{"type": "echo"}]} for model in MODELS]})
    await apply_revision(services.db, services.generation, INIT, document.model_dump(mode="json", by_alias=True, exclude_none=True))
    await services.close()


@contextlib.asynccontextmanager
async def inside(home: Path, template: Path | None = None, **settings: str) -> AsyncIterator[Inside]:
    """Serve until the block ends. `template`: a prepared home, to be copied instead of made."""
    if template is not None:
        # without the counters of limits: they begin anew, and are 65 MB of zeros
        shutil.copytree(template, home, ignore=shutil.ignore_patterns("levels-*"))
    else:
        await prepared(home, **settings)
    services = await Services.open(settings_of(home, **settings))
    config = uvicorn.Config(services.asgi(), http=edge_class(services.relay), ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    edges = cast("set[Edge]", state.connections)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: config.http_protocol_class(config, state, {}, loop), "127.0.0.1", 0)  # type: ignore[call-arg, arg-type]
    background = [asyncio.create_task(services.follow()), asyncio.create_task(tick(services.relay, edges))]
    port = listener.sockets[0].getsockname()[1]
    try:
        yield Inside(services, f"http://127.0.0.1:{port}", port)
    finally:
        listener.close()
        for edge in list(edges):
            edge.end_now()
        while edges or state.tasks:
            await asyncio.sleep(0)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await services.close()
        services.control.passwords.close()
