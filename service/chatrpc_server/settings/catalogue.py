"""The catalogue of settings: their names in every source and their types in words, read from the model.

A field of the model is a setting, a group of settings (a nested model) or a map of groups (a dict from names to nested
models, such as `models`). A path is a tuple of names and not a dotted text, because names of map entries can contain
dots.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.fields import ProxyUrl

Place = tuple[str, ...]
"""The path of a setting, a group or a map, from the root of the model."""

_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_KINDS |= {SecretStr: "text, secret", ProxyUrl: "text, secret", Address: "host:port", tuple: "a list of text"}
_BOUNDS = {"gt": "more than", "ge": "at least", "le": "at most", "max_length": "at most"}
_MAP_KIND = "names, or a mapping of names to settings"
_PREFIX = "CHATRPC_"
_NAME = "<name>"
"""Placeholder for the name of a map's entry in a row that describes all entries."""
_HIDDEN = "…"
_LONGEST_NAME = 40
_WORDS = re.compile(r"[a-z]{1,15}(_[a-z]{1,15}){0,4}|\?|<<")
"""A name that is no secret, because secrets have digits, mixed case or long words. `?` stands for a key of YAML that is
no text, and `<<` is a merge key."""
_KEY = re.compile(r"(sk|pk|rk|gsk|xai|key|bearer)\W|(sk|pk|rk|gsk|xai|key)_", re.IGNORECASE)
"""The beginning of an API key."""


class SettingRow(NamedTuple):
    """One setting: its name in each source, its type (to be read after "must be"), default and description.

    Settings inside a map have `<name>` in path and variable, and an empty flag: only the file and variables reach them.
    """

    path: str
    env: str
    flag: str
    type: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One value. `kind` is its type in words."""

    field: FieldInfo
    kind: str

    @property
    def options(self) -> tuple[str, ...]:
        """The allowed values, if they are a closed set."""
        return get_args(self.field.annotation) if get_origin(self.field.annotation) is Literal else ()


@dataclass(frozen=True, slots=True)
class Group:
    """Settings that belong together, by name."""

    model: type[BaseModel]
    members: "dict[str, Node]"


@dataclass(frozen=True, slots=True)
class GroupMap:
    """A group for each name that the settings give."""

    field: FieldInfo
    group: Group


Node = Setting | Group | GroupMap


def group_of(model: type[BaseModel]) -> Group:
    """Return the catalogue of a model."""
    return Group(model, {name: _node(field) for name, field in model.model_fields.items()})


def _node(field: FieldInfo) -> Node:
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return group_of(annotation)
    if get_origin(annotation) is dict and issubclass(get_args(annotation)[1], BaseModel):
        return GroupMap(field, group_of(get_args(annotation)[1]))
    return Setting(field, _kind(field))


def _kind(field: FieldInfo) -> str:
    origin, arguments = get_origin(field.annotation), get_args(field.annotation)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    return _bounded(next(_KINDS[kind] for kind in (*arguments, origin, field.annotation) if kind in _KINDS), field)


def _bounded(kind: str, field: FieldInfo) -> str:
    bounds = ((words, getattr(data, name, None)) for data in field.metadata for name, words in _BOUNDS.items())
    return ", ".join([kind, *(f"{words} {bound}" for words, bound in bounds if bound is not None)])


def node_at(root: Group, place: Place) -> Node | None:
    """Return the node at a path, or None if the model has none there."""
    node: Node = root
    for name in place:
        if isinstance(node, GroupMap):
            node = node.group
        elif isinstance(node, Group) and name in node.members:
            node = node.members[name]
        else:
            return None
    return node


def kind_of(node: Node | None) -> str:
    """Return the type of a node in words, to be read after "must be"."""
    if isinstance(node, Setting):
        return node.kind
    return _bounded(_MAP_KIND, node.field) if isinstance(node, GroupMap) else "a mapping of settings"


EntryNames = Callable[[Place], Iterable[str]]
"""Returns the names of the entries in the map at a path."""


def leaves(group: Group, place: Place = (), entry_names: EntryNames = lambda _: ()) -> Iterator[Place]:
    """Yield the paths of all settings and maps in the order of the model, and of the settings in each map's entries."""
    for name, node in group.members.items():
        path = (*place, name)
        if isinstance(node, Group):
            yield from leaves(node, path, entry_names)
            continue
        yield path
        if isinstance(node, GroupMap):
            for entry in entry_names(path):
                yield from leaves(node.group, (*path, entry), entry_names)


