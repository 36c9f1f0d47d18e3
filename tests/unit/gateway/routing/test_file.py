"""The file: every fault with its line, the environment, and a round trip."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from gateway.routing.document import canonical, take_secrets
from gateway.routing.faults import DocumentInvalid
from gateway.routing.file import export_yaml, fault_lines, read_file, read_text

DESIGN_EXAMPLE = """\
models:
  - id: chat
    name: Custom Chat Model 1                            # display name, optional
    parameters: {temperature: 0.7, max_tokens: 2048}     # spliced in where the client sends none
    timeouts: {first_byte_s: 30}
    prices: {input: "0.15", output: "0.60"}
    maxOutputTokens: 4096
    tokenizer: my-chat-model
    policy: weighted
    backends:
      - {type: custom, baseURL: "http://10.0.0.5:8000/v1", apiKey: "${UPSTREAM_KEY}", model: llama-3.1-8b, weight: 3}
      - {type: local, path: my-chat-model, weight: 1}
  - id: embed
    backends:
      - {type: local, path: my-embedding-model}
"""


def faults_of(text: str, environ: dict[str, str] | None = None) -> list[tuple[int | None, str, str]]:
    with pytest.raises(DocumentInvalid) as caught:
        read_text(text, environ or {})
    return [(fault.line, fault.place, fault.message) for fault in caught.value.faults]


def test_the_example_of_the_design() -> None:
    document = read_text(DESIGN_EXAMPLE, {"UPSTREAM_KEY": "sk-up"})
    stored, taken = take_secrets(document)
    assert taken == {"chat/custom-1": "sk-up"}
    exported = export_yaml(stored.as_dict())
    assert "sk-up" not in exported
    assert canonical(read_text(exported, {})) == canonical(stored)


def test_every_fault_has_its_line() -> None:
    text = """\
modles: 3
models:
  - id: chat
    maxOutputTokens: 0
    timeouts:
      first_byte: 30

    prices: {input: "abc", output: "0.1234567"}
    backends:
      - {type: custom, baseURL: "ftp://10.0.0.5", apiKey: "${NOT_SET}", weight: -1}
      - type: custom
        weight: 1
      - type: locale
  - id: chat
    backends: []
"""
    lines = [(line, place) for line, place, _ in faults_of(text)]
    assert lines == sorted(lines, key=lambda item: item[0] or 0)
    assert set(lines) == {
        (1, "modles"), (4, "models[0].max_output_tokens"), (6, "models[0].timeouts.first_byte"), (8, "models[0].prices.input"),
        (8, "models[0].prices.output"), (10, "models[0].backends[0].base_url"), (10, "models[0].backends[0].api_key"),
        (10, "models[0].backends[0].weight"), (11, "models[0].backends[1].base_url"), (13, "models[0].backends[2].type"),
        (14, "models[1].id"), (15, "models[1].backends"),
    }  # fmt: skip


def test_an_unset_variable_is_one_fault_and_names_it() -> None:
    text = 'models:\n  - id: "${ID}"\n    backends:\n      - {type: echo}\n'
    assert faults_of(text) == [(2, "models[0].id", "the environment variable ID is not set")]


@pytest.mark.parametrize("value", ["${}", "${A B}", "${OPEN", "${1X}"])
def test_a_malformed_variable_is_a_fault(value: str) -> None:
    (fault,) = faults_of(f'models:\n  - id: m\n    name: "{value}"\n    backends: [{{type: echo}}]\n', {"A B": "x", "OPEN": "x"})
    assert fault[:2] == (3, "models[0].name")


def test_variables_fill_text_numbers_and_parts_and_are_not_filled_twice() -> None:
    text = """\
models:
  - id: m-${N}
    name: "costs $5, $${NOT} ${SELF}"
    parameters:
      temperature: ${T}
      user: "${N}"
    backends:
      - type: custom
        base_url: http://${HOST}:${PORT}/v1
        api_key: ${DIGITS}
        weight: ${N}
