"""The soak's clients: each sends one request of the mix after another, checks every answer, and hangs up where the mix says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from time import perf_counter

from bench.client import Answer, Connection, request_head
from bench.mix import AFTER, BEFORE, CHAT, EMBEDDINGS, Expected, Kind

LEAVE_AFTER_S = 0.005
MAX_WRONG = 1000
HANG_S = 60.0


class SoakStopped(Exception):
    """The soak cannot go on; the message says why."""


class Lanes:
    """`count` clients on 127.0.0.1. `sent`, `left`: by kind. `wrong`: answers that were not what they must be, the first ones in words."""

    def __init__(self, port: int, keys: Mapping[str, str], count: int, kinds: Iterator[Kind]) -> None:
        self._port = port
        self._kinds = kinds
        self._count = count
        self._heads = {
            (key, path): request_head("127.0.0.1", port, text, path) for key, text in keys.items() for path in (CHAT, EMBEDDINGS)
        }
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._free: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent = self._running = 0
        self._idle = asyncio.Event()
        self._last_s = perf_counter()
        self._problem = ""
        self.ended = 0
        self.rid = 0
        self.sent: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.admitted = 0
        self.wrong: Counter[str] = Counter()
        self.examples: list[str] = []

    async def run(self, requests: int) -> None:
        """Send `requests` more and await the end of every one.

        Raises SoakStopped when nothing ends for a minute, when too much is wrong, or when nobody listens any more.
        """
        self._unsent = requests
        self._idle.clear()
        for _ in range(self._count - len(self._open)):
            self._spawn_lane()
        free, self._free = self._free, []
        for connection in free:
            self._go_on(connection)
        self._last_s = perf_counter()
        while not self._idle.is_set():
            try:
                async with asyncio.timeout(1):
                    await self._idle.wait()
            except TimeoutError:
                self._watch()

    async def close(self) -> None:
        """Close every connection; the lanes open new ones when they run again."""
        for connection in list(self._open):
            connection.close()
        while self._open:
            await asyncio.sleep(0.01)
        self._free.clear()

    def _watch(self) -> None:
        if self._problem:
            raise SoakStopped(self._problem)
        if perf_counter() - self._last_s > HANG_S:
            raise SoakStopped(f"no answer for {HANG_S:.0f} s, {self._running} requests are waiting")
        if self.wrong.total() > MAX_WRONG:
            raise SoakStopped(f"more than {MAX_WRONG} answers were wrong")

    def _spawn_lane(self) -> None:
        task = self._loop.create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        except OSError as error:
            self._problem = f"cannot connect: {error}"
            return
        self._open.add(connection)
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """The next request, if there is one."""
        if connection.closed:
            if self._unsent:
                self._spawn_lane()
        elif self._unsent:
            self._unsent -= 1
            self._send(connection, next(self._kinds))
        else:
            self._free.append(connection)

    def _send(self, connection: Connection, kind: Kind) -> None:
        self.rid += 1
        self._running += 1
        self.sent[kind.name] += 1
        self.admitted += kind.admitted
        expected = Expected(kind, self.rid)
        body = kind.body(expected.ask)
        connection.send(expected, self._heads[kind.key, kind.path] % len(body) + body)
        if kind.leaves == BEFORE:
            self._loop.call_later(LEAVE_AFTER_S, self._leave, connection, expected)

    def _leave(self, connection: Connection, expected: Expected) -> None:
        """Hang up on this answer, every other time without farewell."""
        if connection.answer is expected:
            expected.left = True
            connection.abort() if expected.ask.rid % 2 else connection.close()

    def on_event(self, connection: Connection, answer: Answer) -> None:
        if isinstance(answer, Expected) and answer.kind.leaves == AFTER:
            self._leave(connection, answer)

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        if not isinstance(answer, Expected):
            self.wrong["unasked bytes"] += 1
            self.examples.append(problem)
            return
        self._running -= 1
        self.ended += 1
        self._last_s = perf_counter()
        name = answer.kind.name
        if answer.left:
            self.left[name] += 1
        elif problem:
            self.wrong[name] += 1
            if len(self.examples) < 20:
                self.examples.append(f"request {answer.ask.rid}, {name}: {problem}")
        self._go_on(connection)
        if not self._running and not self._unsent:
            self._idle.set()

    def on_lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
