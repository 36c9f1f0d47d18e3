"""The compiled form of the data plane: which modules have one, whether it is that of the sources beside it, and how it is imported.

`build_native.py` compiles the modules of the hot path (mypyc) into one folder per build, `gateway/_native/<build>/`, and describes it in
`gateway/_native/manifest.json`. `install`, called when the package `gateway` is imported, puts a finder before Python's own. The first
import of a module that has a compiled form settles it for the whole process: all of them are taken compiled, or none. They are taken only
if every source that went into the build is still what it was, to the byte; so an edited file is never shadowed by what it was before.

`GATEWAY_INTERPRETED=1` leaves the compiled form alone: for debuggers, coverage, and to tell a fault of the compiler from one of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

ROOT = Path(__file__).parents[1]
"""What the packages stand in: the repository, or site-packages."""

LIBRARY = "gateway_native"
"""mypyc's name for the group; the shared library that all compiled modules enter through is `gateway_native__mypyc`."""

_HOW = "`make build` compiles it"


@dataclass(frozen=True, slots=True)
class Build:
    """One build: its folder, the modules in it, and the digest of every source that it was made of (paths relative to the root)."""

    folder: Path
    python: str
    modules: frozenset[str]
    sources: dict[str, str]


def folder_of(root: Path) -> Path:
    """Where builds stand."""
    return root / "gateway" / "_native"


def python_tag() -> str:
    """What an extension module is bound to beside its sources."""
    return f"{sys.implementation.cache_tag}-{sys.platform}-{platform.machine()}"


def digest_of(root: Path, source: str) -> str:
    """Of a source as it is now; empty if it is not there."""
    try:
        return hashlib.sha256((root / source).read_bytes()).hexdigest()
    except OSError:
        return ""


def read_build(root: Path) -> Build | None:
    """The build that the manifest describes; None if there is none, or none that can be understood."""
    folder = folder_of(root)
    try:
        told: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        return Build(folder / told["build"], told["python"], frozenset(told["modules"]), dict(told["sources"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refusal(root: Path, build: Build | None) -> str | None:
    """Why this build is not to be used, in words for people; None if it is."""
    if build is None:
        return f"it was not compiled here ({_HOW})"
    if build.python != python_tag() or not build.folder.is_dir():
        return f"it was compiled for another Python ({_HOW} again)"
    changed = next((source for source, digest in build.sources.items() if digest_of(root, source) != digest), None)
    if changed is not None:
        return f"{changed} has changed since it was compiled ({_HOW} again)"
    return None


class Finder:
    """Finds the compiled form of modules, while it is to be used. A member of `sys.meta_path`."""

    def __init__(self, root: Path, build: Build) -> None:
        self._root = root
        self._build = build
        self._settled: str | None = None
        self._asked = False

    def refusal(self) -> str | None:
        """Why this process runs interpreted; None if it runs compiled. Settled when first asked."""
        if not self._asked:
            self._asked = True
            self._settled = refusal(self._root, self._build) or self._elsewhere() or self._loaded()
        return self._settled

    def _elsewhere(self) -> str | None:
        """The packages must be those that were compiled: with an odd path, `auth` may be anybody's."""
        for package in sorted({name.partition(".")[0] for name in self._build.modules}):
            spec = PathFinder.find_spec(package)
            if spec is None or spec.origin is None or Path(spec.origin).parent != self._root / package:
                return f"the package '{package}' is not the one beside it"
        return None

    def _loaded(self) -> str | None:
        """A compiled module cannot work with an interpreted one of its own group."""
        loaded = next((name for name in self._build.modules if name in sys.modules), None)
        return f"{loaded} was imported before the package gateway" if loaded else None

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._build.modules and name != f"{LIBRARY}__mypyc":
            return None
        if self.refusal() is not None:
            return None
        file = self._build.folder.joinpath(*name.split(".")).with_suffix(EXTENSION_SUFFIXES[0])
        if not file.exists():
            raise ImportError(f"{name} was compiled anew while this process ran: start it again", name=name)
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def install() -> None:
    """Put the finder in place, unless there is nothing for it to find or the environment forbids it."""
    if _finder() is None and not os.environ.get("GATEWAY_INTERPRETED"):
        build = read_build(ROOT)
        if build is not None:
            sys.meta_path.insert(0, Finder(ROOT, build))


def why_interpreted() -> str | None:
    """Why this process runs the data plane interpreted; None if it runs compiled."""
    finder = _finder()
    if finder is not None:
        return finder.refusal()
    if os.environ.get("GATEWAY_INTERPRETED"):
        return "GATEWAY_INTERPRETED is set"
    return refusal(ROOT, read_build(ROOT))


def described() -> str:
    """One sentence for people."""
    reason = why_interpreted()
    return "The data plane runs compiled." if reason is None else f"The data plane runs interpreted, slower: {reason}."


def _finder(path: Iterable[object] = sys.meta_path) -> Finder | None:
    return next((finder for finder in path if isinstance(finder, Finder)), None)
