"""Many API keys at once, into a home that `gateway init` has made: for measuring what their number costs.

    GATEWAY_HOME=... python -m bench.keys --count 100000 --rpm 1000000 > keys.txt

The keys are real ones, minted and stored as `gateway keys create` does it, in transactions of a thousand and without an
audit row each. The server must not be running: nothing tells it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import islice

from auth.keys import digest, mint
from auth.principal import Budget, Limits
from gateway.cli.context import context
from gateway.settings import load_settings
from gateway.store import keys, users
from gateway.store.keys import ApiKey

BATCH = 1000
PUSD = 10**12


def minted(owner_id: str, limits: Limits) -> Iterator[tuple[ApiKey, str]]:
    """Keys and their texts, without end."""
    now_s = time.time()
    while True:
        key_id, text = mint()
        yield ApiKey(key_id, owner_id, "bench", ("*",), ("inference",), limits, now_s), text


async def issue(count: int, limits: Limits) -> list[str]:
    """Store `count` new keys of the first admin; returns their texts."""
    texts: list[str] = []
    async with context(load_settings()) as ctx:
        async with ctx.db.read() as conn:
            owner = await users.first_admin(conn)
        if owner is None:
            sys.exit("this home has no admin: run gateway init first")
        endless = minted(owner.id, limits)
        while len(texts) < count:
            batch = list(islice(endless, min(BATCH, count - len(texts))))
            async with ctx.db.write() as conn:
                await keys.insert_keys(conn, [(key, digest(text)) for key, text in batch])
            texts.extend(text for _, text in batch)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.keys", description="Make many keys; prints them, one per line.")
    parser.add_argument("--count", type=int, required=True)
    for name in ("rpm", "tpm", "concurrency", "budget"):
        parser.add_argument(f"--{name}", type=int, help="whole USD, for ever" if name == "budget" else "")
    given = parser.parse_args()
    budget = None if given.budget is None else Budget(given.budget * PUSD)
    texts = asyncio.run(issue(given.count, Limits(given.rpm, given.tpm, given.concurrency, budget)))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
