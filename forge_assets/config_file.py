"""Configuration files in YAML: unique keys, numbers as in YAML 1.2, and errors that name the file and the line."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

FORM = "'trunk: {training: {steps: 400}}'"

# YAML 1.2.2, section 10.3.2 (core schema). YAML 1.1 reads 1e-3 as text, 010 as 8, 12:30 as 750 and no as false.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class ConfigFileError(ValueError):
    """A configuration file that cannot be used; the message names the file, the line and the repair."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, unique keys, and no aliases to what encloses them."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as PyYAML declares it)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._open.append(anchor or "")
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        self._open.pop()
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = _line(key)
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_tag("str"), _tag("merge")):
                raise _at(key, f"a key must be a name, got {getattr(key, 'value', 'a list or mapping')!r}: quote it")
            if key.value in seen:
                raise _at(key, f"{key.value!r} stands a second time (first in line {seen[key.value]}): leave one out")
            seen[key.value] = line
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        self._open.append(anchor or "")
        node: yaml.SequenceNode = super().compose_sequence_node(anchor)
        self._open.pop()
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _at(event, f"*{event.anchor} stands within itself")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0 if text[:2] in ("0x", "0o") else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node))
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise _at(node, f"a number must be finite, got {text}")
        return value


def _tag(kind: str) -> str:
    return f"tag:yaml.org,2002:{kind}"


for _kind, (_pattern, _first) in _SCALARS.items():
    _letters = [*_first, *([""] if _kind == "null" else [])]
    _Loader.add_implicit_resolver(_tag(_kind), re.compile(rf"^(?:{_pattern})$"), _letters)
_Loader.add_constructor(_tag("int"), _Loader.construct_yaml_int)
_Loader.add_constructor(_tag("float"), _Loader.construct_yaml_float)


def read_mapping(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the mapping in a YAML file, and the line of each of its keys.

    Raises:
        ConfigFileError: when the file cannot be read, is not UTF-8, or does not hold one mapping with unique keys.
    """
    loader = _Loader(_text(path))
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigFileError(f"{path} is empty: write for instance {FORM}, or leave the file out")
        if not isinstance(node, yaml.MappingNode):
            raise ConfigFileError(f"{path}, line {_line(node)}: names with values belong here, for instance {FORM}")
        document: dict[str, Any] = loader.construct_document(node)
    except ConfigFileError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigFileError(f"{path}{place}: {_advice(error)}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigFileError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # a tagged value, such as !!int x
        raise ConfigFileError(f"{path} holds a value that its tag does not allow: {error}") from error
    finally:
        loader.dispose()
    return document, {key.value: _line(key) for key, _ in node.value}


def read_overrides(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return the configuration in a YAML file: asset to fields, or in the launchpad's form (`ops: ... config:`).

    Raises:
        ConfigFileError: as `read_mapping`, and when something in the file would not be used.
    """
    if path is None:
        return {}
    document, lines = read_mapping(path)
    if "ops" not in document:
        for asset, values in document.items():
            _require_mapping(path, lines[asset], asset, values, FORM)
        return document
    for key in document:
        if key != "ops":
            raise ConfigFileError(
                f"{path}, line {lines[key]}: {key!r} stands beside 'ops' and would not be used: move it below 'ops', "
                "or leave it out"
            )
    form = "'ops: {trunk: {config: {training: {steps: 400}}}}'"
    _require_mapping(path, lines["ops"], "ops", document["ops"], form)
    overrides = {}
    for asset, entry in document["ops"].items():
        _require_mapping(path, lines["ops"], f"ops.{asset}", entry, form)
        if unused := sorted(entry.keys() - {"config"}):
            raise ConfigFileError(f"{path}: ops.{asset}.{unused[0]} would not be used: values belong below 'config'")
        _require_mapping(path, lines["ops"], f"ops.{asset}.config", entry.get("config"), form)
        overrides[asset] = entry["config"]
    return overrides


def _require_mapping(path: Path, line: int, name: str, value: Any, form: str) -> None:
    if not isinstance(value, dict):
        got = "nothing" if value is None else repr(value)[:60]
        raise ConfigFileError(f"{path}, line {line}: {name} must be fields with values, got {got}; the form is {form}")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigFileError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error.context).split())
    if "'\\t'" in problem:
        return "a line begins with a tab: YAML is indented with blanks"
    if "expected a single document" in str(error.context):
        return "a second document begins here: put all into one"
    return problem


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _at(place: Any, problem: str) -> yaml.MarkedYAMLError:
    """Return an error at a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
