"""`gateway usage` and `gateway ledger export`: what requests used, up to the last one that has ended."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339, since
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, show_table, tell

if TYPE_CHECKING:
    from gateway.store.usage import UsageLine

ledger_app = typer.Typer(help="The record of every admitted request.", no_args_is_help=True)

Since = Annotated[str, typer.Option("--since", metavar="7d", help="From when: 90s, 1h, 7d or an RFC 3339 time. Without it: all.")]
_GROUPS = {"key": ("key_id",), "model": ("model",), "day": ("day",), "arm": ("experiment", "arm")}
_SETTLE_S = 5.0  # a keeper on a busy machine may take longer than its usual second
_PAGE = 1000


def usage(
    by: Annotated[str, typer.Option("--by", metavar="key|model|day|arm", help="What to add up; arm: of experiments and canaries.")] = "key",
    since_text: Since = "",
    as_json: Json = False,
) -> None:
    """Requests, tokens and cost, by key, model, day or arm. Counted by the hour, in UTC."""
    if by not in _GROUPS:
        raise typer.BadParameter("It is key, model, day or arm.", param_hint="--by")
    since_s = since(since_text, time.time()) if since_text else 0.0
    lines = in_context(lambda ctx: _totals(ctx, by, since_s))
    if as_json:
        show_json([_fields(line, by) for line in lines])
        return
    rows = [tuple(_fields(line, by).values()) for line in lines]
    counts = ("requests", "prompt tokens", "completion tokens", "cost (USD)")
    show_table((*_GROUPS[by], *counts), rows, right=frozenset(counts), empty="Nothing was used.")


@ledger_app.command()
def export(since_text: Since = "") -> None:
    """Print one JSON line per admitted request, oldest first."""
    since_s = since(since_text, time.time()) if since_text else 0.0

    async def work(ctx: Context) -> None:
        from gateway.store.requests import exported

        await settle_ledger(ctx)
        async for row in _rows(ctx, since_s):
            show(json.dumps(exported(row) | {"started_at": rfc3339(row["started_at"])}, ensure_ascii=False, separators=(",", ":")))

    in_context(work)


async def settle_ledger(ctx: Context) -> None:
    """Books that hold all that has ended so far, or a word that they do not."""
    from gateway.keeper.settle import settle

    if not await settle(ctx.db, ctx.settings.run_dir, _SETTLE_S):
        tell(f"The running server has not brought its ledger up to date within {_SETTLE_S:.0f} s: the newest requests may be missing.")


async def _totals(ctx: Context, by: Any, since_s: float) -> list[UsageLine]:
    from gateway.store.usage import Wanted, whole_report

    await settle_ledger(ctx)
    async with ctx.db.read() as conn:
        return await whole_report(conn, by, Wanted(since_s))


async def _rows(ctx: Context, since_s: float) -> AsyncIterator[dict[str, Any]]:
    from gateway.store.requests import rows_since

    after = (0.0, "")
    while True:
        async with ctx.db.read() as conn:  # a transaction for each page: a long export must not hold one open
            page = await rows_since(conn, since_s, after=after, limit=_PAGE)
        for row in page:
            yield row
        if len(page) < _PAGE:
            return
        after = (page[-1]["started_at"], page[-1]["request_id"])


def _fields(line: UsageLine, by: str) -> dict[str, Any]:
    from gateway.limits.budget import format_usd

    groups = (line.experiment, line.group) if by == "arm" else (line.group or None,)  # no key: a login token
    return {
        **dict(zip(_GROUPS[by], groups, strict=True)),
        "requests": line.requests,
        "prompt_tokens": line.prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "cost": format_usd(line.cost_pusd),
    }
