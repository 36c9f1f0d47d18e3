"""One server process's connections to Redis, for limits over several hosts. The only module that imports redis.

Two of them: one for steps (`hosts.lua`, run there as one, at most one at a time), and one that is subscribed to a channel named after the
process and says nothing. Redis knows that a process lives by that one: the kernel closes it when the process dies, however it dies.

    LinkLost    Redis is away, or the connection is; what was asked may have been done
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

ANSWER_S = 1.0  # a step, or connecting; the least that a server under load needs is a few milliseconds
CLOSE_S = 0.5
_SCRIPT = Path(__file__).with_name("hosts.lua")


class LinkLost(Exception):
    """`reason`: a word or two for the log, without addresses or passwords."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RedisLink:
    """`url`: redis://, rediss:// or unix://, with user, password and number of the database. `prefix` of all keys has a hash tag.

    Raises `ValueError` where the address cannot be read.
    """

    def __init__(self, url: str, prefix: str, process: str) -> None:
        self._url = url
        self._prefix = prefix
        self._alive = f"{prefix}:alive:{process}"
        self._script = _SCRIPT.read_text()
        self._digest = ""
        self._steps: Redis | None = None
        self._listener: Redis | None = None
        self._channel: PubSub | None = None
        self._listening: asyncio.Task[None] | None = None
        _client(url)

    async def open(self, lost: Callable[[], None]) -> None:
        """Connect, and be known to live. `lost` is called when Redis would take this process for dead."""
        async with _mapped():
            self._steps, self._listener = _client(self._url), _client(self._url)
            self._digest = _text(await self._steps.script_load(self._script))
            self._channel = self._listener.pubsub()
            await self._channel.subscribe(self._alive)
            await self._channel.get_message(timeout=ANSWER_S)
        self._listening = asyncio.create_task(self._listen(self._channel, lost), name="redis")

    async def step(self, arguments: Sequence[bytes]) -> Any:
        """Run the script. One at a time. `LinkLost` also where it is not open."""
        if self._steps is None:
            raise LinkLost("closed")
        async with _mapped():
            try:
                return await self._steps.evalsha(self._digest, 1, self._prefix, *arguments)
            except NoScriptError:  # somebody has emptied its memory of scripts
                await self._steps.script_load(self._script)
                return await self._steps.evalsha(self._digest, 1, self._prefix, *arguments)

    async def close(self) -> None:
        """Both connections. May be called at any time, and again."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
            await asyncio.wait({listening}, timeout=CLOSE_S)
        closing = (self._channel, self._listener, self._steps)
        self._channel = self._listener = self._steps = None
        for connection in closing:
            if connection is not None:
                with contextlib.suppress(LinkLost):
                    async with _mapped(CLOSE_S):
                        await connection.aclose()

    @staticmethod
    async def _listen(channel: PubSub, lost: Callable[[], None]) -> None:
        """Nobody publishes there: what comes is the end."""
        try:
            while True:
                await channel.get_message(timeout=None)
        except (RedisError, OSError):
            lost()


async def inspect(url: str) -> tuple[str, bool]:
    """For people: the version that answers there, and whether it may forget keys to make room. Raises `LinkLost`, `ValueError`."""
    client = _client(url)
    try:
        async with _mapped():
            info: dict[str, Any] = await client.info()
    finally:
        await client.aclose()
    forgets = bool(info.get("maxmemory")) and info.get("maxmemory_policy") != "noeviction"
    return str(info.get("redis_version")), forgets


@contextlib.asynccontextmanager
async def _mapped(within_s: float = ANSWER_S):  # type: ignore[no-untyped-def]  # as `asynccontextmanager` wants it
    try:
        async with asyncio.timeout(within_s):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise LinkLost(type(error).__name__) from None


def _client(url: str) -> Redis:
    return Redis.from_url(
        url,
        single_connection_client=True,
        socket_connect_timeout=ANSWER_S,
        socket_timeout=None,  # `asyncio.timeout` bounds each step
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
    )


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
