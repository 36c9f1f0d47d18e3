"""A ledger that has no room left: new requests are refused, running ones end and are in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from auth.principal import Limits
from gateway.metering.ledger import SegmentWriter, sort_lines, written_bytes
from gateway.metering.record import FIELDS
from tests.faults.scene import CHAT, scene
from tests.faults.scripts import ROLE, WORD, frame
from tests.upstream import Seen, Wire


async def test_no_room_in_the_ledger(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def waits(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(ROLE) + frame(WORD))
        await go.wait()
        await wire.chunk(frame(WORD) + b"data: [DONE]\n\n")
        await wire.end()

    writer = SegmentWriter(tmp_path, segment_bytes=30_000, max_bytes=30_000)
    async with scene(waits, limits=Limits(), ledger=writer) as stage:
        running = []
        while True:
            client = await stage.send(CHAT | {"stream": True}, more=["connection: close"])
            status, headers = await client.head()
            if status != 200:
                break
            running.append(client)
        assert (status, headers["retry-after"]) == (503, "10")
        assert b'"code":"ledger_full"' in await client.rest()
        assert len(running) > 5
        go.set()
        for client in running:
            assert (await client.rest()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    data = b"".join(path.read_bytes()[: written_bytes(path)] for path in tmp_path.glob("*.seg"))
    found = sort_lines(data)
    assert not found.begun
    assert found.columns[FIELDS.index("ending")] == ["success"] * len(running)
    writer.close()
