"""Does each test of a guard fail where its guard is gone? A patch of `guards/` is applied to a copy of the tree; its tests must fail there.

    python -m tests.security.removed [NAME ...]     all patches, if none is named

A patch begins with lines that say what it takes away and which tests must notice: `row:` as in the table of dangers, `guard:` in words, and
`test:` a test (file, or file::name, below tests/security), once or more. The copy is interpreted: nothing compiled is in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARDS = Path(__file__).with_name("guards")
_COPIED = ("auth", "backends", "gateway", "migrations", "tests", "docs", "pyproject.toml", "constraints.txt")
_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Guard:
    """One recorded way to take a guard away."""

    name: str
    file: Path
    row: str
    guard: str
    tests: tuple[str, ...]


def recorded() -> list[Guard]:
    """All of them, by name."""
    return [_read(file) for file in sorted(GUARDS.glob("*.patch"))]


def _read(file: Path) -> Guard:
    said: dict[str, list[str]] = {"row": [], "guard": [], "test": []}
    for line in file.read_text().splitlines():
        if line.startswith("--- "):
            break
        name, _, value = line.partition(":")
        if name in said:
            said[name].append(value.strip())
    return Guard(file.stem, file, said["row"][0], said["guard"][0], tuple(said["test"]))


@contextmanager
def copy() -> Iterator[Path]:
    """The tree as it stands, without the compiled data plane. Bytecode comes with it, for sources that no patch has touched since:
    to compile all of it for each guard would take longer than the tests do.
    """
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        for name in _COPIED:
            source, target = ROOT / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("_native", "*.so", "node_modules"))
            elif source.exists():
                shutil.copy2(source, target)
        yield Path(folder)


def apply(guard: Guard, tree: Path, *, reverse: bool = False, dry: bool = False) -> str:
    """ "" where the patch could be applied, else what `patch` said."""
    arguments = ["patch", "-p1", "-F2", "--batch", "--no-backup-if-mismatch", "-r", "-", "-i", str(guard.file)]
    arguments += (["-R"] if reverse else ["-N"]) + (["--dry-run"] if dry else [])
    done = subprocess.run(arguments, cwd=tree, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


def notices(guard: Guard, tree: Path) -> tuple[int, str]:
    """(exit code of the tests in this tree, the end of what they said)."""
    tests = [f"tests/security/{test}" for test in guard.tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    env |= {"PYTHONPATH": str(tree), "HOME": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        return -1, f"not ended after {_LIMIT_S} s"
    return done.returncode, done.stdout[-3000:]


def judged(guard: Guard, tree: Path) -> str:
    """ "" where the tests pass with the guard and fail without it, else what is wrong. The tree is as before afterwards."""
    if said := apply(guard, tree):
        return f"the patch does not apply any more: {said}"
    try:
        code, said = notices(guard, tree)
    finally:
        apply(guard, tree, reverse=True)
    if code == 1 and " failed" in said:
        return ""
    return f"without the guard the tests end with {code}, where they must fail:\n{said}"


def main() -> None:
    chosen = [guard for guard in recorded() if not sys.argv[1:] or guard.name in sys.argv[1:]]
    wrong = 0
    with copy() as tree:
        for guard in chosen:
            started = time.monotonic()
            fault = judged(guard, tree)
            wrong += bool(fault)
            print(f"{'WRONG ' if fault else 'noticed'} {guard.name} ({time.monotonic() - started:.1f} s): {guard.guard}", flush=True)
            if fault:
                print(fault, flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} guards are missed when they are gone")
    sys.exit(1 if wrong or not chosen else 0)


if __name__ == "__main__":
    main()
