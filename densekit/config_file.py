"""YAML files as plain trees: read safely, changed by ``key.path=value``, with environment variables filled in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from densekit.errors import DensekitError, nearest


class _Loader(yaml.SafeLoader):
    """The safe loader, but ``1e-3`` is a number, and a key that stands twice or an alias is an error.

    Aliases can make a file of a few lines unfold into gigabytes or into itself.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*) are not allowed, write the values out{self.peek_event().start_mark}")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if not isinstance(key, str | int | float | bool):
                raise yaml.YAMLError(f"a key must be a word or a number, not {key!r}")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} occurs twice{node.start_mark}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # _Loader is a SafeLoader: no code runs


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, without running code that it may hold.

    Raises:
        DensekitError: missing, unreadable, not YAML, or something else than a mapping.
    """
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else "give the path of a YAML file, such as one in configs/"
        raise DensekitError(f"config {path} does not exist; {hint}") from None
    except UnicodeDecodeError:
        raise DensekitError(f"config {path} is no text in UTF-8; give a YAML file, saved as UTF-8") from None
    except OSError as error:
        raise DensekitError(f"config {path} can't be read: {error.strerror}; give a readable YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DensekitError(f"config {path} is not valid YAML: {_one_line(error)}; mend the file there") from None
    if not isinstance(tree, dict):
        held = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise DensekitError(f"config {path} holds {held}, not keys and values such as 'seed: 0'; see configs/")
    return tree


def _one_line(error: BaseException) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, tab = error.problem_mark, "; indent by blanks, not by tabs" if "'\\t'" in str(error.problem) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{tab}"


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``key.path=value`` in a tree; the value is read as YAML, a number in the path is a place in a list.

    Raises:
        DensekitError: not of that form, or a path that leads nowhere.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DensekitError(f"override {override!r} is not of the form key.path=value, such as train.epochs=3")
    try:
        value = _yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise DensekitError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from None
    *parents, last = key.strip().split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: depth + 1]), override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise DensekitError(f"override {override!r}: {'.'.join(parents)} is {node!r}, which has no keys")


def _child(node: Any, part: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise DensekitError(f"override {override!r}: nothing stands below {path}")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise DensekitError(f"override {override!r}: {part!r} is not a position in a list of {len(node)} (from 0)")
    return int(part)


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(value: Any, source: str) -> Any:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in every string of a tree; ``source`` names it in messages.

    Raises:
        DensekitError: a variable that is not set and has no default.
    """
    if isinstance(value, dict):
        return {k: expand(v, source) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, source) for v in value]
    return _VARIABLE.sub(lambda m: _variable(m, source), value) if isinstance(value, str) else value


def _variable(match: re.Match[str], source: str) -> str:
    name, default = match.groups()
    value = os.environ.get(name) or default
    if value is None:
        raise DensekitError(f"{source}: environment variable {name} is not set; set it or write ${{{name}:-default}}")
    return value
