"""The configuration file: YAML to a document with a line for every fault, and back.

The file is read as a node graph rather than as values, because only nodes know their lines. `${NAME}` in a value is replaced from the
environment before types are looked at; `$${` stands for a literal `${`. A replaced value is text (a key made of digits stays as it is
written), except below `parameters:`, where an unquoted one is read as YAML would read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml

from gateway.routing.document import RevisionDocument
from gateway.routing.faults import DocumentInvalid, Fault, Path
from gateway.routing.reading import check_document, snake_case

_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_FILE_BYTES = 8_000_000
_MAX_NODES = 200_000  # a few aliases can stand for billions of nodes
_MAX_DEPTH = 40


Check = Callable[[RevisionDocument], Iterable[Fault]]


def read_file(path: FilePath, environ: Mapping[str, str], further: Check | None = None) -> RevisionDocument:
    """As `read_text`; that the file cannot be read is a fault too."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DocumentInvalid([Fault((), f"{path} is larger than {_MAX_FILE_BYTES} bytes")])
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DocumentInvalid([Fault((), f"{path} is not UTF-8 text", line)]) from None
    except OSError as error:
        raise DocumentInvalid([Fault((), f"{path} cannot be read: {(error.strerror or 'unknown reason').lower()}")]) from None
    return read_text(text, environ, further)


def read_text(text: str, environ: Mapping[str, str], further: Check | None = None) -> RevisionDocument:
    """The document in this YAML text; `DocumentInvalid` with every fault and its line.

    `further` looks at a document without faults (at the disk, say); what it finds gets its lines too.
    """
    reader = _Reader(environ)
    data = reader.data(text)
    document, faults = check_document(data)
    # a value that could not be filled in was reported already; what its absence causes is no second fault
    faults = [fault for fault in faults if fault.path not in reader.unset] + reader.faults
    if document is not None and not faults and further is not None:
        faults = list(further(document))
    if document is None or faults:
        raise DocumentInvalid(reader.placed(fault) for fault in faults)
    return document


def export_yaml(document: Mapping[str, Any]) -> str:
    """A stored document as a file: `read_text` accepts it if it is fit, and says what is wrong if not. Keys in it are references."""
    data = _escaped(document)
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110))


class _Dumper(yaml.SafeDumper):
    """Indents list items below their key and never writes aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return value


class _Reader:
    """Turns nodes into plain data and remembers the line of every path."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.faults: list[Fault] = []
        self.unset: set[Path] = set()
        self._environ = environ
        self._lines: dict[Path, int] = {}
        self._nodes = 0

    def data(self, text: str) -> object:
        """Plain data of the one YAML document in `text`; `DocumentInvalid` where it is no YAML."""
        loader = yaml.SafeLoader("")
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is None:
                raise DocumentInvalid([Fault((), 'the file is empty: it must begin with "models:"', 1)])
            return self._value(loader, node, ())
        except yaml.MarkedYAMLError as error:
            raise DocumentInvalid([_syntax_fault(error, text)]) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise DocumentInvalid([Fault((), "not YAML: a character that text cannot have", line)]) from None
        finally:
            loader.dispose()

    def placed(self, fault: Fault) -> Fault:
        """The fault with the line of its path, or of the nearest part of it that is in the file."""
        if fault.line is not None:
            return fault
        path: Path = tuple(snake_case(step) if isinstance(step, str) else step for step in fault.path)
        while path and path not in self._lines:
            path = path[:-1]
        return Fault(fault.path, fault.message, self._lines.get(path, 1))

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise DocumentInvalid([Fault((), "the file is nested too deeply or repeats itself too often", node.start_mark.line + 1)])
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(loader, node, path)

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        self._report_doubles(node, path)
        loader.flatten_mapping(node)  # `<<`: merged keys come first, so that the mapping's own win
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(Fault(path, "a key must be text", key_node.start_mark.line + 1))
                continue
            key = str(key_node.value)
            place: Path = (*path, snake_case(key))
            self._lines[place] = key_node.start_mark.line + 1
            result[key] = self._value(loader, value_node, place)
        return result

    def _report_doubles(self, node: yaml.MappingNode, path: Path) -> None:
        keys = [(str(key.value), key.start_mark.line + 1) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        for key, line in keys:
            if key in seen and key != "<<":
                self.faults.append(Fault((*path, key), "the key is given twice", line))
            seen.add(key)

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> object:
        assert isinstance(node, yaml.ScalarNode)
        line = node.start_mark.line + 1
        if "${" in node.value and node.tag == "tag:yaml.org,2002:str":
            text = self._filled(node.value, path, line)
            if node.style is not None or "parameters" not in path:
                return text
            tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # the stubs leave it untyped
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        try:
            value = loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError):
            self.faults.append(Fault(path, f"the value cannot be read as {node.tag.rsplit(':', 1)[-1]}", line))
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and _is_price(path):
            return str(node.value)  # a price is the digits that it was written with, never a float
        if isinstance(value, bytes):
            self.faults.append(Fault(path, "binary values have no meaning here", line))
        return value if isinstance(value, str | int | float | bool | None) else str(node.value)  # a date is the text it was written as

    def _filled(self, text: str, path: Path, line: int) -> str:
        def fill(match: re.Match[str]) -> str:
            if match.group() == "$${":
                return "${"
            name, closed = match.group(1), match.group(2)
            if not closed or not _NAME.fullmatch(name):
                self._report_unset(path, line, "${ must be followed by the name of an environment variable and }; write $${ for a plain ${")
            elif name not in self._environ:
                self._report_unset(path, line, f"the environment variable {name} is not set")
            else:
                return self._environ[name]
            return ""

        return _VARIABLE.sub(fill, text)

    def _report_unset(self, path: Path, line: int, message: str) -> None:
        self.unset.add(path)
        self.faults.append(Fault(path, message, line))


def _is_price(path: Path) -> bool:
    """Does this lie within the prices of a model or of a backend?"""
    return path[2:3] == ("prices",) or (path[2:3] == ("backends",) and path[4:5] == ("prices",))


def _syntax_fault(error: yaml.MarkedYAMLError, text: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return Fault((), f"not YAML: {said}")
    lines = text.splitlines()
    hint = "; inside { } or [ ] write ${NAME} in quotes" if mark.line < len(lines) and "${" in lines[mark.line] else ""
    return Fault((), f"not YAML: {said}{hint}", mark.line + 1)


def fault_lines(faults: Iterable[Fault], file: str) -> list[str]:
    """`gateway.yaml:12: models[0].id: is missing`, the form that editors can jump to."""
    return [str(Fault(f.path, f.message)) if f.line is None else f"{file}:{f.line}: {Fault(f.path, f.message)}" for f in faults]
