"""CPU of children that have ended must stay in the sum: gateways start and lose worker processes."""

from __future__ import annotations

import subprocess
import sys

from bench.measure import REST, SERVING, cpu_by_role_s, cpu_s, pss_bytes, tree

BURN = "import time\nwhile time.process_time() < 0.2: pass"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\nprint('burnt', flush=True)\nsys.stdin.read()"


def test_the_cpu_of_an_ended_child_is_counted() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"burnt\n"
    assert [stat.pid for stat in tree(parent.pid)] == [parent.pid]
    assert 0.19 < cpu_s(parent.pid) < 5.0
    assert pss_bytes(parent.pid) > 1_000_000
    roles = cpu_by_role_s(parent.pid, (("import subprocess", "parent"),))
    assert 0.19 < roles.pop("parent") < 5.0
    assert not roles
    assert list(cpu_by_role_s(parent.pid, (("another", "other"),))) == [REST]
    assert list(cpu_by_role_s(parent.pid, ())) == [SERVING]
    parent.communicate()
