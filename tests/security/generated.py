"""The admin API as its own document describes it: generated calls, right ones and wrong ones. No 5xx, and no answer that is not documented.

python -m tests.security.generated [CASES]        5,000 if none are named
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import (
    CheckFunction,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.generation import GenerationMode

from tests.gateway_process import gateway

CONFIG = "models: [{id: m, backends: [{type: echo}]}]"
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Which pool a parameter of a path is taken from, half of the time: an id that exists leads further than one that does not.
_POOLS = {"user_id": "user", "key_id": "key", "team_id": "team", "revision_id": "revision", "name": "secret"}


@dataclass
class Target:
    """A gateway of its own, an admin's key, and ids of what may be changed: not of who asks."""

    url: str
    key: str
    document: dict[str, Any]
    ids: dict[str, list[str]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    cases: int = 0


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    with gateway(folder, CONFIG) as running, httpx.Client(base_url=running.url, trust_env=False, timeout=20) as http:
        key = running.key("asks", "--scopes", "admin")
        http.headers["authorization"] = f"Bearer {key}"
        made = Target(running.url, key, http.get("/openapi.json").json())
        team = http.post("/admin/teams", json={"name": "team"}).json()["id"]
        users = [http.post("/admin/users", json={"email": f"u{n}@example.com", "team": team}).json()["id"] for n in range(6)]
        keys = [http.post("/admin/keys", json={"name": f"k{n}", "owner": users[n]}).json()["id"] for n in range(6)]
        assert http.put("/admin/secrets/upstream", json={"value": "v"}).is_success
        made.ids = {"user": users, "key": keys, "team": [team], "revision": ["1"], "secret": ["upstream"]}
        yield made


def operations(document: dict[str, Any]) -> list[Any]:
    """Those of the admin API. The credential is ours to send: made-up ones would all end at the door."""
    plain = dict(document)
    plain["components"] = {name: part for name, part in document["components"].items() if name != "securitySchemes"}
    plain["paths"] = {
        path: {method: {k: v for k, v in operation.items() if k != "security"} for method, operation in methods.items()}
        for path, methods in document["paths"].items()
    }
    plain.pop("security", None)
    schema = schemathesis.openapi.from_dict(plain)
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if operation.path.startswith("/admin/")]


def run(target: Target, cases: int, *, fixed: bool = True) -> int:
    """About so many, spread over all operations; how many there were. Raises what schemathesis raises for the first wrong answer."""
    found = operations(target.document)
    assert found
    with requests.Session() as session:
        session.trust_env = False
        while True:
            missing = -(-(cases - target.cases) // len(found))  # some operations have not so many different calls
            for number, operation in enumerate(found):
                _ask(target, session, operation, missing, number if fixed else None)
            if fixed or target.cases >= cases:
                break
    return target.cases


def _ask(target: Target, session: requests.Session, operation: Any, cases: int, number: int | None) -> None:
    """A third of them wrong, if the operation can be called wrongly at all."""
    before = target.cases
    with contextlib.suppress(Unsatisfiable):
        _generate(target, session, operation, GenerationMode.NEGATIVE, cases // 3, number)
    _generate(target, session, operation, GenerationMode.POSITIVE, cases - (target.cases - before), number)


def _generate(target: Target, session: requests.Session, operation: Any, mode: GenerationMode, cases: int, number: int | None) -> None:
    rng = random.Random(number)

    @settings(
        max_examples=max(1, cases),
        deadline=None,
        database=None,
        derandomize=number is not None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        for name in case.path_parameters or {}:
            pool = target.ids.get(_POOLS.get(name, ""), [])
            if pool and rng.random() < 0.5:
                case.path_parameters[name] = rng.choice(pool)
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            _make_plausible(case.body, rng, target)
        headers = {"authorization": f"Bearer {target.key}"}
        answer = case.call(base_url=target.url, session=session, headers=headers, timeout=20, allow_redirects=False)
        target.cases += 1
        target.statuses[(f"{operation.method.upper()} {operation.path}", answer.status_code)] += 1
        case.validate_response(answer, checks=CHECKS)

    ask()


def _make_plausible(body: dict[str, Any], rng: random.Random, target: Target) -> None:
    """Texts of the right length are seldom addresses, keys or names of teams: most bodies get real ones, so that something happens."""
    number = rng.randrange(10_000)
    likely = {
        "email": f"g{number}@example.com",
        "key": f"existing-key-of-another-gateway-{number:08d}-x8Jq2ZpL",
        "team": rng.choice(target.ids["team"]),
        "owner": rng.choice(target.ids["user"]),
        "expires": "30d",
        "budget": "25/month",
        "networks": ["10.0.0.0/8"],
    }
    for name in body.keys() & likely.keys():
        if body[name] is not None and rng.random() < 0.8:
            body[name] = likely[name]


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    with tempfile.TemporaryDirectory(prefix="generated-") as folder, target(Path(folder)) as made:
        run(made, cases, fixed=False)
        print(f"{made.cases} calls of {len(operations(made.document))} operations: no 5xx, nothing undocumented")
        for (name, status), count in sorted(made.statuses.items()):
            print(f"  {name}: {status} x {count}")


if __name__ == "__main__":
    main()
