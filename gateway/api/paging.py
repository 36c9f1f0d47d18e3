"""Lists in pages: each page says where the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from gateway.errors import InvalidRequest

T = TypeVar("T")
Item = TypeVar("Item")

NO_NUL = r"^[^\x00]*$"  # PostgreSQL takes no text with a NUL
After = Annotated[str, Query(max_length=200, pattern=NO_NUL, description="`next` of the page before; empty for the first page.")]
AfterNumber = Annotated[int | None, Query(ge=1, le=2**63 - 1, description="`next` of the page before; absent for the first page.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Entries per page.")]


class Page(BaseModel, Generic[T]):
    """One page of a list. `next` is given as `after` to get the following page; null: this was the last."""

    data: list[T]
    next: str | None = Field(None, examples=[None])


def cut(found: Sequence[Item], limit: int) -> tuple[Sequence[Item], bool]:
    """`found` was asked for with one entry more than the page holds: (the page's entries, is there more)."""
    return found[:limit], len(found) > limit


def place_text(at_s: float, request_id: str) -> str:
    """`next` of a page of requests whose last one this is. `at_s`: Unix seconds."""
    return f"{at_s!r},{request_id}"


def place_of(after: str) -> tuple[float, str] | None:
    """(Unix seconds, request id) of the last request of the page before; None: there is none. Raises `InvalidRequest`."""
    if not after:
        return None
    at_s, comma, request_id = after.partition(",")
    try:
        if comma:
            return float(at_s), request_id
    except ValueError:
        pass
    raise InvalidRequest("'after' is not the 'next' of a page.", param="after")
