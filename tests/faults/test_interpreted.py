"""The tests run on the compiled data plane where there is one. This part of them runs interpreted too, so that both forms stay alive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import native

ROOT = Path(__file__).parents[2]
PART = ("tests/faults/test_streams.py", "tests/faults/test_before_the_commit_point.py", "tests/live/test_relay_traps.py")


@pytest.mark.skipif(native.why_interpreted() is not None, reason="these tests run interpreted already")
def test_both_forms_do_the_same() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PART]
    environment = os.environ | {"GATEWAY_INTERPRETED": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
