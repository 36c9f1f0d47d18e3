"""Compile the data plane's hot path (mypyc), if it is not compiled as it is now: `python build_native.py`. What it makes is described in
gateway/native.py. Without a C compiler it says so and ends well: everything runs interpreted, with the same results.

    --required     a compiler that is missing is a failure too
    --best-effort  a compilation that fails is one line, not a failure
    --clean        forget all builds

Needs the extra `native` (mypy, setuptools).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.native import LIBRARY, digest_of, folder_of, python_tag, read_build, refusal

ROOT = Path(__file__).parent

# What a relayed request runs through. Error trees stay out (a compiled exception loses its class-level defaults), and so do modules that
# people subclass. docs/decisions/0011-compiled-hot-path.md has the rules for what stands here.
COMPILED = (
    "auth/authenticator.py",
    "auth/credential.py",
    "auth/keys.py",
    "auth/principal.py",
    "backends/base.py",
    "backends/custom.py",
    "backends/http1.py",
    "gateway/limits/base.py",
    "gateway/limits/shared.py",
    "gateway/limits/slots.py",
    "gateway/metering/base.py",
    "gateway/metering/ledger.py",
    "gateway/metering/log.py",
    "gateway/metering/meter.py",
    "gateway/metering/progress.py",
    "gateway/metering/record.py",
    "gateway/metering/tried.py",
    "gateway/relay/answers.py",
    "gateway/relay/attempt.py",
    "gateway/relay/content.py",
    "gateway/relay/edge.py",
    "gateway/relay/estimate.py",
    "gateway/relay/flow.py",
    "gateway/relay/operations.py",
    "gateway/relay/relayed.py",
    "gateway/relay/shadow.py",
    "gateway/relay/stream.py",
    "gateway/routing/health.py",
    "gateway/routing/policies/weighted.py",
    "gateway/routing/retries.py",
    "gateway/routing/table.py",
    "gateway/routing/verdict.py",
    "gateway/routing/window.py",
    "gateway/runtime.py",
    "gateway/wire/body.py",
    "gateway/wire/heads.py",
    "gateway/wire/protocols.py",
    "gateway/wire/sse.py",
    "gateway/wire/usage.py",
    "gateway/wire/words.py",
)
# Modules that have a form in C beside them, written by hand: the same functions, under the same tests.
WRITTEN_IN_C = ("gateway/limits/levels.py", "gateway/metering/lines.py") if sys.platform == "linux" else ("gateway/metering/lines.py",)
# Calls go where they go to at once, not by way of a table that others could put something else into: 5 % of a request.
_DIRECT = ("-fvisibility=hidden", "-fno-plt")
_PACKAGES = ("auth", "backends", "gateway")


def main(arguments: list[str]) -> int:
    if "--clean" in arguments:
        shutil.rmtree(folder_of(ROOT), ignore_errors=True)
        return 0
    if os.environ.get("GATEWAY_INTERPRETED") or _is_current():
        return 0
    lacking = _lacking()
    if lacking:
        print(f"The data plane is not compiled: {lacking}. It runs interpreted, at about twice the CPU time per request.", file=sys.stderr)
        return 1 if "--required" in arguments else 0
    print("Compiling the data plane (about a minute; again only when it has changed)", file=sys.stderr, flush=True)
    began_s = time.monotonic()
    sources = {source: digest_of(ROOT, source) for source in sorted(set(_sources()))}  # before: an edit meanwhile makes the build stale
    with tempfile.TemporaryDirectory(prefix="gateway-native-") as scratch:
        failure = _compile(Path(scratch))
        if failure:
            print(failure, file=sys.stderr)
            print("The data plane could not be compiled: see above. It runs interpreted.", file=sys.stderr)
            return 0 if "--best-effort" in arguments else 1
        _put_in_place(Path(scratch) / "lib", sources)
    print(f"Compiled {len(COMPILED) + len(WRITTEN_IN_C)} modules in {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return 0


def _is_current() -> bool:
    build = read_build(ROOT)
    return build is not None and build.modules == {_module(path) for path in (*COMPILED, *WRITTEN_IN_C)} and refusal(ROOT, build) is None


def _lacking() -> str:
    """What a build needs and this machine has not; empty if all is there."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's C headers are missing (python3-dev)"
    try:
        import mypyc.build  # noqa: F401
        import setuptools  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (the extra 'native')"
    return ""


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _compile(scratch: Path) -> str:
    """Into scratch/lib, in a process of its own: mypyc and the C compiler talk much, which is worth reading only when they fail."""
    command = [sys.executable, __file__, "--compile-into", str(scratch)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout[-6000:] if done.returncode else ""


def compile_into(scratch: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    files = list(COMPILED)
    c_files = str(scratch / "c")
    extensions = mypycify(["--config-file=pyproject.toml", *files], only_compile_paths=files, group_name=LIBRARY, target_dir=c_files)
    extensions += [Extension(_module(path), [str(_in_c(path))], extra_compile_args=["-O2"]) for path in WRITTEN_IN_C]
    if sys.platform == "linux":
        for extension in extensions:
            extension.extra_compile_args += _DIRECT
            extension.extra_link_args += ["-Wl,-z,now"]
    command = build_ext(Distribution({"name": LIBRARY, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(scratch / "lib"), str(scratch / "objects")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    with contextlib.redirect_stdout(io.StringIO()):
        command.run()


def _put_in_place(library: Path, sources: dict[str, str]) -> None:
    """Under a name of its own, then the manifest over the old one: a process that runs keeps what it has mapped."""
    build = hashlib.sha256(json.dumps([sources, time.time_ns()]).encode()).hexdigest()[:12]
    folder = folder_of(ROOT)
    folder.mkdir(exist_ok=True)
    shutil.copytree(library, folder / build)
    told = {"build": build, "python": python_tag(), "modules": sorted(map(_module, (*COMPILED, *WRITTEN_IN_C))), "sources": sources}
    fresh = folder / f"manifest.{build}"
    fresh.write_text(json.dumps(told, indent=1))
    fresh.replace(folder / "manifest.json")
    for old in folder.iterdir():
        if old.is_dir() and old.name != build:
            shutil.rmtree(old, ignore_errors=True)


def _in_c(path: str) -> Path:
    return Path(path).with_suffix(".c")


def _sources() -> Iterator[str]:
    """What the build depends on: the compiled modules and whatever of ours they import, whose types they took for granted."""
    for path in WRITTEN_IN_C:
        yield path
        yield str(_in_c(path))
    for path in COMPILED:
        yield path
        for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in _PACKAGES:
                yield from _files(node.module)
                for alias in node.names:
                    yield from _files(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] in _PACKAGES:
                        yield from _files(alias.name)


def _files(module: str) -> Iterator[str]:
    path = module.replace(".", "/")
    for file in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / file).is_file():
            yield file


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile-into"]:
        compile_into(Path(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
