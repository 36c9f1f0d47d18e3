"""The admin API answers every generated call as its document says, and never with a 5xx. The long form: `make test-security-long`."""

from __future__ import annotations

from pathlib import Path

from tests.security.generated import operations, run, target


def test_no_server_error_and_nothing_undocumented(tmp_path: Path) -> None:
    with target(tmp_path) as made:
        assert run(made, 200) >= 170
        asked = {name for name, _ in made.statuses}
        assert len(asked) == len(operations(made.document)), "an operation that is never asked is not tested"
        assert sum(count for (_, status), count in made.statuses.items() if status < 300) >= 25
