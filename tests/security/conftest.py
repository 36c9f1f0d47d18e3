"""One gateway for all tests that leave nothing behind in it, and one of its own, inside this process, for those that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.security.inside import Inside, inside, prepared
from tests.security.scene import Scene, scene


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("security")) as made:
        yield made


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("prepared") / "home"
    asyncio.run(prepared(home))
    return home


@pytest.fixture
async def own(tmp_path: Path, prepared_home: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path / "home", prepared_home) as made:
        yield made
