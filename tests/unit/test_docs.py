"""The documents say what is so: commands exist, examples are valid, links lead somewhere, the map is complete."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli.app import app
from gateway.routing.file import read_text

ROOT = Path(__file__).parents[2]
ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
STATES = re.compile(r"met|not yet measured|thin -> issue \d+")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    return [text for tag, text in fenced if tag == language]


def commands(path: Path) -> list[str]:
    """Lines of shell blocks, and `gateway ...` and `make ...` within sentences; without comments."""
    lines = [line for block in blocks(path) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    inline = re.findall(r"`((?:gateway|make) [^`]+)`", prose)
    return [line.split(" #")[0].strip() for line in [*lines, *inline] if line.strip()]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command of the tree, and what follows it."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_exist_with_their_options(path: Path) -> None:
    for line in commands(path):
        if not line.startswith("gateway "):
            continue
        words = shlex.split(line)[1:]
        if words[0].startswith("--"):
            assert words[0] == "--version"
            continue
        command, rest = command_of(words)
        assert not hasattr(command, "commands"), f"{name_of(path)}: {line!r} is no command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("-") and word != "-"} <= known, f"{name_of(path)}: {line!r}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    planned = set(re.findall(r"`make ([a-z-]+)`(?: when it exists| \(to be written\))", path.read_text()))
    named = {line.split()[1] for line in commands(path) if line.startswith("make ")}
    assert named <= targets | planned
    assert not planned & targets, "it exists now: say so"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            file, _, _ = target.partition("#")
            assert (path.parent / file).exists(), f"{name_of(path)}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_files_exist(path: Path) -> None:
    """Paths in backquotes that begin with a folder of this repository."""
    folders = "|".join(entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for named in re.findall(rf"`((?:{folders})/[\w./-]*)`", path.read_text()):
        if "NNNN" not in named:
            assert (ROOT / named).exists() or named == "tests/security/", f"{name_of(path)}: {named}"


@pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=name_of)
def test_the_example_configurations_are_valid(path: Path) -> None:
    documents = [read_text(text, {"UPSTREAM_KEY": "sk-upstream"}) for text in blocks(path, "yaml")]
    assert [[model.id for model in document.models] for document in documents] == [
        ["chat", "embed"],
        ["assistant", "assistant-small", "writer"],
    ]
    assert {model.policy for model in documents[1].models} == {"sticky", "canary", "experiment"}


def test_the_map_is_complete_in_both_languages() -> None:
    inside = [f"gateway/{p.parent.name}/" for p in ROOT.glob("gateway/*/__init__.py")]
    tops = [f"{name}/" for name in ("auth", "backends", "migrations", "tests", "bench", "deploy", "docs")]
    for path in (ENGLISH, KOREAN):
        mapped = re.findall(r"^\| `([^`]+)` \|", path.read_text(), flags=re.M)
        assert set(mapped) == {*inside, *tops, "gateway/app.py"}


def test_both_languages_show_the_same_commands() -> None:
    assert commands(ENGLISH) == [line.replace("키는 어떻게 만드나요?", "How do I create a key?") for line in commands(KOREAN)]
    assert [b.replace("키는 어떻게 만드나요?", "How do I create a key?") for b in blocks(KOREAN, "python")] == blocks(ENGLISH, "python")


def test_the_eight_stops_are_those_of_the_code() -> None:
    text = ast.get_docstring(ast.parse((ROOT / "gateway/relay/flow.py").read_text()))  # a compiled module has no __doc__
    assert text
    stops = re.findall(r"^    \d (\w+)", text, flags=re.M)
    assert len(stops) == 8
    assert f"eight stops: {', '.join(stops)}." in ENGLISH.read_text()
    assert re.findall(r"\((\w+)\)", KOREAN.read_text().partition("여덟 정거장:")[2].partition("커밋")[0]) == stops


def test_the_sdk_snippet_is_python() -> None:
    for path in (ENGLISH, KOREAN):
        (text,) = blocks(path, "python")
        compile(text, name_of(path), "exec")


def test_decisions_are_numbered_and_complete() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. ")
        assert re.findall(r"^## (\w+)$", text, flags=re.M) == ["Context", "Decision", "Consequence"]


def test_targets_say_what_they_rest_on() -> None:
    rows = [line.strip("|").split("|") for line in (ROOT / "docs/targets.md").read_text().splitlines() if line.count("|") == 7]
    rows = [[cell.strip() for cell in row] for row in rows if "---" not in row[0] and row[0].strip() != "line"]
    assert len(rows) > 40
    for line, command, figure, date, commit, state in rows:
        assert line
        assert command
        assert STATES.fullmatch(state), state
        if state == "met":
            assert figure, line
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), line
            assert re.fullmatch(r"[0-9a-f]{7,40}", commit), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_document_knows_the_machine_it_was_written_on(path: Path) -> None:
    assert not re.search(r"/(work|home|root|Users)/", path.read_text())