def rows(root: Group) -> list[SettingRow]:
    """Describe every setting, in the order of the model."""
    return [row_at(root, place) for place in leaves(root, entry_names=lambda _: (_NAME,))]


def row_at(root: Group, place: Place) -> SettingRow:
    """Describe the setting or map at a path."""
    node = node_at(root, place)
    assert isinstance(node, Setting | GroupMap)
    default = _text(node.field.get_default(call_default_factory=True))
    flag_name = "" if _NAME in place else flag(place)
    return SettingRow(dotted(place), variable(place), flag_name, kind_of(node), default, str(node.field.description))


def _text(default: object) -> str:
    if default is None or default in ((), {}):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def dotted(place: Place) -> str:
    """Return a path for messages: names with dots between them, and names with special characters in quotes."""
    return ".".join(name if re.fullmatch(r"[\w<>?…-]+", name) else json.dumps(name) for name in place)


def without_secrets(root: Group, place: Place) -> Place:
    """Return a path for messages, with `…` for each name that can be a secret in the wrong place."""
    names = []
    for length, name in enumerate(place, 1):
        if node_at(root, place[:length]):
            hidden = isinstance(node_at(root, place[: length - 1]), GroupMap) and bool(_KEY.match(name))
        else:
            hidden = bool(_KEY.match(name)) or not _WORDS.fullmatch(name)
            hidden = hidden and not _is_misspelt(root, name)
        names.append(_HIDDEN if hidden else name)
    return tuple(names)


def is_like_secret(text: str) -> bool:
    """Return whether a text without spaces is like a secret, and not like a path or a name."""
    return bool(_KEY.match(text) or re.fullmatch(r"(?=.*\d)[\w+=-]{20,}", text))


def _is_misspelt(root: Group, name: str) -> bool:
    known = {name for place in leaves(root) for name in place}
    return len(name) <= _LONGEST_NAME and bool(get_close_matches(name, known, n=1, cutoff=0.75))


def flag(place: Place) -> str:
    """Return the name of a setting's flag, such as `--upstream.base-url`."""
    return "--" + ".".join(place).replace("_", "-")


def variable(place: Place) -> str:
    """Return the name of a setting's environment variable, such as `CHATRPC_UPSTREAM__BASE_URL`."""
    return _PREFIX + "__".join(map(_in_variable, place))


def _in_variable(name: str) -> str:
    """Return a name as variables spell it: upper case, with `_` for characters that variables cannot contain."""
    return name.upper() if name in (_NAME, _HIDDEN) else re.sub(r"\W", "_", name).upper()


def variable_place(root: Group, name: str, entry_names: EntryNames) -> Place | None:
    """Return the path that a variable names, or None if it names no setting.

    A part for a map's entry names the known entry with this spelling. If there is none, it names a new entry in lower
    case.
    """
    node, place = root, Place()
    for part in name.removeprefix(_PREFIX).split("__"):
        if isinstance(node, GroupMap):
            known = (entry for entry in entry_names(place) if _in_variable(entry) == part)
            node, place = node.group, (*place, next(known, part.lower()))
        elif isinstance(node, Group) and part == part.upper() and part.lower() in node.members:
            node, place = node.members[part.lower()], (*place, part.lower())  # type: ignore[assignment]
        else:
            return None
    return None if isinstance(node, Group) else place


def variable_without_secrets(root: Group, name: str) -> str:
    """Return the name of an unknown variable for messages; see `without_secrets`."""
    place = tuple(name.removeprefix(_PREFIX).lower().split("__"))
    shown = without_secrets(root, place)
    return name if shown == place else variable(shown)
