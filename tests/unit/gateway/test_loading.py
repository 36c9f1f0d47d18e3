"""The collector is off while a process loads, on after, and leaves alone what was loaded."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from gateway.loading import loading


def test_off_while_loading_on_after() -> None:
    frozen = gc.get_freeze_count()
    try:
        with loading():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_on_also_where_loading_failed() -> None:
    try:
        with pytest.raises(ImportError), loading():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("entry", ["gateway.cli.server", "gateway.keeper.__main__", "gateway.cli.entry"])
def test_the_entry_of_a_process_loads_nothing_heavy_itself(entry: str) -> None:
    """Or the collector would look through it: what is heavy is loaded inside `loading`, or with a command."""
    seen = subprocess.run([sys.executable, "-c", f"import sys, {entry}; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert {"sqlalchemy", "structlog", "pydantic", "typer", "uvicorn"}.isdisjoint(seen.stdout.split())
