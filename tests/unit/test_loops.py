"""The loop that tests run on: what connects in its last turns is not left open."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

import pytest

from tests.faults.scene import scene
from tests.upstream import Upstream, well_behaved


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("kind", ["upstream", "relay"])
def test_a_connection_that_comes_as_all_ends(kind: str, turns: int) -> None:
    async def connect(port: int) -> None:
        outside.connect(("127.0.0.1", port))
        for _ in range(turns):
            await asyncio.sleep(0)

    async def main() -> None:
        if kind == "upstream":
            async with Upstream() as up:
                await connect(up.port)
        else:
            async with scene(well_behaved()) as stage:
                await connect(stage.server.port)

    with socket.socket() as outside, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(main())
        gc.collect()
    assert [str(one.message) for one in heard] == []
