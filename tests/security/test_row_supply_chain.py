"""What is installed is what was looked at: every version is exact, every dependency is meant. The rest is a checklist for a release."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pinned() -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {_name(line.split("==")[0]): line.split("==")[1] for line in lines if line}


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def test_every_version_is_exact() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


def test_every_dependency_is_pinned_and_bounded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = pinned()
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    for requirement in wanted:
        name = _name(re.split(r"[\[<>=!~; ]", requirement)[0])
        assert name in versions, f"{name} is not in constraints.txt"
    for floor, least in (("starlette", (1, 0, 1)), ("python-jose", (3, 5, 0)), ("jinja2", (3, 1, 6))):
        assert tuple(int(part) for part in versions[floor].split(".")[:3]) >= least
        assert any(_name(r).startswith(floor) and ">=" in r for r in project["dependencies"]), floor


def test_nothing_else_is_installed_that_runs_at_the_start_of_python() -> None:
    """A stealer came as a `.pth` file: those of what we pin are few and known."""
    known = {"_virtualenv", "distutils-precedence", "_model_gateway", "pywin32"}
    for distribution in distributions():
        for file in distribution.files or ():
            if file.suffix == ".pth" and "/" not in str(file):
                assert file.stem in known or "editable" in file.stem, f"{distribution.name} brings {file}"


def test_a_release_has_its_checklist() -> None:
    text = (ROOT / "docs" / "security-release-checklist.md").read_text().lower()
    for word in ("sbom", "digest", "attest", "trusted publish", "constraints.txt", "pinned by commit"):
        assert word in text, word
