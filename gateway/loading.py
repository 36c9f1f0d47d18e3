"""How a process of ours loads what it needs: the garbage collector neither looks through it meanwhile nor ever after."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Around the first imports of a process. Modules, classes and mappers live as long as it does: looking for garbage among them,
    again and again while they are made and once more as the process ends, is a third of the CPU that a start costs.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