"""
    environ = {"N": "3", "SELF": "${SELF}", "T": "0.5", "HOST": "h", "PORT": "80", "DIGITS": "007"}
    entry = read_text(text, environ).as_dict()["models"][0]
    assert (entry["id"], entry["name"], entry["parameters"]) == ("m-3", "costs $5, ${NOT} ${SELF}", {"temperature": 0.5, "user": "3"})
    assert entry["backends"] == [{"type": "custom", "weight": 3, "base_url": "http://h:80/v1", "api_key": "007"}]


def test_export_escapes_what_looks_like_a_variable() -> None:
    document = read_text('models:\n  - {id: m, name: "$${X} ${Y}", backends: [{type: echo}]}\n', {"Y": "${Z}"})
    assert document.models[0].name == "${X} ${Z}"
    assert read_text(export_yaml(document.as_dict()), {}) == document


def test_a_variable_cannot_inject_structure() -> None:
    document = read_text("models:\n  - id: m\n    name: ${X}\n    backends: [{type: echo}]\n", {"X": "a\nbackends: []"})
    assert document.models[0].name == "a\nbackends: []"


def test_syntax_faults_name_the_line_and_help() -> None:
    ((line, _, message),) = faults_of("models:\n  - id: m\n    parameters: {temperature: ${T}}\n")
    assert line == 3
    assert "in quotes" in message
    assert faults_of("models:\n\t- id: m\n")[0][0] == 2
    assert faults_of("models: [\x01]")[0][0] == 1
    assert faults_of("")[0][0] == 1
    assert "single document" in faults_of("models: []\n---\nmodels: []\n")[0][2]


def test_a_key_given_twice_is_a_fault_at_the_second() -> None:
    text = "models:\n  - id: m\n    name: a\n    name: b\n    backends: [{type: echo}]\n"
    assert faults_of(text) == [(4, "models[0].name", "the key is given twice")]


def test_anchors_and_merges_work() -> None:
    text = """\
models:
  - id: a
    timeouts: &slow {idle_s: 900, total_s: 0}
    backends: &b [{type: echo}]
  - id: b
    timeouts: {<<: *slow, idle_s: 5}
    backends: *b
"""
    first, second = read_text(text, {}).as_dict()["models"]
    assert first["timeouts"] == {"idle_s": 900, "total_s": 0}
    assert second["timeouts"] == {"idle_s": 5, "total_s": 0}
    assert first["backends"] == second["backends"]


def bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefgh")]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "models: &m [*m]\n",
        "models: " + "[" * 60 + "]" * 60,
    ],
    ids=["bomb", "cycle", "deep"],
)
def test_a_bomb_is_refused_quickly(text: str) -> None:
    assert any("nested too deeply" in message for _, _, message in faults_of(text))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!binary aGk=", "!!set {a}", "!!int abc"])
def test_a_tag_runs_nothing(tag: str) -> None:
    assert faults_of(f"models:\n  - id: m\n    name: {tag}\n    backends: [{{type: echo}}]\n")


def test_dates_and_odd_scalars_stay_what_was_written() -> None:
    text = "models:\n  - id: m\n    parameters: {d: 2024-01-01, o: 0o17, b: yes, n: null}\n    backends: [{type: echo}]\n"
    assert read_text(text, {}).models[0].parameters == {"d": "2024-01-01", "o": "0o17", "b": True, "n": None}


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for name, content in (("latin.yaml", b"models:\n  - id: caf\xe9\n"), ("none.yaml", None)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DocumentInvalid) as caught:
            read_file(path, {})
        assert caught.value.faults[0].line == (2 if content else None)
        assert name in caught.value.message
    bom = tmp_path / "bom.yaml"
    bom.write_bytes(b"\xef\xbb\xbfmodels: []\n")
    assert read_file(bom, {}).models == []


def test_fault_lines_are_what_editors_jump_to() -> None:
    with pytest.raises(DocumentInvalid) as caught:
        read_text("models:\n  - id: m\n", {})
    assert fault_lines(caught.value.faults, "g.yaml") == ["g.yaml:2: models[0].backends: is missing"]
