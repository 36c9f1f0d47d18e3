"""Nothing that is sent becomes code: no templates, no commands, no pickles, no code that comes with a model."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.folder import check_model_folder
from backends.local.paths import PathRefused, locate
from gateway.errors import InvalidRequest
from gateway.wire.template import ChatTemplate
from tests.security.inside import Inside

ROOT = Path(__file__).parents[2]
ESCAPES = (
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append(1) }}",
    "{% set _ = messages[0].update({'role': 'x'}) %}",
)
_FORBIDDEN_CALLS = frozenset({"eval", "exec", "compile", "__import__"})
_FORBIDDEN_MODULES = frozenset({"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "runpy"})
_STARTERS = frozenset({"system", "popen", "execv", "execve", "spawnv", "Popen", "create_subprocess_exec", "create_subprocess_shell"})
# Who starts processes, and what: the worker of a local model, and the server's own processes.
_MAY_START = {"backends/local/process.py", "gateway/cli/serve.py"}


def calls(*folders: str) -> Iterator[tuple[str, str, ast.AST]]:
    """(file, name, node) of every call and import."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            place = str(file.relative_to(ROOT))
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    yield place, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        yield place, f"import {alias.name.split('.')[0]}", node
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield place, f"import {node.module.split('.')[0]}", node


def test_no_code_is_made_of_text_and_no_pickle_is_read() -> None:
    for place, name, node in calls("gateway", "auth", "backends"):
        line = f"{place}:{getattr(node, 'lineno', 0)} {name}"
        assert name.removeprefix("import ") not in _FORBIDDEN_MODULES or not name.startswith("import "), line
        if name in _FORBIDDEN_CALLS:
            function = node.func if isinstance(node, ast.Call) else None
            assert isinstance(function, ast.Attribute), line  # re.compile, model.eval(): not the builtin


def test_processes_are_started_in_two_places_and_never_by_a_shell() -> None:
    starting = {place for place, name, _ in calls("gateway", "auth", "backends") if name in _STARTERS}
    assert starting <= _MAY_START
    for place, _, node in calls("gateway", "auth", "backends"):
        if isinstance(node, ast.Call):
            shell = [keyword for keyword in node.keywords if keyword.arg == "shell"]
            assert not shell, place


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_models_template_cannot_leave_its_sandbox(escape: str) -> None:
    template = ChatTemplate(escape)
    try:
        said = template.render(
            [{"role": "user", "content": "x"}],
            variables={},
            tools=None,
            add_generation_prompt=True,
            continue_final_message=False,
            limit_chars=10_000,
        )
    except InvalidRequest:
        return
    assert said == ""  # the sandbox had nothing to show


async def test_a_template_in_a_request_is_text(own: Inside) -> None:
    """Also as an argument of the chat template: it is not the caller's to choose."""
    async with own.client(await own.key("inference")) as http:
        said = "{{ ''.__class__.__mro__ }}{% raw %}"
        body = {"model": "m", "messages": [{"role": "user", "content": said}], "chat_template": "{{ 7*7 }}"}
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == said


def test_a_callers_template_never_reaches_a_local_model() -> None:
    from backends.worker.templating import _RESERVED

    assert {"chat_template", "tokenize", "conversation"} <= _RESERVED


def test_models_never_bring_their_own_code() -> None:
    """`trust_remote_code` is False wherever transformers is asked to load, and weights are safetensors."""
    calling = calls("backends", "gateway")
    training = "backends/worker/demo/"  # a developer's tool, on files that it has just made itself
    loads = [node for place, name, node in calling if name == "from_pretrained" and not place.startswith(training)]
    assert loads
    for node in loads:
        assert isinstance(node, ast.Call)
        chosen = {keyword.arg: keyword.value for keyword in node.keywords}
        trusted = chosen.get("trust_remote_code")
        assert isinstance(trusted, ast.Constant)
        assert trusted.value is False
    weights = [node for node in loads if any(k.arg == "use_safetensors" for k in node.keywords)]  # type: ignore[attr-defined]  # calls
    assert weights
    for node in weights:
        assert isinstance(node, ast.Call)
        assert all(isinstance(k.value, ast.Constant) and k.value.value is True for k in node.keywords if k.arg == "use_safetensors")


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    assert any("pickle" in fault for fault in check_model_folder(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc", "~/x", "a\\b", "link", "..", "a\0b", ""])
def test_no_path_leads_out_of_the_folder_of_models(tmp_path: Path, path: str) -> None:
    models, outside = tmp_path / "models", tmp_path / "secret"
    outside.mkdir()
    models.mkdir()
    (models / "link").symlink_to(outside)
    with pytest.raises(PathRefused):
        locate(path, models, None, hub=False, absolute_allowed=False)
