from __future__ import annotations

import random

import orjson

from gateway.relay.relayed import Relayed
from gateway.wire.protocols import OPENAI


def block(*texts: str) -> bytes:
    return b"".join(b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n" for text in texts)


def test_nothing_was_said() -> None:
    relayed = Relayed(OPENAI)
    assert relayed.texts() == []
    relayed.add(b": comment\n\n")
    relayed.add(b"data: [DONE]\n\n")
    relayed.add(b"data: {not json\n\n")
    assert relayed.texts() == []


def test_blocks_are_read_in_order_packed_or_not() -> None:
    relayed = Relayed(OPENAI)
    said = [f"word {number} \u00e9" for number in range(5000)]
    for at in range(0, len(said), 3):
        relayed.add(block(*said[at : at + 3]))
    assert relayed.texts() == ["".join(said)]
    assert relayed._packed
    assert sum(map(len, relayed._packed)) + relayed._size_bytes < 150_000


def test_there_is_a_bound() -> None:
    relayed, chance = Relayed(OPENAI), random.Random(5)
    for _ in range(60):
        relayed.add(block(chance.randbytes(30_000).hex()))
    assert relayed.texts() is None
    assert not relayed._packed
    assert relayed._size_bytes <= 64_000


def test_the_bound_is_of_what_is_read_again_too() -> None:
    relayed = Relayed(OPENAI)
    large = block("a" * 1_000_000)
    for _ in range(34):
        relayed.add(large)
    assert relayed.texts() is None
    assert not relayed._packed
