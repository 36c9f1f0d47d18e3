from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from auth.principal import Budget, Limited, Limits, TokenBudget
from gateway.relay.estimate import Reservation, reservation
from gateway.relay.operations import ROUTES
from gateway.routing.table import Prices, Target
from tests.relay_server import NoTokenizers, route, target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.runtime import TokenizerSource

ALL = {operation.name: operation for operation in ROUTES.values()}
FORM = b"multipart/form-data; boundary=XyZ"
LIMITED = Limits(tpm=10**6)
BUDGET = Limits(budget=Budget(10**12))
PRICES = Prices(2, 3)
AT_S = 1_800_000_000.0


def wanted(
    name: str, body: bytes, limits: Limits = LIMITED, content_type: bytes = b"", targets: Sequence[Target] = (), **more: Any
) -> Reservation:
    operation = ALL[name]
    callers = (Limited("k", Limits(rpm=1)), Limited("user:u", limits))
    asked, tokenizers = operation.read(body, content_type), cast("TokenizerSource", NoTokenizers())
    return reservation(operation, route(targets, **more), asked, body, callers, tokenizers, AT_S)


def sent(**fields: Any) -> bytes:
    return orjson.dumps(fields)


def form(size_bytes: int) -> bytes:
    head = b'--XyZ\r\nContent-Disposition: form-data; name="'
    return head + b'prompt"\r\n\r\nten words..\r\n' + head + b'file"; filename="a"\r\n\r\n' + b"x" * size_bytes + b"\r\n--XyZ--\r\n"


def parts(made: Reservation) -> tuple[int, int, int, tuple[tuple[str, bytes], ...]]:
    return made.tokens, made.cost_pusd, made.prompt_tokens, made.spliced


@pytest.mark.parametrize(
    ("name", "fields", "output"),
    [
        ("chat", {"max_tokens": 10, "n": 3}, 30),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 10, "best_of": 4}, 80),
        ("responses", {"max_output_tokens": 10}, 10),
        ("responses", {"max_tokens": 10}, 1024),
        ("messages", {"max_tokens": 10}, 10),
        ("messages", {}, 1024),
        ("rerank", {"max_tokens": 10}, 0),
        ("moderations", {"n": 3}, 0),
        ("embeddings", {}, 0),
    ],
)
def test_a_quarter_of_the_bytes_and_the_operations_own_limit(name: str, fields: dict[str, Any], output: int) -> None:
    body = sent(model="m", text="x" * 400, **fields)
    assert parts(wanted(name, body)) == (len(body) // 4 + output, 0, len(body) // 4, ())


@pytest.mark.parametrize("name", ["transcriptions", "translations", "image_edits"])
def test_the_bytes_of_a_file_are_no_tokens(name: str) -> None:
    assert parts(wanted(name, form(400_000), content_type=FORM)) == (2, 0, 2, ())


def test_pictures_in_json_are_no_tokens() -> None:
    body = sent(model="", prompt="x" * 40, image="data:image/png;base64," + "A" * 40_000, images=[{"image_url": "data:" + "A" * 999}])
    assert wanted("image_edits", body).tokens == 10
    assert wanted("speech", sent(model="", input="x" * 400)).tokens == 100
    assert wanted("image_generations", sent(model="", prompt="x" * 400, n=9)).tokens == 100


def test_a_budget_bounds_what_files_and_pictures_may_cost() -> None:
    text_bytes = len("ten words..")
    large = wanted("transcriptions", form(640_000), BUDGET, FORM, prices=PRICES)
    assert large.cost_pusd == (text_bytes + 8192 + 10_000 + 64) * 2 + 1024 * 3
    assert large.spliced == ()
    pictures = wanted("image_generations", sent(model="", prompt="x", n=4), BUDGET, prices=PRICES, max_output_tokens=6000)
    assert pictures.cost_pusd == (1 + 64) * 2 + 4 * 6000 * 3
    assert pictures.tokens == 0


@pytest.mark.parametrize(
    ("name", "spliced"),
    [("chat", "max_tokens"), ("completions", "max_tokens"), ("responses", "max_output_tokens"), ("messages", "max_tokens")],
)
def test_the_bound_is_made_true_under_the_operations_name(name: str, spliced: str) -> None:
    body = sent(model="m")
    assert wanted(name, body, BUDGET, prices=PRICES).spliced == ((spliced, b"1024"),)
    own = wanted(name, body, BUDGET, prices=PRICES, parameters={"max_tokens": 50})
    assert (own.spliced, own.tokens) == ((), len(body) // 4 + 50)


def test_of_two_own_limits_the_higher_counts() -> None:
    own = {"max_tokens": 50, "max_completion_tokens": 70, "temperature": 1}
    assert wanted("chat", sent(model="m"), parameters=own).tokens == len(sent(model="m")) // 4 + 70


def test_a_budget_in_tokens_bounds_the_answer_whatever_it_costs() -> None:
    limits, body = Limits(token_budget=TokenBudget(10**6)), sent(model="m", messages=[{"role": "user", "content": "x" * 40}])
    made = wanted("chat", body, limits, max_output_tokens=50)
    assert parts(made) == (len(body) // 4 + 50, 0, len(body) // 4, (("max_tokens", b"50"),))
    assert wanted("chat", sent(model="m", max_tokens=5), limits).spliced == ()


def priced(prices: Prices | None, weight: int = 1) -> Target:
    return replace(target("http://127.0.0.1:9", weight=weight), prices=prices)


def test_what_is_reserved_is_the_price_of_the_dearest_target_that_may_serve() -> None:
    body = sent(model="m", max_tokens=1000)
    prompt = len(body) + 64
    dear_input, dear_output = Prices(1000, 1), Prices(1, 1000)
    for targets, expected in (
        ([priced(None)], prompt * 2 + 3000),
        ([priced(None), priced(dear_output)], prompt + 1_000_000),
        ([priced(dear_input), priced(Prices(0, 0))], prompt * 1000 + 1000),
        ([priced(Prices(1, 1))], prompt + 1000),  # no target has the route's price
        ([priced(None), priced(dear_output, weight=0)], prompt * 2 + 3000),  # drained
    ):
        assert wanted("chat", body, BUDGET, targets=targets, prices=PRICES).cost_pusd == expected
    assert wanted("chat", sent(model="m"), BUDGET, targets=[priced(None), priced(dear_output)]).spliced == (("max_tokens", b"1024"),)


def test_what_is_reserved_is_the_price_of_the_time() -> None:
    body = sent(model="m", max_tokens=1000)
    planned = Prices(0, 10, None, AT_S + 1, Prices(0, 3, None, AT_S, Prices(0, 1)))
    assert wanted("chat", body, BUDGET, prices=planned).cost_pusd == 3000
    assert wanted("chat", body, BUDGET, prices=Prices(0, 10, None, AT_S + 1)).cost_pusd == 0


def test_no_bound_is_more_than_can_be_written_down() -> None:
    made = wanted("chat", sent(model="m", max_tokens=10**15), BUDGET, prices=Prices(0, 10**12))
    assert made.cost_pusd == 2**63 - 1


def test_cached_tokens_may_be_the_dearer_ones() -> None:
    body = sent(model="m", max_tokens=1000)
    assert wanted("chat", body, BUDGET, prices=Prices(2, 3, 5)).cost_pusd == (len(body) + 64) * 5 + 3000
    assert wanted("chat", body, BUDGET, prices=Prices(2, 3, 1)).cost_pusd == (len(body) + 64) * 2 + 3000
