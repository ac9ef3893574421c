"""Reads the settings file: YAML to paths with values and lines. No message quotes a value, which can be a secret.

The file is bounded in size and depth, because the parser works recursively and in Python: 100 KB take about a second.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from chatrpc_server.settings import files
from chatrpc_server.settings.catalogue import (
    Group,
    GroupMap,
    Node,
    Place,
    dotted,
    is_like_secret,
    node_at,
    without_secrets,
)

if TYPE_CHECKING:
    import yaml

_NULL = "tag:yaml.org,2002:null"
_MAX_BYTES = 128 << 10
_MAX_DEPTH = 32


class Entry(NamedTuple):
    """One setting as a source gives it. `where` is the source and the place in it, for messages."""

    place: Place
    value: Any
    where: str


class UnreadableFile(Exception):
    """A file of which no setting can be read. The message gives the reason."""


class YamlFile:
    """A parsed settings file. Problems of single entries are added to `mistakes`."""

    def __init__(self, file: str, root: Group, mistakes: list[str]) -> None:
        """Read the file. Raises `UnreadableFile`."""
        self._file, self._root, self._mistakes, self._lines = file, root, mistakes, dict[Place, int]()
        self._mapping = _mapping(file)

    def entries(self) -> Iterator[Entry]:
        """Yield the settings that the file gives. An entry of a map without settings of its own has the value {}."""
        if self._mapping is not None:
            yield from self._entries(self._mapping, ())

    def _entries(self, mapping: "yaml.MappingNode", parent: Place) -> Iterator[Entry]:
        import yaml

        for key, node in mapping.value:
            place = (*parent, key.value if isinstance(key, yaml.ScalarNode) else "?")
            line = key.start_mark.line + 1
            where = f"{dotted(without_secrets(self._root, place))} in {self._file}, line {line}"
            if place in self._lines:
                self._mistakes.append(f"{where}: given twice, first in line {self._lines[place]}; keep one")
            else:
                self._lines[place] = line
                yield from self._entry(node, Entry(place, None, where))

    def _entry(self, node: "yaml.Node", entry: Entry) -> Iterator[Entry]:
        import yaml

        known, is_null = node_at(self._root, entry.place), node.tag == _NULL
        if isinstance(known, Group | GroupMap) and isinstance(node, yaml.MappingNode):
            if self._is_entry_of_map(entry.place):
                yield entry._replace(value={})
            yield from self._entries(node, entry.place)
        elif isinstance(known, Group) and not is_null:
            self._mistakes.append(f"{entry.where}: must be a mapping of settings")
        elif isinstance(known, Group):
            if self._is_entry_of_map(entry.place):
                yield entry._replace(value={})
        elif known is None or not is_null:
            yield entry._replace(value=_value(node))

    def _is_entry_of_map(self, place: Place) -> bool:
        parent: Node | None = node_at(self._root, place[:-1])
        return isinstance(parent, GroupMap)


def _value(node: "yaml.Node") -> object:
    """Return scalars as they are written, so that they mean the same as in the other sources."""
    import yaml

    def plain(item: yaml.Node) -> object:
        valid = isinstance(item, yaml.ScalarNode) and item.tag.startswith("tag:yaml.org") and item.tag != _NULL
        return item.value if valid else {}  # a mapping, which is valid for no setting

    return [plain(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else plain(node)


@cache
def _loader() -> "type[yaml.SafeLoader]":
    """Return a loader that bounds the depth of the file."""
    import yaml  # here, because the import is slow and only a settings file requires it

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                problem = f"nested more than {_MAX_DEPTH} levels deep"
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            node: yaml.Node | None = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def _mapping(file: str) -> "yaml.MappingNode | None":
    import yaml

    try:
        text = files.read(file, _MAX_BYTES).decode("utf-8-sig")
        root = yaml.compose(text, Loader=_loader())
    except (OSError, ValueError) as error:
        where = "the settings file" if is_like_secret(file) else file
        raise UnreadableFile(f"{where}: cannot be read: {files.reason(error)}; name a readable file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        causes = filter(None, (getattr(error, "context", None), getattr(error, "problem", "an invalid character")))
        # Quotations are hidden, because the parser quotes parts of the text, such as the name of an alias.
        cause = re.sub(r"'[^'<\\][^']+'", "'…'", ", ".join(causes))
        raise UnreadableFile(f"{file}, line {line + 1}: not YAML: {cause}; correct it") from None
    if root is None or root.tag == _NULL:
        return None
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise UnreadableFile(f"{file}, line {line}: must be a mapping, such as log: {{level: info}}")
    return root
