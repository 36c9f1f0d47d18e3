"""What a request is reserved at, and what it cost. Whole numbers only: tokens, and 1e-12 USD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gateway.metering.record import MAX_COST_PUSD
from gateway.relay.tokenize import prompt_tokens
from gateway.wire.body import positive
from gateway.wire.multipart import Upload

if TYPE_CHECKING:
    from auth.principal import Limited
    from gateway.relay.operations import Operation
    from gateway.routing.table import Prices, Route, Target
    from gateway.runtime import TokenizerSource
    from gateway.wire.body import Peek

_EXACT_BELOW_BYTES: Final = 4096
_MOST_TOKENS: Final = 10**15  # no limit that can be set is higher; a client's absurd number stays a number that can be written down
_FILE_TOKENS: Final = 8192
_PICTURES = frozenset(("image", "images", "mask"))  # what edits take as JSON
_TEMPLATE_TOKENS: Final = 64  # what a chat template puts around messages, beyond the JSON that the body spends on them


class Reservation:
    """`prompt_tokens`: exact or bytes / 4. `spliced`: members that make the reserved bound true at the backend."""

    __slots__ = ("cost_pusd", "prompt_tokens", "spliced", "tokens")

    def __init__(self, tokens: int, cost_pusd: int, prompt_tokens: int, spliced: tuple[tuple[str, bytes], ...] = ()) -> None:
        self.tokens = tokens
        self.cost_pusd = cost_pusd
        self.prompt_tokens = prompt_tokens
        self.spliced = spliced

    def at_least(self, other: Reservation) -> Reservation:
        """What covers both."""
        return Reservation(max(self.tokens, other.tokens), max(self.cost_pusd, other.cost_pusd), self.prompt_tokens, self.spliced)


def reservation(
    operation: Operation, route: Route, peek: Peek, body: bytes, callers: tuple[Limited, ...], tokenizers: TokenizerSource, at_s: float
) -> Reservation:
    """tokens = prompt estimate + choices x output limit; cost = an upper bound, 0 without a price or a budget. `callers`: as limited.
    `at_s`: whose prices count, Unix seconds; those of the target that would be the dearest.

    Only text counts as tokens of a prompt: not the files of a form, nor pictures that stand in its place. What an operation answers without
    a limit that a client could set (pictures, speech, embeddings) is not reserved in tokens; its report is owed afterwards.
    """
    if operation.inside:
        return Reservation(0, 0, 0)
    counted = priced = in_tokens = False
    for caller in callers:
        limits = caller.limits
        counted = counted or limits.tpm is not None or limits.tpd is not None or limits.token_budget is not None
        priced = priced or limits.budget is not None
        in_tokens = in_tokens or limits.token_budget is not None
    prices = _all_prices(route, at_s) if priced else []
    text_bytes = _text_bytes(peek.fields) if operation.raw else len(body)
    prompt = text_bytes // 4
    if counted and len(body) < _EXACT_BELOW_BYTES:
        tokenizer = tokenizers.of(route.id)
        if tokenizer is not None:
            exact = prompt_tokens(tokenizer, operation.name, peek.fields)
            prompt = prompt if exact is None else exact
    if operation.raw:
        answer = min(peek.choices * route.max_output_tokens, _MOST_TOKENS)
        return Reservation(prompt, _bound(prices, text_bytes + _upload_tokens(peek.fields), answer), prompt)
    if not operation.generates:
        return Reservation(prompt, _bound(prices, text_bytes, 0), prompt)
    limit = peek.output_limit
    spliced: tuple[tuple[str, bytes], ...] = ()
    if limit is None:
        own = _own_limit(operation, route, peek)
        limit = route.max_output_tokens if own is None else own
        if own is None and (prices or in_tokens):
            spliced = ((operation.limit, b"%d" % limit),)
    output = min(_choices(operation, peek) * limit, _MOST_TOKENS)
    return Reservation(prompt + output, _bound(prices, text_bytes, output), prompt, spliced)


def _text_bytes(fields: dict[str, Any]) -> int:
    """The UTF-8 bytes of what is said in words: top-level texts, data URLs left out."""
    size_bytes = 0
    for value in fields.values():
        for text in value if type(value) is list else (value,):
            if type(text) is str and not text.startswith("data:"):
                size_bytes += len(text.encode("utf-8", "surrogatepass"))
    return size_bytes


def _upload_tokens(fields: dict[str, Any]) -> int:
    """What files can cost at most: a picture some thousand tokens whatever its size, audio ten a second at 6 kbit/s or more."""
    tokens = 0
    for name, value in fields.items():
        for item in value if type(value) is list else (value,):
            if type(item) is Upload:
                tokens += _FILE_TOKENS + item.size_bytes // 64
            elif (type(item) is str and item.startswith("data:")) or name in _PICTURES:
                tokens += _FILE_TOKENS
    return tokens


def _own_limit(operation: Operation, route: Route, peek: Peek) -> int | None:
    """The output limit among the route's own parameters, which are spliced in anyway."""
    if not route.parameters:
        return None
    own = operation.parameters(route.parameters, peek)
    values = [value for name, value in own.items() if name in operation.limits and type(value) is int]
    return max(values) if values else None


