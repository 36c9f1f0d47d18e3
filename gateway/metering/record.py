"""One record per admitted request: the only source of SQL rows and of Prometheus figures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

ENDINGS = ("success", "rejected", "upstream_error", "timeout", "client_gone", "shutdown", "interrupted")
TOKEN_SOURCES = ("backend", "tokenizer", "estimate")
# Of one request, 9.2 million USD: what a BIGINT holds. What a backend's report makes dearer is booked at this.
MAX_COST_PUSD: Final = 2**63 - 1


@dataclass(slots=True, init=False)
class UsageRecord:
    """Filled while the request runs, handed on once it is over. Times: Unix seconds; durations: ms; money: 1e-12 USD.

    `status` is what the client was sent; 499 if it left before the answer began. `backend` is the target's name, never a URL.
    `experiment` is what assigned the arm: an experiment's name, or the route whose canary it is. `cached_tokens` are a part of
    `prompt_tokens`, `reasoning_tokens` of `completion_tokens`. `price`: what it was priced at, `routing.table.Prices.text`. `tried`: the
    attempts that failed, in order, as `metering.tried` writes them; None on the usual way.
    """

    request_id: str
    started_at: float
    operation: str
    key_id: str | None
    user_id: str
    model: str
    revision: int
    client_request_id: str | None
    backend: str | None
    attempts: int
    status: int
    ending: str
    prompt_tokens: int
    completion_tokens: int
    token_source: str
    cost_pusd: int
    duration_ms: float
    ttft_ms: float | None
    queue_ms: float
    connect_ms: float | None
    experiment: str | None
    arm: str | None
    team_id: str | None
    cached_tokens: int
    reasoning_tokens: int
    price: str | None
    tried: str | None

    def __init__(  # by hand: the one that dataclass makes is interpreted, and costs three times as much
        self,
        request_id: str,
        started_at: float,
        operation: str,
        key_id: str | None,
        user_id: str,
        model: str,
        revision: int,
        client_request_id: str | None = None,
        backend: str | None = None,
        attempts: int = 0,
        status: int = 499,
        ending: str = "client_gone",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        token_source: str = "estimate",
        cost_pusd: int = 0,
        duration_ms: float = 0.0,
        ttft_ms: float | None = None,
        queue_ms: float = 0.0,
        connect_ms: float | None = None,
        experiment: str | None = None,
        arm: str | None = None,
        team_id: str | None = None,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        price: str | None = None,
        tried: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.started_at = started_at
        self.operation = operation
        self.key_id = key_id
        self.user_id = user_id
        self.model = model
        self.revision = revision
        self.client_request_id = client_request_id
        self.backend = backend
        self.attempts = attempts
        self.status = status
        self.ending = ending
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.token_source = token_source
        self.cost_pusd = cost_pusd
        self.duration_ms = duration_ms
        self.ttft_ms = ttft_ms
        self.queue_ms = queue_ms
        self.connect_ms = connect_ms
        self.experiment = experiment
        self.arm = arm
        self.team_id = team_id
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens
        self.price = price
        self.tried = tried


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(UsageRecord))
"""In this order a record is written to the ledger, and its row to SQL."""
