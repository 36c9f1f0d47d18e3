"""The sampler: a server, a database and a clock that the test holds in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.keeper.samples import Sampler, scrape
from gateway.metering.sampled import SAMPLED, Figures
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.plots import Asked, plot

START_S = 1_780_000_200.0  # a whole step
LINES = ('gateway_retries_total{model="m"} 3', "gateway_retries_total_of_others 4", 'odd{a="gateway_retries_total 9"} 1', "")
REQUESTS = SAMPLED["gateway_requests_total"]


class Stage:
    """`total`: of the server's requests; None: it does not answer."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.now_s = START_S
        self.total: float | None = 0.0
        self.sampler = Sampler(db, self.scrape, lambda: self.now_s)

    async def scrape(self) -> Figures | None:
        return None if self.total is None else {("gateway_requests_total", ("m", "b", "chat", "2xx")): [self.total]}

    async def look(self, at_s: float, total: float | None) -> None:
        self.now_s, self.total = START_S + at_s, total
        await self.sampler.look()

    async def rates(self, span_s: float) -> list[float | None]:
        """From the start on."""
        async with self.db.read() as conn:
            found = await plot(conn, Asked(REQUESTS, START_S, START_S + span_s, 0, {}, None), START_S + span_s)
        return found.lines[0].values["rate"]


@pytest.fixture
def stage(db: Database) -> Stage:
    return Stage(db)


async def test_each_step_as_it_was(stage: Stage) -> None:
    for at_s, total in ((0.0, 1000.0), (15.01, 1030.0), (30.01, 1030.0), (45.01, 1045.0)):
        await stage.look(at_s, total)
    assert await stage.rates(45) == [2.0, 0.0, 1.0]


async def test_a_clock_that_wakes_a_moment_early_counts_nothing_twice(stage: Stage) -> None:
    for at_s, total in ((0.0, 0.0), (14.999, 30.0), (15.0, 30.0), (29.999, 60.0), (30.0, 60.0)):
        await stage.look(at_s, total)
    assert await stage.rates(30) == [2.0, 2.0]


async def test_a_server_that_begins_anew_meanwhile(stage: Stage) -> None:
    for at_s, total in ((0.0, 1000.0), (15.0, 1030.0), (30.0, None), (45.0, None), (60.0, 15.0), (75.0, 30.0)):
        await stage.look(at_s, total)
    assert await stage.rates(75) == [2.0, None, None, 1.0, 1.0]


async def test_a_reading_that_failed_is_made_up_for(stage: Stage) -> None:
    for at_s, total in ((0.0, 1000.0), (15.0, None), (30.0, 1060.0)):
        await stage.look(at_s, total)
    assert await stage.rates(30) == [2.0, 2.0]


async def test_what_was_missed_for_long_is_a_gap(stage: Stage) -> None:
    for at_s, total in ((0.0, 1000.0), (315.0, 9999.0), (330.0, 10_014.0)):
        await stage.look(at_s, total)
    assert await stage.rates(330) == [None] * 21 + [1.0]


async def test_a_clock_put_back(stage: Stage) -> None:
    for at_s, total in ((3600.0, 0.0), (0.0, 30.0), (15.0, 45.0)):
        await stage.look(at_s, total)
    assert await stage.rates(15) == [1.0]


class AwayOnce(Database):
    """Its first writing fails."""

    failed = False

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        if not self.failed:
            self.failed = True
            raise StoreUnavailable("test")
        async with super().write() as conn:
            yield conn


async def test_a_database_that_was_away_loses_nothing(database_url: str) -> None:
    stage = Stage(AwayOnce(database_url))
    await stage.look(0.0, 1000.0)
    with pytest.raises(StoreUnavailable):
        await stage.look(15.0, 1030.0)
    await stage.look(30.0, 1045.0)
    assert await stage.rates(30) == [1.5, 1.5]
    await stage.db.close()


async def test_the_first_time_it_waits_for_the_server(stage: Stage) -> None:
    answers: list[float | None] = [None, 7.0]

    async def late() -> Figures | None:
        stage.total = answers.pop(0)
        return await stage.scrape()

    sampler = Sampler(stage.db, late, lambda: stage.now_s)
    await sampler.look()
    assert answers == []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (httpx.Response(503), None),
        (httpx.Response(200, text=""), {}),
        (
            httpx.Response(200, text="\n".join(LINES)),
            {("gateway_retries_total", ("m", "", "", "")): [3.0]},
        ),
    ],
)  # fmt: skip
async def test_scraping(answer: httpx.Response, found: Figures | None) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer)) as client:
        assert await scrape(client, "http://server") == found


async def test_a_server_that_is_not_there() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        assert await scrape(client, "http://server") is None
