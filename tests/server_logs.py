"""The last step of every test run: what all servers of the run have logged holds no key, token, password or key of a backend.

Each server that `tests.gateway_process` starts writes its log beside its home, in pytest's folder of the run, where it stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway_process import PASSWORD
from tests.oidc_provider import CLIENT_SECRET
from tests.security.marks import shapes_in

# Secrets that many tests share. (What a test marks for itself it searches for itself.)
WORDS = (
    PASSWORD,
    CLIENT_SECRET,
    "nine lanterns under the bridge",
    "sk-upstream",
    "upstream-secret",
    "secret stack of the upstream",
    "secret of a webhook",
)


def faults_in(log: bytes) -> list[str]:
    return shapes_in(log) + [f"the words {word!r}" for word in WORDS if word.encode() in log]


@pytest.fixture(scope="session", autouse=True)
def logs_without_secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set up before all others, so ended after them: then every server of the run has ended too."""
    yield
    found, base = [], tmp_path_factory.getbasetemp()
    for path in sorted(base.rglob("*.log")):
        if path.is_file():
            found += [f"{path.relative_to(base)}: {fault}" for fault in faults_in(path.read_bytes())]
    if found:
        pytest.fail("Logs of servers of this run hold secrets:\n" + "\n".join(found[:50]), pytrace=False)