def _choices(operation: Operation, peek: Peek) -> int:
    if operation.name != "completions":
        return peek.choices
    fields = peek.fields
    choices = max(peek.choices, positive(fields, "best_of")) if "best_of" in fields else peek.choices
    return choices * _prompts(peek.fields.get("prompt"))


def _prompts(prompt: Any) -> int:
    """How many prompts a completion carries: a list of strings or of token lists is many, a list of ints is one."""
    if type(prompt) is list and prompt and type(prompt[0]) is not int:
        return len(prompt)
    return 1


def prices_of(route: Route, target: Target | None, at_s: float) -> Prices | None:
    """What a request that began at `at_s` (Unix seconds) costs at this target."""
    prices = route.prices if target is None or target.prices is None else target.prices
    return None if prices is None else prices.at(at_s)


def _all_prices(route: Route, at_s: float) -> list[Prices]:
    """Those of every target that may serve. Where there is none they are the route's."""
    if not route.own_prices:
        prices = prices_of(route, None, at_s)
        return [] if prices is None else [prices]
    found: list[Prices] = []
    targets = [target for target in route.targets if target.weight > 0]
    for target in targets or (None,):
        prices = prices_of(route, target, at_s)
        if prices is not None:
            found.append(prices)
    return found


def _bound(all_prices: list[Prices], prompt_bytes: int, output_tokens: int) -> int:
    """No prompt has more tokens than UTF-8 bytes; the body has more bytes than its prompt. All of it may be cached, or none."""
    bound = 0
    for prices in all_prices:
        prompt_pusd = prices.input_pusd
        if prices.cached_pusd is not None and prices.cached_pusd > prompt_pusd:
            prompt_pusd = prices.cached_pusd
        cost = (prompt_bytes + _TEMPLATE_TOKENS) * prompt_pusd + output_tokens * prices.output_pusd
        if cost > bound:
            bound = cost
    return bound if bound < MAX_COST_PUSD else MAX_COST_PUSD


def cost_pusd(prices: Prices | None, prompt: int, completion: int, cached: int) -> int:
    """Exact cost of what was used, up to MAX_COST_PUSD. Cached prompt tokens have their own price where the route names one."""
    if prices is None:
        return 0
    if prices.cached_pusd is None or not cached:
        cost = prompt * prices.input_pusd + completion * prices.output_pusd
    else:
        cached = min(cached, prompt)
        cost = (prompt - cached) * prices.input_pusd + cached * prices.cached_pusd + completion * prices.output_pusd
    return cost if cost < MAX_COST_PUSD else MAX_COST_PUSD
