"""Fixtures for all tests."""

import asyncio
import gc
import os

from hypothesis import settings

import gateway.native  # first of all: it makes the compiled form of the other packages known
from tests.loops import Policy

# Models in this process compute on one core: two threads that wait for each other take minutes where other tests run beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run: whoever looks for new ones says HYPOTHESIS_PROFILE=default.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

asyncio.set_event_loop_policy(Policy())

pytest_plugins = ["tests.databases", "tests.redis_server", "tests.server_logs"]


def pytest_report_header() -> str:
    return gateway.native.described()


def pytest_collection_finish() -> None:
    """As a server process does. What is collected stays, a million objects: looking through it again and again costs a tenth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
