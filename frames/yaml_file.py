"""YAML files as plain values: what would be read in two ways, or execute something, is refused."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path

import yaml

from utils import UserError, quoted

MOST_BYTES = 1_000_000


def load_yaml(path: str | Path) -> object:
    """Reads a YAML file as dicts, lists, strings, numbers, booleans, dates and None.

    Raises:
        UserError: the file is missing, too large or no YAML; or it has a key twice, a tag that constructs an object, or
            an alias of what contains it.
    """
    text = _read_text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_circles(node, set(), set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem if isinstance(error, _Refused) else _shortened(error.problem or error.context)
        raise UserError(f"{path}{place}: {problem}; correct that line (YAML is indented with spaces)") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML ({_shortened(str(error))}); save it as plain text") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; expected a description of a few levels") from None


def _read_text(path: str | Path) -> str:
    """Returns the text of a file of at most MOST_BYTES."""
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "is no file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {found}; expected a YAML file that describes a data set")
    try:
        size = os.path.getsize(path)
        if size > MOST_BYTES:
            raise UserError(f"{path} has {size:,} bytes, expected a description of at most {MOST_BYTES:,}")
        return Path(path).read_text(encoding="utf-8")  # PyYAML skips a byte order mark
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _shortened(text: str | None) -> str:
    line = " ".join((text or "it is no YAML").split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _refuse_circles(node: yaml.Node, above: set[int], checked: set[int]) -> None:
    """Raises _Refused if an alias stands for what contains it; `above` are the nodes that contain this one."""
    if isinstance(node, yaml.ScalarNode) or id(node) in checked:
        return
    if id(node) in above:
        raise _Refused("an alias (*name) stands for what contains it", node)
    pairs = isinstance(node, yaml.MappingNode)
    for part in [part for pair in node.value for part in pair] if pairs else node.value:
        _refuse_circles(part, above | {id(node)}, checked)
    checked.add(id(node))


class _Refused(yaml.MarkedYAMLError):
    """YAML, but not for us."""

    def __init__(self, problem: str, node: yaml.Node):
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses duplicate keys too."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[object, int] = {}
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key_node in keys:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _Refused("a list or mapping cannot be a key", key_node)
            if key in lines:
                raise _Refused(f"the key {quoted(key)} stands twice, first in line {lines[key]}", key_node)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):  # what the constructors raise for `!!int x`
            raise _Refused(f"the value is no {quoted(node.tag)}", node) from None

    def construct_undefined(self, node: yaml.Node) -> None:
        raise _Refused(f"the tag {quoted(node.tag)} stands for an object; only plain values are read", node)


_Loader.add_constructor(None, _Loader.construct_undefined)
