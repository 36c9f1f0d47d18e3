"""What of a streamed answer has gone to the client, kept so that its tokens can be counted where the backend does not say them.

Blocks are kept as they passed, by reference; past a bound they are packed (events are alike: a twentieth is left, for a fraction of what
reading them would cost). Past a bound of that nothing is kept any more: then there is only the estimate.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import orjson

from gateway.errors import GatewayError
from gateway.relay.tokenize import prompt_tokens
from gateway.wire import sse
from gateway.wire.body import parse

if TYPE_CHECKING:
    from gateway.relay.operations import Operation
    from gateway.runtime import Relay
    from gateway.wire.protocols import WireProtocol
    from gateway.wire.tokens import Tokenizer

_BLOCKS_BYTES: Final = 64_000
_PACKED_BYTES: Final = 1_000_000
_KEPT_BYTES: Final = 32_000_000  # of packed blocks once they are read again: a stream may pack to a thousandth


class Relayed:
    """The blocks of one stream."""

    __slots__ = ("_blocks", "_kept_bytes", "_lost", "_packed", "_packed_bytes", "_protocol", "_relay", "_size_bytes", "_weighed_bytes")

    def __init__(self, protocol: WireProtocol, relay: Relay | None = None) -> None:
        self._relay = relay
        self._kept_bytes = 0
        self._weighed_bytes = 0
        self._protocol = protocol
        self._blocks: list[bytes] = []
        self._size_bytes = 0
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._lost = False

    def add(self, block: bytes) -> None:
        """A block of whole events goes to the client."""
        self._blocks.append(block)
        self._size_bytes += len(block)
        if self._size_bytes > _BLOCKS_BYTES:
            self._pack()

    def _pack(self) -> None:
        blocks, self._blocks, size_bytes, self._size_bytes = self._blocks, [], self._size_bytes, 0
        if self._lost:
            return
        self._kept_bytes += size_bytes
        packed = zlib.compress(b"".join(blocks), 1)
        self._packed.append(packed)
        self._packed_bytes += len(packed)
        relay = self._relay
        full = relay is not None and relay.held_bytes > relay.max_held_bytes
        if full or self._packed_bytes > _PACKED_BYTES or self._kept_bytes > _KEPT_BYTES:
            self._lost = True
            self._packed = []
        self._weigh(0 if self._lost else self._packed_bytes + _BLOCKS_BYTES)

    def _weigh(self, size_bytes: int) -> None:
        if self._relay is not None:
            self._relay.held_bytes += size_bytes - self._weighed_bytes
            self._weighed_bytes = size_bytes

    def release(self) -> None:
        """Nobody reads it any more."""
        self._weigh(0)

    def texts(self) -> list[str] | None:
        """Each text of the model in one (`gateway.wire.words`); None where not all was kept."""
        if self._lost:
            return None
        words: dict[str, list[str]] = {}
        for packed in self._packed:
            self._read(zlib.decompress(packed), words)
        for block in self._blocks:
            self._read(block, words)
        return ["".join(parts) for parts in words.values()]

    def _read(self, block: bytes, words: dict[str, list[str]]) -> None:
        for event in sse.events(block):
            data = sse.data_of(event)
            if data is None:
                continue
            try:
                value = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            for place, text in self._protocol.words_of(value):
                if place in words:
                    words[place].append(text)
                else:
                    words[place] = [text]


class Count:
    """What the model's tokenizer is to count of one request. `body`: of the request; empty: its prompt is known. `answer`: a whole one.
    `words_bytes`: about how much `relayed` comes to.

    `run` may run in any thread, once nothing is added any more; then `prompt` and `completion` are what it found, None: it cannot say.
    """

    __slots__ = ("_answer", "_body", "_operation", "_relayed", "_tokenizer", "completion", "prompt", "size_bytes")

    def __init__(
        self, tokenizer: Tokenizer, operation: Operation, body: bytes, relayed: Relayed | None, words_bytes: int, answer: bytes
    ) -> None:
        self._tokenizer = tokenizer
        self._operation = operation
        self._body = body
        self._relayed = relayed
        self._answer = answer
        self.prompt: int | None = None
        self.completion: int | None = None
        self.size_bytes = len(body) + words_bytes + len(answer)

    def run(self) -> None:
        if self._body:
            self.prompt = self._count_prompt()
        texts: list[str] | None = []
        if self._relayed is not None:
            texts = self._relayed.texts()
        elif self._answer:
            texts = texts_of_answer(self._operation.protocol, self._answer)
        if texts is not None:
            self.completion = count_tokens(self._tokenizer, texts)

    def _count_prompt(self) -> int | None:
        try:
            return prompt_tokens(self._tokenizer, self._operation.name, parse(self._body))
        except GatewayError:
            return None


def texts_of_answer(protocol: WireProtocol, body: bytes) -> list[str] | None:
    """The same of a whole answer; None if it is not JSON."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    texts: dict[str, str] = {}
    for place, text in protocol.words_of(value):
        texts[place] = texts.get(place, "") + text
    return list(texts.values())


def count_tokens(tokenizer: Tokenizer, texts: list[str]) -> int | None:
    """None where the tokenizer cannot say it (a lone surrogate, a text beyond its bound)."""
    try:
        return sum([len(tokenizer.encode(text, False)) for text in texts])
    except GatewayError:
        return None
