"""What `gateway doctor` found where it looked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is empty where nothing is wrong."""

    check: str
    ok: bool
    message: str
    fix: str = ""
