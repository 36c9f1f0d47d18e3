"""The compiled form is taken only while it is that of the sources, and never in part."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import build_native
from gateway import native

ROOT = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for package in ("gateway", "auth"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "auth/keys.py").write_text("X = 1\n")
    native.folder_of(tmp_path).mkdir()
    return tmp_path


def build_in(root: Path) -> native.Build:
    folder = native.folder_of(root) / "b1"
    folder.mkdir(exist_ok=True)
    return native.Build(folder, native.python_tag(), frozenset({"auth.keys"}), {"auth/keys.py": native.digest_of(root, "auth/keys.py")})


def test_a_build_of_these_sources_is_taken(root: Path) -> None:
    assert native.refusal(root, build_in(root)) is None


def test_an_edited_source_is_never_shadowed(root: Path) -> None:
    build = build_in(root)
    (root / "auth/keys.py").write_text("X = 2\n")
    assert native.refusal(root, build) == "auth/keys.py has changed since it was compiled (`make build` compiles it again)"
    (root / "auth/keys.py").unlink()
    assert native.refusal(root, build)


def test_a_build_for_another_python_or_half_a_build_is_not_taken(root: Path) -> None:
    build = build_in(root)
    assert "another Python" in str(native.refusal(root, dataclasses.replace(build, python="cpython-310-linux-x86_64")))
    build.folder.rmdir()
    assert native.refusal(root, build)


@pytest.mark.parametrize(
    "manifest", [None, b"", b"{", b"[]", b'{"build": "b1"}', b'{"build": "b1", "python": "x", "modules": 3, "sources": {}}']
)
def test_without_a_manifest_that_can_be_read_there_is_no_build(root: Path, manifest: bytes | None) -> None:
    if manifest is not None:
        (native.folder_of(root) / "manifest.json").write_bytes(manifest)
    assert native.read_build(root) is None
    assert native.refusal(root, None) == "it was not compiled here (`make build` compiles it)"


def test_all_modules_are_compiled_or_none(root: Path) -> None:
    """A module of the group that is there already, interpreted, or a package from elsewhere: all of it stays interpreted."""
    import auth.keys  # noqa: F401

    (root / "auth/__init__.py").unlink()
    finder = native.Finder(root, build_in(root))
    assert finder.find_spec("auth.keys") is None
    assert finder.refusal() == "the package 'auth' is not the one beside it"
    finder = native.Finder(ROOT, dataclasses.replace(build_in(root), sources={}))
    assert finder.find_spec("auth.keys") is None
    assert finder.refusal() == "auth.keys was imported before the package gateway"


def test_what_is_listed_exists_and_error_trees_are_not() -> None:
    missing = [path for path in build_native.COMPILED if not (ROOT / path).is_file()]
    assert missing == []
    assert not [path for path in build_native.COMPILED if path.endswith("errors.py")]


def in_a_process(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "GATEWAY_INTERPRETED"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(native.why_interpreted() is not None, reason=native.described())
def test_the_environment_forbids_the_compiled_form() -> None:
    where = "import gateway.wire.sse as m; print(m.__file__)"
    assert in_a_process(where).endswith(".so")
    assert in_a_process(where, GATEWAY_INTERPRETED="1") == str(ROOT / "gateway/wire/sse.py")
    assert in_a_process("import auth.keys, gateway.native as n; print(n.why_interpreted())").startswith("auth.keys was imported before")
