"""What commands print: the result on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Sequence
from typing import NoReturn


class CommandFailed(Exception):
    """The command cannot do what was asked. `str()` is one plain sentence."""


def fail(message: str) -> NoReturn:
    raise CommandFailed(message)


def tell(message: str) -> None:
    """A line for the person at the terminal (stderr). That it cannot be written, as on a full disk, ends nothing."""
    with contextlib.suppress(OSError):  # what was not taken goes with the next line
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def show(text: str) -> None:
    """A line of the result (stdout)."""
    sys.stdout.write(f"{text}\n")


def show_json(value: object) -> None:
    """The result as one JSON document."""
    show(json.dumps(value, ensure_ascii=False, indent=2))


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: frozenset[str] = frozenset(), empty: str = "") -> None:
    """Rows under headers: drawn on a terminal, plain aligned columns otherwise. `right`: columns of numbers. `empty` goes to stderr."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells and empty:
        tell(empty)
    elif sys.stdout.isatty():
        _draw(headers, cells, right)
    else:
        _align(headers, cells, right)


def _text(cell: object) -> str:
    """None is a dash; control characters (a name may hold them) never reach the terminal."""
    return "-" if cell is None else "".join(c if c.isprintable() else " " for c in str(cell))


def _align(headers: Sequence[str], cells: Sequence[Sequence[str]], right: frozenset[str]) -> None:
    lines = [[header.upper() for header in headers], *cells]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        padded = []
        for header, text, width in zip(headers, line, widths, strict=True):
            space = " " * (width - _width(text))
            padded.append(space + text if header in right else text + space)
        show("  ".join(padded).rstrip())


def _draw(headers: Sequence[str], cells: Sequence[Sequence[str]], right: frozenset[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: names are not markup
    Console(highlight=False).print(table)


def _width(text: str) -> int:
    """Columns on a terminal: Korean and other wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
