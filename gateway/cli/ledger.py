"""`gateway ledger`: the record of every admitted request, printed or checked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.context import Context, in_context
from gateway.cli.moments import rfc3339, since
from gateway.cli.options import Json
from gateway.cli.output import show, show_json, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.store.verify import Fault

app = typer.Typer(help="The record of every admitted request.", no_args_is_help=True)

Since = Annotated[str, typer.Option("--since", metavar="7d", help="From when: 90s, 1h, 7d or an RFC 3339 time. Without it: all.")]
_SETTLE_S = 5.0  # a keeper on a busy machine may take longer than its usual second
_PAGE = 1000


@app.command()
def export(since_text: Since = "") -> None:
    """Print one JSON line per admitted request, oldest first."""
    since_s = since(since_text, time.time()) if since_text else 0.0

    async def work(ctx: Context) -> None:
        from gateway.store.requests import exported

        await settle_ledger(ctx)
        async for row in _rows(ctx, since_s):
            line = exported(row) | {"started_at": rfc3339(row["started_at"])}
            show(json.dumps(line, ensure_ascii=False, separators=(",", ":")))

    in_context(work)


@app.command()
def verify(as_json: Json = False) -> None:
    """Do segments, rows and roll-ups agree? Finds altered and removed rows, missing segments, figures that disagree. Changes nothing."""
    checked = in_context(_verify)
    faults: list[Fault] = checked.pop("faults")
    valid = not faults
    if as_json:
        show_json({"valid": valid} | checked | {"faults": [asdict(fault) for fault in faults]})
    else:
        for fault in faults:
            show(fault.message)
        counts = f"{checked['rows']} rows of {checked['days']} days, {checked['segments']} segments"
        unnamed = f", and {checked['more']} that are not named" if checked["more"] else ""
        show(f"The books agree: {counts}." if valid else f"The books do not agree: {len(faults)} fault(s){unnamed} in {counts}.")
    if checked["elsewhere"]:
        tell(f"{checked['elsewhere']} segment(s) are in the folders of other hosts: check them there.")
    if not valid:
        raise typer.Exit(1)


async def settle_ledger(ctx: Context) -> None:
    """Books that hold all that has ended so far, or a word that they do not."""
    from gateway.keeper.settle import settle

    if not await settle(ctx.db, ctx.settings.run_dir, _SETTLE_S):
        tell("The ledger could not be brought up to date: the newest requests may be missing. `gateway doctor` may say why.")


async def _verify(ctx: Context) -> dict[str, Any]:
    from gateway.keeper.segments import verify_segments
    from gateway.store.verify import days_to_verify, verify_day, verify_week, weeks_with

    found = await verify_segments(ctx.db, ctx.settings.run_dir / "ledger")
    days, faults = await days_to_verify(ctx.db)
    rows = more = 0
    faults = found.faults + faults
    parts = [(verify_day, day) for day in days] + [(verify_week, week) for week in weeks_with(days)]
    with _progress(len(parts)) as done:
        for verify_part, which in parts:
            found_there = await verify_part(ctx.db, which)
            faults += [fault for fault in found_there.faults if fault not in faults]
            rows, more = rows + found_there.rows, more + found_there.more
            done()
    return {"days": len(days), "rows": rows, "segments": found.checked, "elsewhere": found.elsewhere, "more": more, "faults": faults}


@contextmanager
def _progress(parts: int) -> Iterator[Callable[[], object]]:
    """A bar for the person at the terminal; for nobody else."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Days and weeks", total=parts)
        yield lambda: progress.advance(task)


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
