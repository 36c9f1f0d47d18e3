"""One record per admitted request: the only source of SQL rows and of Prometheus figures."""

from __future__ import annotations

from dataclasses import dataclass, fields

ENDINGS = ("success", "rejected", "upstream_error", "timeout", "client_gone", "shutdown", "interrupted")
TOKEN_SOURCES = ("backend", "tokenizer", "estimate")


@dataclass(slots=True)
class UsageRecord:
    """Filled while the request runs, handed on once it is over. Times: Unix seconds; durations: ms; money: 1e-12 USD.

    `status` is what the client was sent; 499 if it left before the answer began. `backend` is the target's name, never a URL.
    """

    request_id: str
    started_at: float
    operation: str
    key_id: str | None
    user_id: str
    model: str
    revision: int
    client_request_id: str | None = None
    backend: str | None = None
    attempts: int = 0
    status: int = 499
    ending: str = "client_gone"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_source: str = "estimate"
    cost_pusd: int = 0
    duration_ms: float = 0.0
    ttft_ms: float | None = None
    queue_ms: float = 0.0
    connect_ms: float | None = None
    experiment: str | None = None  # what assigned the arm: an experiment's name, or the route whose canary it is
    arm: str | None = None


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(UsageRecord))
"""In this order a record is written to the ledger, and its row to SQL."""
